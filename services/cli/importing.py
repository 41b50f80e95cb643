"""`ltm import`: exports of chat programs become memories."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import ZoneInfo

import redis
import typer
from keepsake_client import Client
from keepsake_client.errors import KeepsakeError, RequestTimeout, Unavailable
from keepsake_client.protocol import LTMResponse
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from services.cli import EXIT_INTERRUPTED
from services.cli.backlog import wait_for_room
from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, found_stack, redis_failure
from services.cli.output import Output, print_error, printable
from services.imports import plain, reading
from services.imports.files import ExportFile, open_export
from services.imports.pages import Tally, pages
from services.imports.people import AmbiguousPeople, Person
from services.imports.records import OTHER_CONVERSATIONS, Options, UnreadableFile
from services.runtime.errors import StackError
from services.runtime.redis import connect
from services.runtime.settings import Settings, load_settings
from services.stack.probe import client_of

#: A page of 64 messages takes half a second to embed; others may come first.
PAGE_TIMEOUT_S = 300.0
#: As many people as are told apart, so that a file of other things takes no more memory than one of conversations.
MAX_PEOPLE = 100_000
#: Messages between two looks at the progress bar.
SHOWN_EVERY = 500
#: Of sessions and speakers that `--dry-run` lists.
MAX_LISTED = 20

T = TypeVar("T")
#: Sends a page of records; the response has the numbers of memories that are new, known and deleted.
Send = Callable[[list[dict[str, Any]]], LTMResponse]


@dataclass
class ImportJob:
    """The import of the texts of one file: read once to know who is who, and once to send.

    Args:
        send: sends one page; None imports nothing.
        give_way: returns when no live message waits.
        strict: stop at the first record that cannot be read.
    """

    files: list[ExportFile]
    forms: list[str]
    options: Options
    send: Send | None
    give_way: Callable[[], None]
    strict: bool
    tally: Tally

    def run(self, show: Callable[[str, int], None]) -> None:
        """Read all and send it.

        Args:
            show: shows a step of the work and how many bytes of it are done.

        Raises:
            KeepsakeError: it cannot go on; the tally says how far it came.
        """
        roles = reading.roles_for(self._people(show), self.options)
        now = time.time()
        for done, file, form in self._with_offsets():
            for page in pages(reading.records(file, form, self.options, roles, now), self.tally, strict=self.strict):
                if self.send is not None:
                    self.give_way()
                    response = self.send(page)
                    self.tally.sent += len(page)
                    self.tally.new += response.count or 0
                    self.tally.known += response.known or 0
                    self.tally.deleted += response.deleted or 0
                show("reading" if self.send is None else "importing", done + file.position)

    def _people(self, show: Callable[[str, int], None]) -> Counter[Person]:
        """How much each person says; of a file that breaks off as far as it goes, since it is imported as far."""
        people: Counter[Person] = Counter()
        for done, file, form in self._with_offsets():
            try:
                for number, person in enumerate(reading.people(file, form, self.options)):
                    if person is not None:
                        people[person] += 1
                    if len(people) > MAX_PEOPLE:
                        raise AmbiguousPeople(f"{file.name} has more than {MAX_PEOPLE:,} people: is it a conversation?")
                    if not number % SHOWN_EVERY:
                        show("who is who", done + file.position)
            except UnreadableFile:
                if self.strict or not people:
                    raise
        return people

    def _with_offsets(self) -> Iterator[tuple[int, ExportFile, str]]:
        done = 0
        for file, form in zip(self.files, self.forms, strict=True):
            yield done, file, form
            done += file.size


def import_command(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id: whose memories they become.")],
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="The export, also as .zip.", exists=True, dir_okay=False)
    ],
    form: Annotated[
        str | None, typer.Option("--format", help=f"Its form, where it is not recognised: {', '.join(reading.FORMS)}.")
    ] = None,
    me: Annotated[str | None, typer.Option(metavar="NAME", help="The user's name, or id, in the export.")] = None,
    ai: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A name, or id, of the AI in the export; repeatable.")
    ] = None,
    room: Annotated[bool, typer.Option("--room", help="USER is a room: all people are speakers.")] = False,
    chat: Annotated[
        list[str] | None, typer.Option(metavar="TITLE", help="Only the conversation of this title or id; repeatable.")
    ] = None,
    agent: Annotated[str | None, typer.Option(metavar="ID", help="The agent_id of all: an AI's character.")] = None,
    session: Annotated[
        str | None, typer.Option(metavar="ID", help="The session_id of all, in place of the conversations' own.")
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Of times that name none, as Europe/Lisbon; else LTM_TIMEZONE.")
    ] = None,
    dates: Annotated[
        Literal["dmy", "mdy"] | None, typer.Option(help="WhatsApp: whether the day or the month comes first.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Of a text that is neither UTF-8 nor UTF-16.")] = None,
    mapping: Annotated[
        str | None,
        typer.Option("--map", metavar="FIELD=COLUMN,…", help=f"Of JSONL and CSV; fields: {', '.join(plain.FIELDS)}."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Import nothing; say what would be.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first record that cannot be read.")] = False,
    restore_deleted: Annotated[
        bool, typer.Option("--restore-deleted", help="Also what was deleted after an earlier import.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Import an export of ChatGPT, Character.AI, SillyTavern, Discord, Telegram, WhatsApp or Keepsake; idempotent.

    Live messages go first. Run it again to go on after it was stopped: what is there is skipped.
    """
    settings = _settings(data_dir, dry_run)
    options = Options(
        user_id=user,
        zone=settings.timezone if timezone is None else _zone(timezone),
        max_chars=settings.ltm_max_content_chars,
        session=session,
        agent=agent,
        me=me,
        ai=tuple(ai or ()),
        room=room,
        chats=tuple(chat or ()),
        dates=dates,
        mapping=_given("--map", plain.parse_mapping, mapping) or {},
    )
    files = open_export(path, encoding)
    named = _given("--format", reading.checked_form, form)
    forms = [named or reading.recognised_form(file, options) for file in files]
    job = ImportJob(files, forms, options, None, lambda: None, strict, Tally())
    if dry_run:
        _run(job, path, settings)
    else:
        live = connect(settings.redis_url.get_secret_value())
        job.give_way = lambda: _give_way(live, settings)
        with client_of(settings) as client:
            job.send = lambda page: _send(client, user, page, restore_deleted=restore_deleted)
            _run(job, path, settings)


def _run(job: ImportJob, path: Path, settings: Settings) -> None:
    output, steps = Output(), dict[str, TaskID]()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            total = sum(file.size for file in job.files)

            def show(step: str, done: int) -> None:
                if step not in steps:
                    steps[step] = progress.add_task(step, total=total)
                progress.update(steps[step], description=f"{step} {job.tally.read:,}", completed=done)

            job.run(show)
    except KeyboardInterrupt:
        _report(output, job, path, settings.timezone)
        print_error(f"stopped after {job.tally.sent:,} records; run the same command again to go on")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except KeepsakeError:
        if job.tally.read:
            _report(output, job, path, settings.timezone)
        raise
    _report(output, job, path, settings.timezone)
    if not job.tally.read:
        raise UnreadableFile(_nothing_read(job, path))


def _nothing_read(job: ImportJob, path: Path) -> str:
    """Why a file without records may have none, and what to do."""
    if job.tally.skipped[OTHER_CONVERSATIONS]:
        return f"{path.name} has no conversation that --chat names; --dry-run without it lists them"
    titles = " and ".join(dict.fromkeys(reading.FORMS[form].title for form in job.forms))
    return f"nothing was read of {path.name} as {titles}; if it is of another form, name that with --format"


def _report(output: Output, job: ImportJob, path: Path, zone: tzinfo) -> None:
    """Say what was read, what became of it, and what was no record."""
    tally = job.tally
    titles = ", ".join(dict.fromkeys(reading.FORMS[form].title for form in job.forms))
    if job.send is not None:
        deleted = f", {tally.deleted:,} stay deleted (--restore-deleted)" if tally.deleted else ""
        came_in = f"{tally.new:,} memories are new, {tally.known:,} were there{deleted}"
        output.line(f"{tally.sent:,} records of {path.name} ({titles}): {came_in}")
    else:
        sources = ", ".join(f"{count:,} of {source}" for source, count in tally.by_source.most_common())
        output.line(f"{path.name} ({titles}) has {tally.read:,} records{f': {sources}' if sources else ''}")
        if tally.first <= tally.last:
            first, last = (f"{datetime.fromtimestamp(at, zone):%Y-%m-%d}" for at in (tally.first, tally.last))
            output.line(f"said from {first} to {last}")
        for title, counter in (("conversations", tally.sessions), ("speakers", tally.speakers)):
            if counter:
                output.line(f"{title} ({len(counter):,}): {_listed(counter)}")
    if tally.skipped:
        output.line(f"skipped: {', '.join(f'{count:,} {why}' for why, count in tally.skipped.most_common())}")
    if tally.bad:
        output.line(f"{tally.bad:,} could not be read:")
        for problem in tally.problems:
            output.line(f"  {problem}")
        if tally.bad > len(tally.problems):
            output.line(f"  and {tally.bad - len(tally.problems):,} more")


def _listed(counter: Counter[str]) -> str:
    shown = ", ".join(f"{printable(name)} ({count:,})" for name, count in counter.most_common(MAX_LISTED))
    return shown + (", …" if len(counter) > MAX_LISTED else "")


def _send(client: Client, user: str, page: list[dict[str, Any]], *, restore_deleted: bool) -> LTMResponse:
    try:
        return client.user_import(user, page, restore_deleted=restore_deleted, deadline_ms=round(PAGE_TIMEOUT_S * 1000))
    except RequestTimeout as error:
        raise RequestTimeout(f"{error}; see `ltm status`, then run the same command again to go on") from None


def _give_way(live: redis.Redis, settings: Settings) -> None:
    try:
        wait_for_room(live, settings.ltm_stream_key, 0)
    except (redis.RedisError, OSError) as error:
        raise Unavailable(f"Redis {redis_failure(error)}") from error


def _settings(data_dir: Path, dry_run: bool) -> Settings:
    """Those of the running stack; a dry run does without one."""
    try:
        return found_stack(data_dir).settings
    except StackError:
        if not dry_run:
            raise
        return load_settings()


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise typer.BadParameter(f"{name} is no IANA name of a time zone", param_hint="--timezone") from None


def _given(option: str, parse: Callable[[str], T], value: str | None) -> T | None:
    """The value of an option, parsed; None where it was not given."""
    try:
        return None if value is None else parse(value)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
