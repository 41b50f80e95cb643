"""`ltm dead`: list, show, replay and drop dead letters, the messages that failed for good."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import redis
import typer

from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, found_stack, redis_failure
from services.cli.output import Output, printable
from services.runtime.dead_letters import DeadLetter, DeadLetters
from services.runtime.errors import StackError
from services.runtime.open_dead_letters import open_dead_letters
from services.runtime.queues import QUEUES
from services.runtime.settings import mask_url

TIMEOUT_S = 10.0

Queue = Annotated[str | None, typer.Option(metavar="NAME", help=f"Only those of this queue: {', '.join(QUEUES)}.")]
Id = Annotated[str | None, typer.Argument(metavar="ID", help="The id of one, or the beginning of its id.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]

app = typer.Typer(
    name="dead", help="List, show, replay and drop dead letters: messages that failed for good.", no_args_is_help=True
)


@app.command("list")
def list_letters(queue: Queue = None, data_dir: DataDir = DEFAULT_DATA_DIRECTORY) -> None:
    """List the dead letters, each queue's oldest first, without contents."""
    output = Output()
    with _Opened(data_dir) as letters:
        found = list(letters.all(_checked(queue)))
    for letter in found:
        where = f"{letter.id}  {letter.queue:<11}  {printable(letter.actor):<14}  {_moment(letter)}"
        output.line(f"{where}  tries {letter.tries}  {printable(letter.error)}")
    if not found:
        output.line("no dead letters", "dim")


@app.command()
def show(identifier: Annotated[str, typer.Argument(metavar="ID")], data_dir: DataDir = DEFAULT_DATA_DIRECTORY) -> None:
    """Show one dead letter whole: its message, its error and the traceback."""
    output = Output()
    with _Opened(data_dir) as letters:
        letter = letters.find(identifier)
    for name in ("id", "queue", "actor", "tries", "error"):
        output.line(f"{name:<8} {printable(str(getattr(letter, name)))}")
    output.line(f"{'died':<8} {_moment(letter)}")
    if letter.message is None:
        output.line(printable(letter.raw.decode("utf-8", "replace")))
        return
    output.json(letter.payload)
    for line in letter.traceback.splitlines():
        output.line(printable(line))


@app.command()
def replay(
    identifier: Id = None, every: All = False, queue: Queue = None, data_dir: DataDir = DEFAULT_DATA_DIRECTORY
) -> None:
    """Send one or all dead letters to their queues again, with no failed attempts counted."""
    with _Opened(data_dir) as letters:
        _each(_chosen(letters, identifier, every, queue), letters.replay_all, "replayed", "cannot be replayed")


@app.command()
def drop(
    identifier: Id = None, every: All = False, queue: Queue = None, data_dir: DataDir = DEFAULT_DATA_DIRECTORY
) -> None:
    """Delete one or all dead letters."""
    with _Opened(data_dir) as letters:
        _each(_chosen(letters, identifier, every, queue), letters.drop_all, "dropped", "gone already")


class _Opened:
    """Context manager: the dead letters of the running stack; a Redis that is down becomes a StackError."""

    def __init__(self, data_dir: Path) -> None:
        stack = found_stack(data_dir)
        self._url = stack.settings.broker.get_secret_value()
        try:
            self._letters = open_dead_letters(stack.settings, TIMEOUT_S)
        except redis.RedisError as error:
            raise StackError(f"{mask_url(stack.redis_url)} {redis_failure(error)}") from None

    def __enter__(self) -> DeadLetters:
        return self._letters

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, redis.RedisError):
            raise StackError(f"{mask_url(self._url)} {redis_failure(error)}") from None


def _checked(queue: str | None) -> str | None:
    if queue is not None and queue not in QUEUES:
        raise typer.BadParameter(f"there is no queue {queue!r}; there are {', '.join(QUEUES)}", param_hint="--queue")
    return queue


def _chosen(letters: DeadLetters, identifier: str | None, every: bool, queue: str | None) -> list[DeadLetter]:
    if bool(identifier) == every:
        raise typer.BadParameter("give an ID, or --all")
    return [letters.find(identifier)] if identifier else list(letters.all(_checked(queue)))


def _each(chosen: list[DeadLetter], do: Callable[[list[DeadLetter]], int], done: str, otherwise: str) -> None:
    number = do(chosen)
    output = Output()
    output.line(f"{done} {number}")
    if number < len(chosen):
        output.line(f"{otherwise} {len(chosen) - number}", "bold red")
        raise typer.Exit(1)


def _moment(letter: DeadLetter) -> str:
    return datetime.fromtimestamp(letter.died_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
