"""`ltm search`, `ltm context`, `ltm add`, `ltm profile`: requests of these types, sent with the public client."""

from __future__ import annotations

import json
from datetime import tzinfo
from typing import Annotated, Any

import typer
from keepsake_client.errors import RequestTimeout
from keepsake_client.protocol import CONTEXT_CHARS, MAX_CONTEXT_CHARS, RequestType

from services.cli.options import DEFAULT_DATA_DIRECTORY, Agent, As, DataDir, Timeout, found_stack
from services.cli.origins import show_origins
from services.cli.output import Output, with_its_facts
from services.runtime.settings import Settings
from services.stack.probe import client_of

User = Annotated[str, typer.Argument(metavar="USER", help="The user's id.")]
Superseded = Annotated[bool, typer.Option("--superseded", help="Facts that others have replaced, too.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print the whole response as JSON.")]


def search(
    user: User,
    query: Annotated[str, typer.Argument(help="What to search for.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="The most memories to return.")] = 5,
    agent: Agent = None,
    all_agents: Annotated[bool, typer.Option("--all-agents", help="Search the memories of all characters.")] = False,
    also: Annotated[
        list[str] | None, typer.Option(metavar="USER", help="Search this user's memories too; repeatable, up to 8.")
    ] = None,
    speaker: As = None,
    superseded: Superseded = False,
    as_json: AsJSON = False,
    timeout: Timeout = 10.0,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Search a user's memories, best first: the shared ones, and with --agent those of a character."""
    settings = found_stack(data_dir).settings
    scope = {"agent_id": agent, "all_agents": all_agents or None, "also": also or None, "speaker": speaker}
    options = {**scope, "include_superseded": superseded or None}
    response = ask(settings, "search", user, {"query": query, "limit": limit, **options}, timeout)
    _print_memories(response, as_json, "no memories", settings.timezone)


def context(
    user: User,
    query: Annotated[str, typer.Argument(help="What the reply is to.")],
    session: Annotated[str | None, typer.Option(metavar="ID", help="The session that goes on: not recapped.")] = None,
    max_chars: Annotated[int, typer.Option(min=1, max=MAX_CONTEXT_CHARS, help="The longest text.")] = CONTEXT_CHARS,
    agent: Agent = None,
    speaker: As = None,
    as_json: AsJSON = False,
    timeout: Timeout = 10.0,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Show what a prompt would be told of a user: profile, matching memories, the last sessions."""
    settings = found_stack(data_dir).settings
    data = {"query": query, "session_id": session, "max_chars": max_chars, "agent_id": agent, "speaker": speaker}
    response = ask(settings, "context", user, data, timeout)
    output = Output()
    if as_json:
        output.json(response)
    elif text := response.get("context"):
        output.line(text.rstrip("\n"))
    else:
        output.line("no room for what is known" if response["memories"] else "nothing is known of this user", "dim")


def add(
    user: User,
    text: Annotated[str, typer.Argument(help="The memory.")],
    agent: Agent = None,
    speaker: As = None,
    as_json: AsJSON = False,
    timeout: Timeout = 10.0,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Add a memory of a user."""
    settings = found_stack(data_dir).settings
    response = ask(settings, "add", user, {"content": text, "agent_id": agent, "speaker": speaker}, timeout)
    _print_memories(response, as_json, "added", settings.timezone)


def profile(
    user: User,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=JSON", help="Set a key, or remove it with null; repeatable."),
    ] = None,
    why: Annotated[
        str | None, typer.Option(metavar="SLOT", help="Show the words that a slot of `known` comes from.")
    ] = None,
    agent: Agent = None,
    as_json: AsJSON = False,
    timeout: Timeout = 10.0,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Show a user's profile, or the one that a character keeps, after changing it with --set."""
    updates = dict(_parse_change(change) for change in changes or [])
    if why is not None and updates:
        raise typer.BadParameter("--why changes nothing: leave out --set")
    settings = found_stack(data_dir).settings
    if why is not None:
        show_origins(settings, user, why, agent, timeout, as_json=as_json)
        return
    if updates:
        response = ask(settings, "profile_update", user, {"updates": updates, "agent_id": agent}, timeout)
    else:
        response = ask(settings, "profile_get", user, {"agent_id": agent}, timeout)
    Output().json(response if as_json else response["user_profile"])


def ask(
    settings: Settings, request_type: RequestType, user: str, data: dict[str, Any], timeout_s: float
) -> dict[str, Any]:
    """The response to one request, as the wire has it."""
    given = {name: value for name, value in data.items() if value is not None}
    with client_of(settings) as client:
        try:
            response = client.request(request_type, user, given, deadline_ms=round(timeout_s * 1000))
        except RequestTimeout as error:
            raise RequestTimeout(f"{error}; see `ltm status`") from None
    return dict(json.loads(response.to_wire()))


def _print_memories(response: dict[str, Any], as_json: bool, otherwise: str, zone: tzinfo) -> None:
    output = Output()
    if as_json:
        output.json(response)
        return
    for memory in response["memories"]:
        for line in with_its_facts(memory, zone):
            output.line(line)
    if not response["memories"]:
        output.line(otherwise, "dim")


def _parse_change(change: str) -> tuple[str, Any]:
    key, equals, text = change.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f"{change!r} is not KEY=JSON", param_hint="--set")
    try:
        return key, json.loads(text)
    except ValueError:
        example = f"{key}={json.dumps(text, ensure_ascii=False)}"
        raise typer.BadParameter(f"{text!r} is not JSON; for text: '{example}'", param_hint="--set") from None
