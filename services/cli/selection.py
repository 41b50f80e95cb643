"""Options that select memories of a user: filters and the scope, as the `data` of a request has them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Session = Annotated[str | None, typer.Option(metavar="ID", help="Of this session.")]
Speaker = Annotated[str | None, typer.Option(metavar="NAME", help="Said by this speaker, where several were there.")]
Source = Annotated[str | None, typer.Option(metavar="user|ai", help="Said by the user, or by the AI.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="Said then or later, such as 2024-04-05.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Said then or earlier.")]
Contains = Annotated[str | None, typer.Option(metavar="TEXT", help="With this text, in any case.")]
Agent = Annotated[str | None, typer.Option(metavar="ID", help="Those of this character, beside the shared ones.")]
AllAgents = Annotated[bool, typer.Option("--all-agents", help="Those of all characters.")]


def selected(
    *,
    session: str | None,
    speaker: str | None,
    source: str | None,
    since: str | None,
    until: str | None,
    contains: str | None,
    agent: str | None,
    all_agents: bool,
) -> dict[str, Any]:
    """The options that were given, as `data` of a request: `filters` where there are any, and the scope."""
    filters = {
        "session_id": session,
        "speaker": speaker,
        "source": source,
        "since": since,
        "until": until,
        "contains": contains,
    }
    data = {
        "filters": {name: value for name, value in filters.items() if value is not None} or None,
        "agent_id": agent,
        "all_agents": all_agents or None,
    }
    return {name: value for name, value in data.items() if value is not None}
