"""`ltm search`, `ltm add`, `ltm profile`: the four request types over the public wire."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from keepsake_client.protocol import RequestType

from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, Timeout, found_stack
from services.cli.output import Output, described
from services.stack.wire import WireClient, connect

User = Annotated[str, typer.Argument(metavar="USER", help="The user's id.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print the response as it came.")]


def search(
    user: User,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="The most memories to return.")] = 5,
    as_json: AsJSON = False,
    timeout: Timeout = 10.0,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Search a user's memories, best first."""
    response = _ask(data_dir, "search", user, {"query": query, "limit": limit}, timeout)
    _show_memories(response, as_json, "no memories")


def add(
    user: User,
    text: Annotated[str, typer.Argument(help="What to remember.")],
    as_json: AsJSON = False,
    timeout: Timeout = 10.0,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Add a memory of a user."""
    response = _ask(data_dir, "add", user, {"content": text}, timeout)
    _show_memories(response, as_json, "added")


def profile(
    user: User,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=JSON", help="Set a key, or remove it with null; repeatable."),
    ] = None,
    as_json: AsJSON = False,
    timeout: Timeout = 10.0,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Show a user's profile, after changing it with --set."""
    if changes:
        updates = dict(_parsed_change(change) for change in changes)
        response = _ask(data_dir, "profile_update", user, {"updates": updates}, timeout)
    else:
        response = _ask(data_dir, "profile_get", user, {}, timeout)
    Output().json(response if as_json else response["user_profile"])


def _ask(data_dir: Path, kind: RequestType, user: str, data: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    stack = found_stack(data_dir)
    return WireClient(connect(stack.redis_url), stack.settings).ask(kind, user, data, timeout_s)


def _show_memories(response: dict[str, Any], as_json: bool, otherwise: str) -> None:
    output = Output()
    if as_json:
        output.json(response)
        return
    for memory in response["memories"]:
        output.line(described(memory))
    if not response["memories"]:
        output.line(otherwise, "dim")


def _parsed_change(change: str) -> tuple[str, Any]:
    key, equals, text = change.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f"{change!r} is not KEY=JSON", param_hint="--set")
    try:
        return key, json.loads(text)
    except ValueError:
        example = f"{key}={json.dumps(text, ensure_ascii=False)}"
        raise typer.BadParameter(f"{text!r} is not JSON; for text: '{example}'", param_hint="--set") from None
