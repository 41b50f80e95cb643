"""`ltm users`: whom anything is remembered of."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, tzinfo
from typing import Annotated, Any

import typer
from keepsake_client.protocol import MAX_LIMIT
from keepsake_client.verbs import OPERATOR

from services.cli.ask import AsJSON, ask
from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, Timeout, found_stack
from services.cli.output import Output, printable


def users(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="What their ids begin with.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="The most users to show.")] = 50,
    everything: Annotated[bool, typer.Option("--all", help="Show all, however many.")] = False,
    as_json: AsJSON = False,
    timeout: Timeout = 10.0,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """List the users by id: how much is remembered of each, and when the last message was said."""
    settings = found_stack(data_dir).settings
    output, left = Output(), None if everything else limit
    shown: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = {"prefix": prefix, "limit": MAX_LIMIT if left is None else min(left, MAX_LIMIT), "cursor": cursor}
        response = ask(settings, "user_list", OPERATOR, page, timeout)
        found: list[dict[str, Any]] = response["users"]
        if as_json:
            shown += found
        for user in [] if as_json else found:
            output.line(_described(user, settings.timezone))
        left = None if left is None else left - len(found)
        cursor = response.get("next_cursor")
        if cursor is None or left == 0:
            break
    if as_json:
        output.json({**response, "users": shown})
    elif cursor is not None:
        output.line("there are more: --limit N, or --all", "dim")
    elif not found:
        output.line("no users", "dim")


def _described(user: dict[str, Any], zone: tzinfo) -> str:
    """A user in a line: id, last message, numbers, characters."""
    last = "-"
    with suppress(TypeError, ValueError, OverflowError, OSError):  # none, or beyond the calendar
        last = f"{datetime.fromtimestamp(user['last_at'], zone):%Y-%m-%d %H:%M}"
    or_more = " or more" if user["at_least"] else ""
    numbers = [f"{user['memories']:,} memories{or_more}"]
    numbers += [f"{user[name]:,} {name}" for name in ("facts", "superseded") if user[name]]
    agents = f"  [{', '.join(user['agents'])}]" if user["agents"] else ""
    return printable(f"{user['user_id']:<20}  {last:<16}  {', '.join(numbers)}{agents}")
