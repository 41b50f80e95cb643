"""`ltm logs` and `ltm config`: what they read, and how they show it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.app import build_app
from services.cli.output import escaped
from services.runtime.errors import StackError
from services.runtime.settings import RENAMED_SETTINGS, Settings
from services.stack.data_directory import DataDirectory, StackRecord
from services.stack.logfile import BoundedLog
from services.stack.logs import LogFile, follow, last_lines, log_directory, log_files
from services.stack.process_tree import ProcessId, identify

ROOT = Path(__file__).parents[2]
URL = "redis://127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def _no_stack_or_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    for name in (*Settings.model_fields, *RENAMED_SETTINGS):
        monkeypatch.delenv(name.upper(), raising=False)


def line(event: str, second: int = 0, **fields: object) -> str:
    """A line as Keepsake's processes log it."""
    moment = f"2026-11-29T10:00:{second:02}.123456Z"
    return json.dumps({**fields, "event": event, "level": "info", "timestamp": moment}) + "\n"


def stack(path: Path, url: str = URL, *, runs: bool = True) -> DataDirectory:
    """A data directory in which a stack runs, or ran until it was killed."""
    directory = DataDirectory(path)
    directory.create()
    server = identify(os.getpid()) if runs else ProcessId(pid=2**22 + 1, create_time=1.0)
    settings = {"ltm_stream_key": "s"}
    directory.write(
        StackRecord(redis_url=url, database_url="postgresql://h/d", settings=settings, processes={"redis": server})
    )
    return directory


def events(file: LogFile) -> list[str]:
    return [str(each.fields["event"]) for each in file.new()]


# Reading


def test_the_logs_of_all_processes_are_merged_by_time(tmp_path: Path) -> None:
    """Given the logs of two processes and a server's, I expect the last lines of each, in order of time."""
    (tmp_path / "memory.log").write_text(line("old", 0) + line("first", 1) + line("third", 3))
    (tmp_path / "chat-ai.log").write_text(line("second", 2) + "Traceback\n")
    (tmp_path / "redis.log").write_bytes(b"Ready \xff to accept connections\n")

    shown = last_lines(log_files(tmp_path, None), lines=2)

    assert [(each.process, each.fields["event"]) for each in shown] == [
        ("redis", "Ready \ufffd to accept connections"),
        ("memory", "first"),
        ("chat-ai", "second"),
        ("chat-ai", "Traceback"),
        ("memory", "third"),
    ]
    assert json.loads(shown[0].raw) == {"process": "redis", "event": "Ready \ufffd to accept connections"}
    assert [each.process for each in last_lines(log_files(tmp_path, "memory"), 9)] == ["memory"] * 3


def test_following_goes_on_over_a_rotation(tmp_path: Path) -> None:
    """Given a log that is rotated between two looks, I expect each line once, those before the rotation too."""
    log, file = BoundedLog(tmp_path / "memory.log", max_bytes=10), LogFile(tmp_path / "memory.log", "memory")
    with log.open() as writer:

        def write(text: str) -> None:
            writer.write(text.encode())
            writer.flush()

        write(line("one"))
        assert [each.fields["event"] for each in file.tail(5)] == ["one"]
        write(line("two") + line("three")[:20])
        assert events(file) == ["two"]
        write(line("three")[20:] + line("four"))
        log.trim()
        write(line("five"))
        assert events(file) == ["three", "four", "five"]
        assert events(file) == []

    # And one that begins after a rotation has the lines from before it.
    assert [each.fields["event"] for each in LogFile(log.path, "memory").tail(2)] == ["four", "five"]


def test_following_sees_logs_that_begin_later_and_ends_with_the_stack(tmp_path: Path) -> None:
    """Given a process that is started later and a directory that is removed, I expect its lines, and then the end."""
    logs = tmp_path / "logs"
    logs.mkdir()
    files = log_files(logs, None)
    assert last_lines(files, 5) == []
    (logs / "chat-ai.log").write_text(line("started"))

    lines = follow(files, logs)
    assert next(lines).fields["event"] == "started"
    (logs / "chat-ai.log").unlink()
    logs.rmdir()
    assert list(lines) == []


# Finding


def test_the_logs_are_those_of_the_stack_that_runs(tmp_path: Path) -> None:
    """Given a stack in .ltm, I expect its logs; without one, those of an ephemeral stack; REDIS_URL chooses."""
    default, one_url, other_url = tmp_path / ".ltm", "redis://127.0.0.1:11/0", "redis://127.0.0.1:12/0"
    with pytest.raises(StackError, match="those of Compose are shown by `docker compose logs`"):
        log_directory(None, default, "")

    ended = stack(default)
    ended.forget()
    assert log_directory(None, default, "") == ended.logs, "none runs: those of the last one"
    stack(tmp_path / "tmp" / "ltm-up-killed", "redis://127.0.0.1:10/0", runs=False)
    one = stack(tmp_path / "tmp" / "ltm-up-a", one_url)
    assert log_directory(None, default, "") == one.logs
    assert log_directory(default, default, one_url) == ended.logs, "the given directory"
    other = stack(tmp_path / "tmp" / "ltm-up-b", other_url)
    with pytest.raises(StackError, match=rf"several stacks run: .* {one_url}, {other_url}"):
        log_directory(None, default, "")
    assert log_directory(None, default, other_url) == other.logs

    lasting = stack(default)
    assert log_directory(None, default, "") == lasting.logs
    assert log_directory(None, default, one_url) == one.logs
    with pytest.raises(StackError, match=r"no logs of `ltm up` with redis://:\*\*\*@h:1/0 here"):
        log_directory(None, default, "redis://:secret@h:1/0")


def test_an_unknown_process_is_an_error_with_the_names(tmp_path: Path) -> None:
    """Given a name that no process has, I expect the names that there are."""
    stack(tmp_path / ".ltm")

    result = CliRunner().invoke(build_app(), ["logs", "chatai"])

    assert isinstance(result.exception, StackError)
    assert "there is no process 'chatai'; there are redis, postgres, long-term-memory-worker" in str(result.exception)


# Showing


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    """A stack whose log has control characters in a field and in a server's line."""
    logs = stack(tmp_path / ".ltm").logs
    text = line("replied", 5, process="chat-ai", user_id="a\x1b[2J b", asked_ms=46, exception="Traceback\n  \x07at")
    (logs / "chat-ai.log").write_text(text)
    (logs / "redis.log").write_text("red\x1b[31m\n")
    return text


def test_piped_logs_are_json(hostile: str) -> None:
    """Given a pipe, I expect each line as it was logged, and a server's as an object of its own."""
    lines = CliRunner().invoke(build_app(), ["logs"]).stdout.splitlines()

    assert lines == [json.dumps({"process": "redis", "event": "red\x1b[31m"}), hostile.strip()]


def test_logs_on_a_terminal_are_readable_and_cannot_control_it(hostile: str, tmp_path: Path) -> None:
    """Given a terminal, I expect time, process, event and fields, and control characters as their escapes."""
    ours, its_end = pty.openpty()
    with subprocess.Popen(
        [str(Path(sys.executable).parent / "ltm"), "logs"],
        cwd=tmp_path,
        env={"TERM": "dumb", "PATH": os.environ["PATH"]},
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
    ) as process:
        os.close(its_end)
        shown = b""
        while b"at\r\n" not in shown:
            shown += os.read(ours, 4_096)
        assert process.wait(10) == 0
    os.close(ours)

    assert shown.decode().splitlines() == [
        f"{'':<12}  {'redis':<25}  red\\x1b[31m",
        f'10:00:05.123  {"chat-ai":<25}  replied  user_id="a\\u001b[2J b"  asked_ms=46',
        "    Traceback",
        "      \\x07at",
    ]


def test_what_is_escaped_can_be_told_apart() -> None:
    """Given control characters, a change of direction and a lone surrogate, I expect their escapes; letters stay."""
    assert escaped("茶\x1b\n\u202e\ud800é") == "茶\\x1b\\n\\u202e\\ud800é"


# Settings


def test_config_says_where_each_value_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a running stack, a variable and an old name, I expect every setting with its source, secrets masked."""
    stack(tmp_path / ".ltm", "redis://me:s3cret@127.0.0.1:1/0")
    monkeypatch.setenv("LTM_READ_AHEAD", "77")
    monkeypatch.setenv("LTM_INDEX_NICE", "5")
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    monkeypatch.setenv("CHAT_BASE_URL", "https://h/v1?key=s3cret")

    result = CliRunner().invoke(build_app(), ["config", "--json"])

    settings = {
        each["variable"]: (each["value"], each["source"], each["read_from"]) for each in json.loads(result.stdout)
    }
    assert list(settings) == [name.upper() for name in Settings.model_fields]
    assert settings["REDIS_URL"] == ("redis://me:***@127.0.0.1:1/0", "running stack", None)
    assert settings["LTM_STREAM_KEY"] == ("s", "running stack", None)
    assert settings["LTM_PREFETCH"] == ("77", "old name", "LTM_READ_AHEAD")
    assert settings["LTM_INDEX_NICE"] == ("5", "environment", None)
    assert settings["OPENAI_API_KEY"] == ("***", "environment", None)
    assert settings["CHAT_BASE_URL"] == ("https://h/v1?***", "environment", None)
    assert settings["ENABLE_LTM"] == ("true", "default", None)
    assert settings["BROKER_URL"] == (None, "default", None)
    assert "s3cret" not in result.stdout
    assert "s3cret" not in CliRunner().invoke(build_app(), ["config"]).stdout


def test_config_needs_no_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no stack, I expect the environment's settings and the defaults, one a line."""
    monkeypatch.setenv("REDIS_URL", "redis://:s3cret@h:1/0")

    lines = CliRunner().invoke(build_app(), ["config"]).stdout.splitlines()

    assert len(lines) == len(Settings.model_fields)
    assert lines[0].split() == ["REDIS_URL", "redis://:***@h:1/0", "environment"]
    assert ["BROKER_URL", "-", "default"] in [line.split() for line in lines]


@pytest.mark.parametrize("encoding", ["gbk", "ascii"])
def test_piped_lines_are_json_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    """Given an emoji in a log and an output that lacks it, I expect the line to hold the same values, escaped."""
    directory = stack(tmp_path / "data")
    directory.logs.mkdir(exist_ok=True)
    (directory.logs / "memory.log").write_text(json.dumps({"event": "猫 🐈"}, ensure_ascii=False) + "\n", "utf-8")
    command = [sys.executable, "-c", "from services.cli import main; main()", "logs", "--data-dir", str(directory.path)]

    environment = {**os.environ, "PYTHONIOENCODING": encoding}

    printed = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=True, timeout=120).stdout

    assert [json.loads(line)["event"] for line in printed.decode(encoding).splitlines()] == ["猫 🐈"]
