"""`ltm import`: pages, what it says, and that it can be stopped and run again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import STREAM_GROUP, LTMResponse
from keepsake_client.requests import MAX_RECORDS

from services.cli import importing, main
from services.cli.backlog import wait_for_room
from services.cli.importing import ImportJob
from services.imports import reading
from services.imports.files import open_export
from services.imports.pages import MAX_PAGE_BYTES, MAX_RECORD_BYTES, Tally, pages
from services.imports.records import Bad, Parsed, Skipped, UnreadableFile
from services.runtime.settings import Settings
from services.stack.readiness import stream_state
from tests.unit.test_imports import DATA, options, written


@pytest.fixture(autouse=True)
def _no_stack_or_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The exit code of `ltm import`, what it printed, and its errors without the progress bar."""
    monkeypatch.setattr(sys, "argv", ["ltm", "import", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    errors = "\n".join(line for line in printed.err.splitlines() if line.startswith("ltm:") or "Invalid value" in line)
    return int(ended.value.code or 0), printed.out, errors


class Stack:
    """What stands for the stack: the ids that it has; it fails after so many pages."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.pages: list[int] = []
        self.failure: BaseException | None = None
        self.fails_after = 0

    def send(self, page: list[dict[str, Any]]) -> LTMResponse:
        if self.failure is not None and len(self.pages) == self.fails_after:
            raise self.failure
        self.pages.append(len(page))
        before = len(self.ids)
        self.ids |= {record["message_id"] for record in page}
        new = len(self.ids) - before
        return LTMResponse(request_id="r", user_id="u1", success=True, count=new, known=len(page) - new)


def many(path: Path, count: int = 200) -> Path:
    row = {"role": "user", "timestamp": 1_600_000_000}
    return written(path, "".join(json.dumps({**row, "content": f"row {number}"}) + "\n" for number in range(count)))


def job(
    path: Path, send: Callable[[list[dict[str, Any]]], LTMResponse] | None, give_way: Callable[[], None]
) -> ImportJob:
    files, how = open_export(path), options()
    forms = [reading.recognised_form(file, how) for file in files]
    return ImportJob(files, forms, how, send, give_way, False, Tally())


def test_a_page_is_no_larger_than_a_request_takes() -> None:
    """Given short and long records, I expect pages of at most 64 records and 500 kB, with all of them in order."""
    records = [{"kind": "memory", "content": "x" * (10_000 * (number % 7)), "n": number} for number in range(300)]
    found = list(pages([Parsed("line", record) for record in records], Tally()))

    assert [record for page in found for record in page] == records
    assert max(map(len, found)) <= MAX_RECORDS
    assert max(sum(len(json.dumps(record)) for record in page) for page in found) <= MAX_PAGE_BYTES
    assert len(found) < 300 / 10


def test_a_record_that_fits_into_no_request_is_told() -> None:
    tally = Tally()
    records = [{"kind": "memory", "content": "x" * MAX_RECORD_BYTES}, {"kind": "memory", "content": "y"}]

    assert list(pages([Parsed("line 1", records[0]), Parsed("line 2", records[1])], tally)) == [[records[1]]]
    assert tally.problems == ["line 1: 1,000,033 bytes are more than a request takes"]


def test_strict_stops_at_the_first_bad_record() -> None:
    items: list[Parsed | Skipped | Bad] = [
        Parsed("line 1", {"kind": "memory"}),
        Bad("line 2", "no time"),
        Parsed("line 3", {"kind": "memory"}),
    ]

    with pytest.raises(UnreadableFile, match=r"^line 2: no time$"):
        list(pages(items, Tally(), strict=True))
    assert list(pages(items, Tally())) == [[{"kind": "memory"}, {"kind": "memory"}]]


def test_the_tally_counts_by_reason_and_keeps_few_problems() -> None:
    tally = Tally()
    items: list[Parsed | Skipped | Bad] = [
        Skipped("without text", 2),
        Skipped("without text"),
        *(Bad(f"line {n}", "no") for n in range(50)),
    ]

    assert list(pages(items, tally)) == []
    assert (tally.skipped, tally.bad, len(tally.problems)) == ({"without text": 3}, 50, 20)


def test_an_import_gives_way_before_each_page_and_repeats_nothing(tmp_path: Path) -> None:
    """Given the same file twice, I expect pages one at a time, and nothing new the second time."""
    stack, path, log = Stack(), many(tmp_path / "r.jsonl"), list[str]()

    def send(page: list[dict[str, Any]]) -> LTMResponse:
        log.append("send")
        return stack.send(page)

    for new in (200, 0):
        one = job(path, send, lambda: log.append("give way"))
        one.run(lambda _, __: None)
        assert (one.tally.read, one.tally.sent, one.tally.new) == (200, 200, new)
    assert stack.pages == [64, 64, 64, 8] * 2
    assert log == ["give way", "send"] * 8


def test_progress_runs_to_the_files_end(tmp_path: Path) -> None:
    path, steps = many(tmp_path / "r.jsonl", 5_000), list[tuple[str, int]]()
    job(path, Stack().send, lambda: None).run(lambda step, done: steps.append((step, done)))

    assert {step for step, _ in steps} == {"who is who", "importing"}
    importing_steps = [done for step, done in steps if step == "importing"]
    assert importing_steps == sorted(importing_steps)
    assert importing_steps[-1] == path.stat().st_size


def with_stack(monkeypatch: pytest.MonkeyPatch, stack: Stack) -> None:
    """Let the command send to what stands for the stack; `REDIS_URL` is not connected to."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setattr(importing, "_give_way", lambda *_: None)
    monkeypatch.setattr(importing, "_send", lambda _, __, page, **___: stack.send(page))
    monkeypatch.setattr(importing, "client_of", lambda _: open("/dev/null"))  # noqa: SIM115 - a context manager


def test_what_was_stopped_says_how_far_it_came_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given Ctrl-C after two pages, I expect to be told, and the rest, once, when it is run again."""
    stack, path = Stack(), many(tmp_path / "r.jsonl")
    with_stack(monkeypatch, stack)
    stack.failure, stack.fails_after = KeyboardInterrupt(), 2

    code, out, err = run(monkeypatch, capsys, "u1", str(path))

    assert code == 130
    assert out == "128 records of r.jsonl (JSON Lines): 128 memories are new, 0 were there\n"
    assert err == "ltm: stopped after 128 records; run the same command again to go on"
    stack.failure = None
    assert run(monkeypatch, capsys, "u1", str(path)) == (
        0,
        "200 records of r.jsonl (JSON Lines): 72 memories are new, 128 were there\n",
        "",
    )


def test_what_stays_deleted_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given memories that were deleted, I expect their number and the option, which is passed on with each page."""
    response = LTMResponse(request_id="r", user_id="u1", success=True, count=3, known=2, deleted=1)
    given: list[bool] = []

    def send(*_: Any, restore_deleted: bool) -> LTMResponse:
        given.append(restore_deleted)
        return response

    with_stack(monkeypatch, Stack())
    monkeypatch.setattr(importing, "_send", send)

    _, out, _ = run(monkeypatch, capsys, "u1", str(many(tmp_path / "r.jsonl", 6)))

    assert out.endswith("3 memories are new, 2 were there, 1 stay deleted (--restore-deleted)\n")
    run(monkeypatch, capsys, "u1", str(tmp_path / "r.jsonl"), "--restore-deleted")
    assert given == [False, True]


def test_an_error_on_the_way_says_how_far_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stack, path = Stack(), many(tmp_path / "r.jsonl")
    with_stack(monkeypatch, stack)
    stack.failure, stack.fails_after = Unavailable("Redis does not answer"), 1

    code, out, err = run(monkeypatch, capsys, "u1", str(path))

    assert (code, out) == (1, "64 records of r.jsonl (JSON Lines): 64 memories are new, 0 were there\n")
    assert err == "ltm: Redis does not answer"


def test_a_file_that_breaks_off_is_imported_to_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = Stack()
    with_stack(monkeypatch, stack)
    text = (DATA / "discord.json").read_text()
    path = written(tmp_path / "d.json", text[: text.index('"3005"')])

    code, _, err = run(monkeypatch, capsys, "u1", str(path), "--room")

    assert (code, stack.ids) == (1, {"discord:3002", "discord:3003", "discord:3004"})
    assert err == "ltm: d.json, line 140, after 4 elements: the file ends too early"


def test_a_dry_run_says_what_would_be_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given no stack, I expect the counts by source, conversation and speaker, the time, and what is left out."""
    path = str(DATA / "sillytavern.jsonl")

    assert run(monkeypatch, capsys, "u1", path, "--dry-run") == (
        0,
        "sillytavern.jsonl (SillyTavern) has 4 records: 2 of ai, 2 of user\n"
        "said from 2024-03-09 to 2024-03-09\n"
        "conversations (1): sillytavern:1f3c0c5e-8f4e-4a52-9d0e-9a4d2a1c7b11 (4)\n"
        "speakers (1): Seraphina (2)\n"
        "skipped: 3 swipes that were not chosen, 2 system messages\n"
        "1 could not be read:\n"
        "  line 6: not JSON: Unterminated string starting at (column 37)\n",
        "",
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["discord.json"], 1, "ltm: several people speak here: Lena, Tom; say which is the user with --me NAME"),
        (["plain.csv"], 1, "ltm: plain.csv has the columns date, who, said, note and not content"),
        (["plain.csv", "--map", "text"], 2, "Invalid value for --map: 'text' is not FIELD=COLUMN"),
        (["plain.csv", "--format", "xml"], 2, "Invalid value for --format: 'xml' is none of keepsake, chatgpt"),
        (["plain.csv", "--timezone", "Mars"], 2, "Invalid value for --timezone: Mars is no IANA name of a time zone"),
        (["plain.csv", "--encoding", "klingon"], 1, "ltm: --encoding klingon: there is no such encoding of texts"),
        (["sillytavern.jsonl", "--strict"], 1, "ltm: line 6: not JSON: Unterminated string"),
        (["discord.json", "--format", "chatgpt"], 1, "ltm: nothing was read of discord.json as ChatGPT; if it is of"),
        (["discord.json", "--room", "--chat", "x"], 1, "ltm: discord.json has no conversation that --chat names"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, *rest = arguments
    ended, _, err = run(monkeypatch, capsys, "u1", str(DATA / name), "--dry-run", *rest)

    assert ended == code
    assert said in err
    assert err.count("\n") == 0


def test_without_a_stack_nothing_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(monkeypatch, capsys, "u1", str(DATA / "chatgpt.json"))

    assert code == 1
    assert "start one with `ltm up`, or set REDIS_URL" in err


class Stream:
    """A stream of updates that adapters read, in a Redis of its own."""

    def __init__(self) -> None:
        self.client = fakeredis.FakeRedis()
        self.client.xgroup_create("updates", STREAM_GROUP, mkstream=True)

    def add(self, count: int) -> None:
        for _ in range(count):
            self.client.xadd("updates", {"event": "{}"})

    def dispatch(self, count: int) -> None:
        read: Any = self.client.xreadgroup(STREAM_GROUP, "adapter", {"updates": ">"}, count=count)
        for entry, _ in read[0][1]:
            self.client.xack("updates", STREAM_GROUP, entry)


def test_an_import_waits_for_live_messages() -> None:
    """Given messages that wait, I expect it to go on only once all are dispatched, whatever comes meanwhile."""
    stream, looks = Stream(), list[int]()
    stream.add(3)

    def look(backlog: int) -> None:
        looks.append(backlog)
        if len(looks) == 2:
            stream.add(1)
        stream.dispatch(1)

    wait_for_room(stream.client, "updates", 0, look)

    assert looks == [3, 2, 2, 1]
    assert stream_state(stream.client, "updates").backlog == 0


def test_messages_that_come_as_fast_as_they_go_are_no_stall() -> None:
    """Given a backlog that does not shrink while messages are taken, I expect no error, but the wait to go on."""
    stream, looks = Stream(), list[int]()
    stream.add(2)

    def look(backlog: int) -> None:
        looks.append(backlog)
        stream.dispatch(1 if len(looks) < 8 else 2)
        if len(looks) < 8:
            stream.add(1)

    wait_for_room(stream.client, "updates", 0, look, stalled_timeout_s=0.7)

    assert looks == [2] * 8


def test_nothing_that_takes_messages_is_told() -> None:
    stream = Stream()
    stream.add(2)

    with pytest.raises(Unavailable, match="2 messages wait in updates and none has been taken for 0 s"):
        wait_for_room(stream.client, "updates", 0, stalled_timeout_s=0)
    wait_for_room(stream.client, "updates", 2, stalled_timeout_s=0)
    wait_for_room(stream.client, "none", 0)
