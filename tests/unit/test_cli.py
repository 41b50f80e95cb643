"""The command line: errors, and the format of its output."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import fakeredis
import pytest
from keepsake_client.protocol import REJECTED_STREAM, alive_key
from typer.testing import CliRunner

from services.cli import main
from services.cli.app import build_app
from services.cli.output import Output, described, paragraph, print_error, printable, with_its_facts
from services.cli.up import hints
from services.runtime.settings import Settings
from services.stack.addresses import LaunchOptions
from services.stack.processes import CHAT, MEMORY

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_stack_or_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ltm", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_wrong_setting_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", "http://:secret@h:1/0")

    assert run_main(monkeypatch, "up") == 2
    assert capsys.readouterr().err == (
        "ltm: REDIS_URL is 'http://***@h:1/0'; allowed: a URL that begins with redis:// or rediss:// or unix://"
        " or redis+sentinel:// or rediss+sentinel://\n"
    )


@pytest.mark.parametrize("command", [["status"], ["demo"], ["chat"], ["search", "u1", "tea"], ["profile", "u1"]])
def test_without_a_stack_every_command_names_ltm_up(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, *command) == 1
    assert "start one with `ltm up`, or set REDIS_URL" in capsys.readouterr().err


def test_a_redis_that_is_down_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")

    assert run_main(monkeypatch, "search", "u1", "tea") == 1
    error = capsys.readouterr().err
    assert error.startswith("ltm: Redis does not answer: ")
    assert error.count("\n") == 1


def test_an_invalid_request_is_one_line_with_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")

    assert run_main(monkeypatch, "search", " ", "tea") == 1
    assert capsys.readouterr().err == "ltm: invalid_request: user_id: must not be blank\n"


def test_a_demo_without_redis_names_the_step_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")

    assert run_main(monkeypatch, "demo") == 1
    assert capsys.readouterr().err.startswith("ltm: step 'connected': Redis does not answer: ")


def test_a_redis_that_wants_a_password_is_our_own_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a Redis that answers NOAUTH to everything, as after CONFIG SET requirepass
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _WantsPassword) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{server.server_address[1]}/0")
        codes = [run_main(monkeypatch, *command) for command in (["search", "u1", "tea"], ["chat"], ["dead", "list"])]
        server.shutdown()
        thread.join()

    lines = capsys.readouterr().err.splitlines()
    assert codes == [1, 1, 1]
    assert len(lines) == 3
    assert all("it asks for another user or password than its URL has (REDIS_URL)" in line for line in lines)


class _WantsPassword(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with suppress(OSError):  # the client may reset the connection
            while self.rfile.readline():
                self.wfile.write(b"-NOAUTH Authentication required.\r\n")


def test_an_unknown_setting_is_one_line_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LTM_LOG_LEVL", "debug")

    assert run_main(monkeypatch, "status") == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "ltm: LTM_LOG_LEVL is no setting of Keepsake; did you mean LTM_LOG_LEVEL?"
    assert second.startswith("ltm: no stack runs in ")


def test_ctrl_c_while_the_modules_are_loaded_ends_quietly() -> None:
    # Given an interrupt in the middle of the imports
    code = """
import importlib.abc, os, signal, sys
class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from services.cli import main
main()
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize("code", ["/dev/full", "a reader that has gone"])
def test_the_output_of_a_stack_may_fail(code: str) -> None:
    """Given a full disk, or a reader as `head -1`, I expect one sentence on stderr, and the process to go on."""
    lines = "output.line('one'); output.line('two'); output.line('three'); import sys; print('on', file=sys.stderr)"
    script = f"from services.cli.lasting_output import LastingOutput; output = LastingOutput(); {lines}"
    reader, writer = os.pipe()
    os.close(reader)
    if code == "/dev/full":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)

    told, went_on = result.stderr.splitlines()
    assert result.returncode == 0
    assert told.startswith("ltm: the output cannot be written (")
    assert went_on == "on"


def test_a_command_whose_output_cannot_be_written_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", "from services.cli import main; main()", "--version"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert (result.returncode, result.stderr) == (
        1,
        "ltm: the output cannot be written (No space left on device)\n",
    )


@pytest.mark.parametrize(
    ("directory", "without", "expected"),
    [
        (".ltm", (), "`ltm demo`, `ltm chat`, `ltm status`"),
        ("my data", ("chat-ai",), "`ltm status --data-dir '{here}/my data'`"),
    ],
)
def test_the_hint_names_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str, without: tuple[str, ...], expected: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["ltm", "up"])
    options = LaunchOptions(Path(directory), without=without)

    assert hints(options, tmp_path / directory) == expected.format(here=tmp_path)


def test_the_hint_calls_ltm_as_it_was_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [".venv/bin/ltm", "up"])

    assert hints(LaunchOptions(Path(".ltm")), tmp_path / ".ltm").startswith("`.venv/bin/ltm demo`")


def test_without_refuses_an_unknown_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "up", "--ephemeral", "--without", "chatai") == 1
    assert "there is no process 'chatai'; there are redis, postgres, long-term-memory-worker" in capsys.readouterr().err


def test_a_port_of_the_embedded_server_contradicts_the_url_of_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")

    assert run_main(monkeypatch, "up", "--ephemeral", "--redis-port", "7000") == 1
    assert "--redis-port is for the embedded server, and REDIS_URL says to use another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [("name", "is not KEY=JSON"), ("=1", "is not KEY=JSON"), ("name=Anna", "is not JSON; for text:")],
)
def test_a_profile_change_is_a_key_and_json(change: str, complaint: str) -> None:
    result = CliRunner().invoke(build_app(), ["profile", "u1", "--set", change])

    assert result.exit_code == 2
    assert complaint in result.output


def test_forgetting_wants_to_know_what() -> None:
    """Given `ltm forget` without saying what, I expect an error, and nothing forgotten."""
    result = CliRunner().invoke(build_app(), ["forget", "u1", "--yes"])

    assert result.exit_code == 2
    assert "--everything" in result.output


def test_help_names_every_command() -> None:
    output = CliRunner().invoke(build_app(), ["--help"]).output

    assert all(name in output for name in ("up", "status", "demo", "chat", "search", "add", "profile", "dead"))


def test_version_is_that_of_the_distribution() -> None:
    result = CliRunner().invoke(build_app(), ["--version"])

    assert (result.exit_code, result.output) == (0, f"keepsake-ltm {version('keepsake-ltm')}\n")


def test_shell_completion_can_be_installed() -> None:
    assert "--install-completion" in CliRunner().invoke(build_app(), ["--help"]).output


def test_chat_reads_lines_with_cursor_keys_and_history() -> None:
    """Given a terminal, I expect the left arrow to edit the line, and the up arrow to bring it back."""
    code = "from services.cli.chat import read_line; print('<', read_line(), read_line(), '>')"
    terminal, its_end = pty.openpty()
    left, up = b"\x1b[D", b"\x1b[A"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=its_end, stdout=its_end, stderr=its_end, cwd=ROOT, env={"TERM": "xterm"}
    ) as process:
        os.close(its_end)
        os.write(terminal, b"helo" + left + b"l\n")
        shown = b""
        while b"you> " not in shown.partition(b"\n")[2]:  # the second prompt
            shown += os.read(terminal, 1_024)
        os.write(terminal, up + b"\n")
        while b">\r\n" not in shown.partition(b"< ")[2]:
            shown += os.read(terminal, 1_024)
        assert process.wait(60) == 0
    os.close(terminal)
    assert b"< hello hello >" in shown


def test_chat_reads_lines_without_readline() -> None:
    """Given a Python without readline, I expect lines all the same."""
    code = "import sys; sys.modules['readline'] = None; from services.cli.chat import read_line; print(read_line())"
    result = subprocess.run(
        [sys.executable, "-c", code], input="hello\n", capture_output=True, text=True, cwd=ROOT, timeout=30, check=True
    )

    assert result.stdout == "hello\n"


def written(encoding: str, print_it: Callable[[Output], None]) -> str:
    """What a command writes to a standard output of that encoding."""
    raw = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(raw, encoding=encoding)):
        print_it(Output())
        sys.stdout.flush()
        return raw.getvalue().decode(encoding)


#: Text that a terminal would act upon, and how it is shown.
CONTROLS = {
    "\x1b[2J": "\\u001b[2J",
    "\x07": "\\u0007",
    "\x7f": "\\u007f",
    "\x9b2J": "\\u009b2J",
    "\x85": "\\u0085",
    "\u202eevil\u202c": "\\u202eevil\\u202c",
    "\u2066a\u2069": "\\u2066a\\u2069",
    "a\u2028b\u2029": "a\\u2028b\\u2029",
    "\ud83d": "\\ud83d",
}
#: Text with joiners, marks and spaces of its own.
JOINED = [
    "👨\u200d👩\u200d👧",
    "می\u200cخواهم",
    "❤\ufe0f",
    "🏴\U000e0067\U000e0062\U000e007f",
    "שלום\u200f!",
    "猫\u3000犬",
    "\U0001fae9",
]


@pytest.mark.parametrize(("text", "shown"), CONTROLS.items(), ids=CONTROLS.values())
def test_controls_are_escaped_wherever_they_are_printed(text: str, shown: str) -> None:
    """Given a control in a content, a reply or a line, I expect its escape."""
    assert printable(text) == shown
    assert paragraph(f"a\n{text}", "  ") == f"a\n  {shown}"
    assert written("utf-8", lambda output: output.line(text, "bold")) == f"{shown}\n"
    memory = {"content": text, "source": text, "score": 0.5}
    assert described(memory, UTC) == f"0.50  {shown:<4}  {shown}"


@pytest.mark.parametrize("text", JOINED)
def test_joiners_and_marks_that_are_part_of_text_are_shown(text: str) -> None:
    """Given emoji families, Persian words, marks and wide spaces, I expect them as they are, in JSON too."""
    assert written("utf-8", lambda output: output.line(printable(text))) == f"{text}\n"
    assert written("utf-8", lambda output: output.json({text: [text]})).count(text) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "ascii"])
def test_json_has_the_same_value_and_no_controls(encoding: str) -> None:
    """Given controls and joiners in keys and values, I expect JSON of the same value in what the encoding has."""
    value = {text: [text, {"茶🍵": text}] for text in [*CONTROLS, *JOINED, "\n\t\\u0041"]}
    printed = written(encoding, lambda output: output.json(value))

    assert json.loads(printed) == value
    assert not any(ord(char) < 32 and char != "\n" for char in printed)
    assert not re.search("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]", printed)
    assert ("茶" in printed) is (encoding != "ascii")


def test_what_a_terminal_of_gbk_lacks_is_a_question_mark() -> None:
    """Given an emoji on a terminal of GBK, I expect the rest of the text and a question mark."""
    assert written("gbk", lambda output: output.line("茶 🍵 é")) == "茶 ? é\n"


def test_an_error_that_quotes_a_control_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Given the name of a field that the sender chose, I expect its controls escaped on stderr too."""
    print_error("invalid_request: data.\x1b[2J\nfilters: not known")

    assert capsys.readouterr().err == "ltm: invalid_request: data.\\u001b[2J filters: not known\n"


def test_the_lines_of_a_reply_are_kept_and_indented() -> None:
    assert paragraph("one\r\ntwo\tx\x07", "  ") == "one\n  two x\\u0007"


def test_a_memory_is_described_in_one_line() -> None:
    memory = {"content": "likes\ntea", "score": 0.5, "timestamp": 1712345678, "source": "user"}

    assert described(memory, UTC) == "0.50  2024-04-05  user  likes tea"
    assert described(memory, ZoneInfo("Asia/Shanghai")) == "0.50  2024-04-06  user  likes tea"


def test_the_facts_of_a_message_are_shown_with_it() -> None:
    """Given a message that was found, and facts that go with it, I expect a line each, and which one was replaced."""
    facts = [
        {"content": "lives in Oslo", "score": 0.4, "superseded_at": 1_712_345_678, "superseded_by": "f2"},
        {"content": "hi"},
    ]
    memory = {"kind": "message", "source": "user", "content": "I live in Oslo", "metadata": {"facts": facts}}

    assert with_its_facts(memory, UTC) == [
        "  -   user  I live in Oslo",
        "      0.40  fact  lives in Oslo  (replaced 2024-04-05 by f2)",
        "        -   fact  hi",
    ]


@pytest.mark.parametrize("facts", [None, 7, "a", [1, None], [{}], [{"superseded_at": "x"}], [{"superseded_at": 1e300}]])
def test_facts_of_a_publishers_making_end_no_command(facts: Any) -> None:
    """Given a message whose publisher sends `facts` of its own, of any shape, I expect the message shown."""
    memory = {"kind": "message", "source": "user", "content": "hi", "metadata": {"facts": facts}}

    assert with_its_facts(memory, UTC)[0] == "  -   user  hi"


def test_a_memory_with_content_alone_is_described_too() -> None:
    assert described({"content": "likes tea", "score": None, "timestamp": 1e300}, UTC) == "  -   likes tea"


class Pipeline(threading.Thread):
    """Stands in for the memory and chat services: stores and answers each message, or rejects it."""

    def __init__(self, redis: fakeredis.FakeRedis) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.contents: list[str] = []
        self._redis = redis

    def run(self) -> None:
        while not self.ended.is_set():
            popped: Any = self._redis.brpop(["user_input_queue"], timeout=1)
            if popped is None:
                continue
            message = json.loads(popped[1])
            if not message["user_id"].strip():
                reason = "invalid_request: user_id: must not be blank"
                self._redis.xadd(
                    REJECTED_STREAM, {"at": "user_input_queue", "reason": reason, "message": popped[1][:1_000]}
                )
                continue
            self.contents.append(message["content"])
            event = {"task_id": message["task_id"], "message_id": f"m{len(self.contents)}"}
            self._redis.publish("memory_updates", json.dumps(event))
            reply = {"text": f"got {message['content']}", "original_message_id": event["message_id"]}
            self._redis.publish("ai_responses", json.dumps(reply))


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """`ltm chat` finds it at any REDIS_URL."""
    redis = fakeredis.FakeRedis()
    monkeypatch.setenv("REDIS_URL", "redis://fake:1/0")
    monkeypatch.setattr("services.cli.chat.connect", lambda _: redis)
    for name in (MEMORY, CHAT):
        redis.set(alive_key(name), "host:1:1")
    pipeline = Pipeline(redis)
    pipeline.start()
    yield pipeline
    pipeline.ended.set()
    pipeline.join()


def test_a_command_of_the_chat_is_not_sent(pipeline: Pipeline) -> None:
    """Given commands, known and unknown, and text that begins with a slash, I expect hints, and the text alone sent."""
    typed = "/help\n／HELP\n/foo bar\n/\n/memories\n//memories\n///\nhello / there\n\n/Quit\nnever said\n"
    result = CliRunner().invoke(build_app(), ["chat"], input=typed)

    assert (result.exit_code, pipeline.contents) == (0, ["/memories", "//", "hello / there"])
    commands = "/memories lists the memories used for the last reply, /quit leaves, //text says /text."
    assert result.output.splitlines() == [
        f"  {commands}",
        f"  {commands}",
        f"  There is no command /foo. {commands}",
        f"  There is no command /. {commands}",
        "  none were used",
        "bot> got /memories",
        "bot> got //",
        "bot> got hello / there",
    ]


def test_a_rejected_message_says_why(pipeline: Pipeline) -> None:
    """Given a blank user, I expect the reason of the reject at once."""
    result = CliRunner().invoke(build_app(), ["chat", "--user", " "], input="hello\n")

    assert (result.exit_code, pipeline.contents) == (1, [])
    assert result.output == "  rejected: invalid_request: user_id: must not be blank\n"


def test_bytes_that_are_no_text_end_no_chat(pipeline: Pipeline) -> None:
    """Given bytes that are not UTF-8, I expect U+FFFD in their place, and the next line sent too."""
    result = CliRunner().invoke(build_app(), ["chat"], input=b"caf\xe9\nhello\n")

    assert (result.exit_code, pipeline.contents) == (0, ["caf\ufffd", "hello"])
