"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import redis
import typer

from services.runtime.redis import words
from services.stack.data_directory import DataDirectory
from services.stack.locate import FoundStack, find_stack

DEFAULT_DATA_DIRECTORY = Path(".ltm")

DataDir = Annotated[Path, typer.Option(help="The stack's data directory; REDIS_URL, where set, takes precedence.")]
Timeout = Annotated[float, typer.Option(min=0.1, max=600, help="Seconds to wait for the response.")]

Agent = Annotated[str | None, typer.Option("--agent", metavar="NAME", help="The character of the AI.")]
As = Annotated[str | None, typer.Option("--as", metavar="NAME", help="Who of several people in a room speaks.")]


def redis_failure(error: Exception) -> str:
    """Why a command of Redis failed: it does not answer, or it answers and refuses."""
    refuses = isinstance(error, redis.ResponseError | redis.AuthenticationError)
    return f"{'refuses' if refuses else 'does not answer'}: {words(error)}"


def found_stack(data_dir: Path) -> FoundStack:
    """The running stack; see `find_stack`."""
    return find_stack(DataDirectory(data_dir), os.environ)
