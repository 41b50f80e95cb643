"""The log: what happened, to whom and how long it took, and never what anybody said."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
import structlog
from keepsake_client.errors import InvalidMessage, RequestFailed, Unavailable

from services.runtime.logging import configure_logging, redact
from services.runtime.settings import load_settings

SECRET = "my cat is called Tofu"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Whatever was set up before comes back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks, config = (sys.excepthook, threading.excepthook), structlog.get_config()
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.excepthook, threading.excepthook = hooks
    structlog.configure(**config)


def configure(**settings: Any) -> None:
    configure_logging(load_settings(**settings), "test")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """All that has been logged since the last call."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_user_id_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """Given no setting, I expect user ids as they are: an operator looks for them."""
    configure()

    structlog.get_logger().info("responded", user_id="anna")

    assert lines(capsys)[0]["user_id"] == "anna"


def test_a_user_id_may_be_hashed(capsys: pytest.CaptureFixture[str]) -> None:
    """Given LTM_LOG_USER_IDS=false, I expect one and the same hash for a user, another for another."""
    configure(ltm_log_user_ids=False)

    for user_id in ("anna", "anna", "anna ", "\ud800"):
        structlog.get_logger().info("responded", user_id=user_id)

    logged = [line["user_id"] for line in lines(capsys)]
    assert logged[0] == logged[1]
    assert len(set(logged)) == 3
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in logged)


def test_the_hash_depends_on_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    """Given different keys, or none, I expect different hashes: without the key nobody can check a guessed id."""
    for key in (None, "one", "two", "x" * 1_000):
        configure(ltm_log_user_ids=False, ltm_log_key=key)
        structlog.get_logger().info("responded", user_id="anna")

    assert len({line["user_id"] for line in lines(capsys)}) == 4


def test_a_standard_loggers_user_id_is_hashed_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Given AsyncClient's kind of line, I expect its user_id as a field, and hashed like any other."""
    configure(ltm_log_user_ids=False)

    structlog.get_logger().info("one", user_id="anna")
    logging.getLogger("keepsake_client.async_client").warning("two", extra={"user_id": "anna"})

    ours, theirs = lines(capsys)
    assert (theirs["event"], theirs["user_id"]) == ("two", ours["user_id"])


def fail_in_a_pipeline() -> None:
    error = redis.ResponseError("OOM command not allowed when used memory > 'maxmemory'.")
    pipeline: Any = redis.Redis().pipeline()
    pipeline.annotate_exception(error, 1, ["RPUSH", "memory:conversation:u1", SECRET])
    raise error


def fail_by_an_unknown_command() -> None:
    raise redis.ResponseError(f"unknown command 'BLMOVE', with args beginning with: '{SECRET}'")


def fail_on_a_detail() -> None:
    raise psycopg.errors.UniqueViolation(f"duplicate key\nDETAIL:  Key (data)=({SECRET}) already exists.")


def fail_on_a_chain() -> None:
    raise ValueError(SECRET) from KeyError(SECRET)


def fail_in_a_group() -> None:
    raise ExceptionGroup(SECRET, [ValueError(SECRET), InvalidMessage(f"data.{SECRET}: is unknown")])


def fail_with_a_response() -> None:
    raise RequestFailed(f"internal: {SECRET}")


FAILURES = [
    fail_in_a_pipeline,
    fail_by_an_unknown_command,
    fail_on_a_detail,
    fail_on_a_chain,
    fail_in_a_group,
    fail_with_a_response,
]


@pytest.mark.parametrize("fail", FAILURES)
@pytest.mark.parametrize("through", ["structlog", "logging"])
def test_a_traceback_holds_no_content(capsys: pytest.CaptureFixture[str], fail: Any, through: str) -> None:
    """Given an error that quotes what it was given, I expect its traceback and its type without its words."""
    configure()
    try:
        fail()
    except Exception as error:
        if through == "structlog":
            structlog.get_logger().exception("failed")
        else:
            logging.getLogger("dramatiq.worker").error("failed", exc_info=True)
        kind = type(error).__name__

    (line,) = lines(capsys)
    assert SECRET not in json.dumps(line)
    assert kind in line["exception"]
    assert fail.__name__ in line["exception"]


def test_a_chain_is_told_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    """Given an error raised from another, I expect the cause before it, as Python writes it."""
    configure()
    try:
        fail_on_a_chain()
    except ValueError:
        structlog.get_logger().exception("failed")

    text = lines(capsys)[0]["exception"]
    assert 0 < text.index("KeyError\n") < text.index("direct cause") < text.rindex("ValueError")


def test_debug_shows_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """Given the level debug, I expect the words too: whoever sets it wants them."""
    configure(ltm_log_level="debug")
    try:
        fail_on_a_detail()
    except psycopg.Error:
        structlog.get_logger().exception("failed")

    assert SECRET in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mem0.memory.main", "asyncio", "openai._base_client"])
def test_libraries_that_quote_contents_are_located_instead(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Given a line of Mem0 with what it could not store, I expect where it was written and not what it says."""
    configure()

    logging.getLogger(name).error(f"Entity upsert failed for '{SECRET}'")

    (line,) = lines(capsys)
    assert (line["event"], line["level"]) == ("library_log", "error")
    assert line["at"].startswith(f"{name} test_logs.py:")
    assert SECRET not in json.dumps(line)


def test_a_warning_is_a_line_without_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Given a warning, pydantic's for one, that quotes a value, I expect its place and kind."""
    configure()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn(f"Expected `int`, input_value={SECRET!r}", UserWarning, stacklevel=1)

    (line,) = lines(capsys)
    assert line["event"].endswith(": UserWarning")
    assert SECRET not in json.dumps(line)


def test_a_crash_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Given what ends the process, I expect one line in the log, without the error's words."""
    configure()
    try:
        fail_on_a_chain()
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)

    (line,) = lines(capsys)
    assert (line["event"], line["level"]) == ("crashed", "critical")
    assert SECRET not in json.dumps(line)


def test_a_crashed_thread_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Given what ends a thread, I expect one line that names it, without the error's words."""
    configure()

    thread = threading.Thread(target=fail_on_a_chain, name="keeper")
    thread.start()
    thread.join()

    (line,) = lines(capsys)
    assert (line["event"], line["thread"]) == ("thread_crashed", "keeper")
    assert SECRET not in json.dumps(line)


def test_a_forgotten_task_is_a_line_without_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Given a task whose error nobody took, I expect asyncio's report of it without the error's words."""
    configure()

    async def forget() -> None:
        loop = asyncio.get_running_loop()
        loop.call_exception_handler({"message": "lost", "exception": ValueError(SECRET), "future": SECRET})

    asyncio.run(forget())

    (line,) = lines(capsys)
    assert SECRET not in json.dumps(line)
    assert "ValueError" in line["exception"]


TOLD: list[tuple[BaseException, str]] = [
    (redis.ConnectionError("Error 111 connecting to h:1. Refused."), "ConnectionError: Error 111 connecting to h:1."),
    (redis.exceptions.NoPermissionError("NOPERM may not run 'get'"), "NoPermissionError: NOPERM may not run 'get'"),
    (redis.DataError(SECRET), "DataError"),
    (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    (Unavailable("PostgreSQL does not answer"), "Unavailable: PostgreSQL does not answer"),
    (RuntimeError("redis://u:hush@h/0 is away"), "RuntimeError: redis://u:***@h/0 is away"),
    (RuntimeError("two\nlines"), "RuntimeError: two lines"),
    (ValueError(SECRET), "ValueError"),
]


@pytest.mark.parametrize(("error", "expected"), TOLD, ids=[str(number) for number in range(len(TOLD))])
def test_an_error_is_told_in_one_line(error: BaseException, expected: str) -> None:
    """Given an error, I expect its type, and its words where they are about servers and not about messages."""
    line = redact(error)

    assert line.startswith(expected)
    assert (SECRET in line, "hush" in line, "\n" in line) == (False, False, False)


def test_what_failed_in_a_pipeline_is_told_by_the_servers_words() -> None:
    """Given redis-py's error with a command before the server's words, I expect those words alone."""
    with pytest.raises(redis.ResponseError) as failed:
        fail_in_a_pipeline()

    assert redact(failed.value) == "ResponseError: OOM command not allowed when used memory > 'maxmemory'."
