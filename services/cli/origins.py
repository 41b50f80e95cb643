"""`ltm profile USER --why SLOT`: the values of a slot of the profile, with the words that they come from."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, tzinfo
from typing import Any

import typer
from keepsake_client import Client
from keepsake_client.errors import RequestFailed
from keepsake_client.protocol import ProfileChange

from services.cli.output import Output, described, printable
from services.runtime.settings import Settings
from services.stack.probe import client_of


def show_origins(
    settings: Settings, user: str, slot: str, agent: str | None, timeout_s: float, *, as_json: bool
) -> None:
    """Print the values that a slot has and had, newest first: each with its date and what was said."""
    deadline_ms = round(timeout_s * 1000)
    with client_of(settings) as client:
        profile = client.profile_get(user, agent_id=agent, deadline_ms=deadline_ms).user_profile or {}
        written = list(_values(client, user, slot, agent, deadline_ms))
        values = [{**value, "words": _words(client, user, value, deadline_ms)} for value in written]
    if not values:
        raise typer.BadParameter(f"{slot!r} is no slot of `known` that this profile has, or had", param_hint="--why")
    known = profile.get("known")
    present = known.get(slot) if isinstance(known, dict) else None
    if as_json:
        Output().json({"slot": slot, "present": present, "values": values})
    else:
        _show(values, present, settings.timezone)


def _values(client: Client, user: str, slot: str, agent: str | None, deadline_ms: int) -> Iterator[dict[str, Any]]:
    """The values of a slot by the history of the profile, newest first; one that holds again is there once."""
    claims: list[Any] = []
    for change in _changes(client, user, agent, deadline_ms):
        known = change.patch.get("known")
        if not isinstance(known, dict) or slot not in known or known[slot] in claims:
            continue
        given, extracted = known[slot], change.source == "extraction"
        if extracted:
            claims.append(given)
        value = given if extracted and isinstance(given, dict) else {"value": given}
        yield {"version": change.version, "source": change.source, "changed_at": change.changed_at, **value}


def _changes(client: Client, user: str, agent: str | None, deadline_ms: int) -> Iterator[ProfileChange]:
    """The changes of the profile, newest first."""
    cursor = None
    while True:
        page = client.profile_get(user, agent_id=agent, history=True, cursor=cursor, deadline_ms=deadline_ms)
        yield from page.profile_history or []
        if (cursor := page.next_cursor) is None:
            return


def _words(client: Client, user: str, value: dict[str, Any], deadline_ms: int) -> list[dict[str, Any]]:
    """The memories that are the evidence of a value, those that there are under these ids."""
    words = []
    for memory_id in value.get("evidence") or []:
        try:
            response = client.memory_get(user, memory_id, deadline_ms=deadline_ms)
        except RequestFailed as error:
            if error.code != "not_found":
                raise
        else:
            words += [memory.model_dump(mode="json", exclude_none=True) for memory in response.memories]
    return words


def _show(values: list[dict[str, Any]], present: Any, zone: tzinfo) -> None:
    output = Output()
    for place, value in enumerate(values):
        moment = datetime.fromtimestamp(value.get("said_at") or value["changed_at"], zone)
        is_current = place == 0 and present is not None
        output.line(f"{moment:%Y-%m-%d %H:%M}  {printable(_text(value))}", None if is_current else "dim")
        for memory in value["words"]:
            output.line(f"    {described(memory, zone)}")


def _text(value: dict[str, Any]) -> str:
    said, of_service = value.get("value"), value["source"] != "extraction"
    if said is None:
        return "no longer" if of_service or value.get("evidence") else "deleted with the messages that said it"
    text = ", ".join(map(str, said)) if isinstance(said, list) else str(said)
    return f"{text}  (written by a service)" if of_service else text
