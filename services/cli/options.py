"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import redis
import typer

from services.gateway.access import Right
from services.runtime.redis import words
from services.stack.data_directory import DataDirectory
from services.stack.locate import FoundStack, find_stack

DEFAULT_DATA_DIRECTORY = Path(".ltm")

#: In `--may`, for every right that there is at that time.
EVERY_RIGHT = "all"

DataDir = Annotated[Path, typer.Option(help="The stack's data directory; REDIS_URL, where set, takes precedence.")]
Timeout = Annotated[float, typer.Option(min=0.1, max=600, help="Seconds to wait for the response.")]

Agent = Annotated[str | None, typer.Option("--agent", metavar="NAME", help="The character of the AI.")]
As = Annotated[str | None, typer.Option("--as", metavar="NAME", help="Who of several people in a room speaks.")]


def rights_of(may: str, known: Collection[Right] = tuple(Right)) -> tuple[Right, ...]:
    """The rights that `--may` names, with commas between, or all that are known.

    Raises:
        typer.BadParameter: it names none, or another one.
    """
    names = [name.strip() for name in may.split(",") if name.strip()]
    if names == [EVERY_RIGHT]:
        return tuple(known)
    if unknown := [name for name in names if name not in set(known)]:
        raise typer.BadParameter(
            f"there is no right {unknown[0]!r}; there are {', '.join(known)}, and all for these",
            param_hint="--may",
        )
    if not names:
        raise typer.BadParameter("name a right, or all", param_hint="--may")
    return tuple(dict.fromkeys(map(Right, names)))


def redis_failure(error: Exception) -> str:
    """Why a command of Redis failed: it does not answer, or it answers and refuses."""
    refuses = isinstance(error, redis.ResponseError | redis.AuthenticationError)
    return f"{'refuses' if refuses else 'does not answer'}: {words(error)}"


def found_stack(data_dir: Path) -> FoundStack:
    """The running stack; see `find_stack`."""
    return find_stack(DataDirectory(data_dir), os.environ)
