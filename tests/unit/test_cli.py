"""The command line: what it refuses, and what it prints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import main
from services.cli.app import build_app
from services.cli.output import described, paragraph, printable
from services.runtime.settings import Settings


@pytest.fixture(autouse=True)
def _empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ltm", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_wrong_setting_stops_the_start_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", "http://:secret@h:1/0")

    assert run_main(monkeypatch, "up") == 2
    assert capsys.readouterr().err == (
        "ltm: REDIS_URL is 'http://:***@h:1/0'; allowed: a URL that begins with redis:// or rediss:// or unix://\n"
    )


@pytest.mark.parametrize("command", [["status"], ["demo"], ["chat"], ["search", "u1", "tea"], ["profile", "u1"]])
def test_without_a_stack_every_command_says_how_to_start_one(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, *command) == 1
    assert "start one with `ltm up`, or set REDIS_URL" in capsys.readouterr().err


def test_a_redis_that_is_away_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")

    assert run_main(monkeypatch, "search", "u1", "tea") == 1
    assert capsys.readouterr().err.startswith("ltm: Redis does not answer: ")


def test_an_unknown_process_cannot_be_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "up", "--ephemeral", "--without", "chatai") == 1
    assert "there is no process 'chatai'; there are redis, postgres, long-term-memory-worker" in capsys.readouterr().err


def test_a_port_for_an_embedded_server_and_the_address_of_another_contradict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")

    assert run_main(monkeypatch, "up", "--ephemeral", "--redis-port", "7000") == 1
    assert "--redis-port is for the embedded server, and REDIS_URL says to use another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [("name", "is not KEY=JSON"), ("=1", "is not KEY=JSON"), ("name=Anna", "is not JSON; for text:")],
)
def test_a_change_of_a_profile_is_a_key_and_json(change: str, complaint: str) -> None:
    result = CliRunner().invoke(build_app(), ["profile", "u1", "--set", change])

    assert result.exit_code == 2
    assert complaint in result.output


def test_help_names_every_command() -> None:
    output = CliRunner().invoke(build_app(), ["--help"]).output

    assert all(name in output for name in ("up", "status", "demo", "chat", "search", "add", "profile"))


def test_what_others_wrote_cannot_steer_the_terminal() -> None:
    assert printable("tea\x1b[2J\nand 茶\u202e") == "tea [2J and 茶 "


def test_lines_of_a_reply_are_kept_and_indented() -> None:
    assert paragraph("one\ntwo\x07", "  ") == "one\n  two "


def test_a_memory_is_described_in_one_line() -> None:
    memory = {"content": "likes\ntea", "score": 0.5, "timestamp": 1712345678, "source": "user"}

    assert described(memory) == "0.50  2024-04-05  user  likes tea"


def test_a_memory_with_nothing_but_content_is_described_too() -> None:
    assert described({"content": "likes tea", "score": None}) == "  -   likes tea"
