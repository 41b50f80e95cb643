"""`ltm memories`, `ltm memory`, `ltm correct`: what is remembered of a user, and corrections of it."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime, tzinfo
from typing import Annotated, Any

import typer
from keepsake_client.protocol import MAX_LIMIT

from services.cli.ask import AsJSON, User, ask
from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, Timeout, found_stack
from services.cli.output import Output, notes, paragraph, printable
from services.cli.selection import Agent, AllAgents, Contains, Session, Since, Source, Speaker, Until, selected
from services.runtime.settings import Settings

MemoryId = Annotated[str, typer.Argument(metavar="ID", help="The memory's id, as `ltm memories` shows it.")]


def memories(
    user: User,
    session: Session = None,
    speaker: Speaker = None,
    source: Source = None,
    since: Since = None,
    until: Until = None,
    contains: Contains = None,
    agent: Agent = None,
    all_agents: AllAgents = False,
    facts: Annotated[bool, typer.Option("--facts", help="List the facts that were found in what was said.")] = False,
    superseded: Annotated[bool, typer.Option("--superseded", help="List facts that others have replaced.")] = False,
    oldest: Annotated[bool, typer.Option("--oldest/--newest", help="Begin with the oldest, or the newest.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="The most memories to show.")] = 50,
    everything: Annotated[bool, typer.Option("--all", help="Show all, however many.")] = False,
    cursor: Annotated[
        str | None, typer.Option(help="Go on behind an earlier list: its `next_cursor`, as --json prints it.")
    ] = None,
    as_json: AsJSON = False,
    timeout: Timeout = 10.0,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """List what is remembered of a user, newest first, with ids."""
    data = selected(
        session=session,
        speaker=speaker,
        source=source,
        since=since,
        until=until,
        contains=contains,
        agent=agent,
        all_agents=all_agents,
    )
    if facts and superseded:
        raise typer.BadParameter("--facts or --superseded: a list is of one of them")
    if facts or superseded:
        data["filters"] = {**data.get("filters", {}), "kind": "fact" if facts else "superseded"}
    data["order"] = "oldest" if oldest else "newest"
    settings = found_stack(data_dir).settings
    output, left = Output(), None if everything else limit
    shown: list[dict[str, Any]] = []
    while True:
        page = {"limit": MAX_LIMIT if left is None else min(left, MAX_LIMIT), "cursor": cursor}
        response = ask(settings, "memory_list", user, {**data, **page}, timeout)
        if as_json:
            shown += response["memories"]
        for memory in [] if as_json else response["memories"]:
            output.line(_described(memory, settings.timezone))
        left = None if left is None else left - len(response["memories"])
        cursor = response.get("next_cursor")
        if cursor is None or left == 0:
            break
    if as_json:
        output.json({**response, "memories": shown})
    elif cursor is not None:
        output.line("there are more: --limit N, or --all", "dim")
    elif left == limit or (everything and not response["memories"]):
        output.line("no memories", "dim")


def memory(
    user: User,
    memory_id: MemoryId,
    as_json: AsJSON = False,
    timeout: Timeout = 10.0,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Show one memory of a user, with what it was before it was corrected."""
    settings = found_stack(data_dir).settings
    response = ask(settings, "memory_get", user, {"id": memory_id}, timeout)
    if as_json:
        Output().json(response)
        return
    _show(response["memories"][0], response["history"], settings)


def correct(
    user: User,
    memory_id: MemoryId,
    text: Annotated[str | None, typer.Argument(help="The corrected text.")] = None,
    meta: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="An object that is merged into the metadata; null removes a key."),
    ] = None,
    as_json: AsJSON = False,
    timeout: Timeout = 10.0,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Correct the text or the metadata of one memory of a user."""
    if text is None and meta is None:
        raise typer.BadParameter("say the corrected text, or --meta JSON")
    data = {"id": memory_id, "content": text, "metadata": None if meta is None else _parse_object(meta)}
    settings = found_stack(data_dir).settings
    response = ask(settings, "memory_update", user, data, timeout)
    if as_json:
        Output().json(response)
        return
    _show(response["memories"][0], [], settings)


def _show(memory: dict[str, Any], history: list[dict[str, Any]], settings: Settings) -> None:
    """Print a memory in lines, and the contents that it had before, newest first."""
    output = Output()
    output.line(_described(memory, settings.timezone, indent="    "))
    if memory["metadata"]:
        output.line(f"    {printable(json.dumps(memory['metadata'], ensure_ascii=False))}", "dim")
    for change in history[:0:-1]:
        if change["old_content"] is not None:
            until = printable(str(change["changed_at"] or "?"))
            output.line(f"  until {until}: {paragraph(change['old_content'], '    ')}")


def _described(memory: dict[str, Any], zone: tzinfo, indent: str | None = None) -> str:
    """A memory with its id, time, source, character and speaker.

    Args:
        indent: of the second line of its content and those after; None for all of it in one line.
    """
    moment = "                "
    with suppress(ValueError, OverflowError, OSError):  # beyond the calendar
        moment = f"{datetime.fromtimestamp(memory['timestamp'], zone):%Y-%m-%d %H:%M}"
    agent = f"[{printable(memory['agent_id'])}] " if memory.get("agent_id") else ""
    speaker = memory.get("speaker") or {}
    name = speaker.get("name") or speaker.get("id")
    said_by = f"{printable(name)}> " if name else ""
    content = printable(memory["content"]) if indent is None else paragraph(memory["content"], indent)
    kind = "fact" if memory.get("kind") == "fact" else memory["source"]
    return f"{printable(memory['id'])}  {moment}  {kind:<4}  {agent}{said_by}{content}{notes(memory, zone)}"


def _parse_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise typer.BadParameter(f'{text!r} is no JSON object; for example \'{{"key": "value"}}\'', param_hint="--meta")
    return value
