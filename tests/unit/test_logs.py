"""The log: events with their users and times, and never contents or secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import warnings
from typing import Any

import psycopg
import pytest
import redis
import structlog
from keepsake_client.errors import InvalidMessage, RequestFailed, Unavailable

from services.runtime.logging import configure_logging, redact
from services.runtime.settings import load_settings

SECRET = "my cat is called Tofu"


def configure(**settings: Any) -> None:
    configure_logging(load_settings(**settings), "test")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The lines that were logged since the last call."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_user_id_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """Given no setting, I expect user ids unchanged: operators search for them."""
    configure()

    structlog.get_logger().info("responded", user_id="anna")

    assert lines(capsys)[0]["user_id"] == "anna"


def test_a_user_id_may_be_hashed(capsys: pytest.CaptureFixture[str]) -> None:
    """Given LTM_LOG_USER_IDS=false, I expect the same hash for the same user, and another for another."""
    configure(ltm_log_user_ids=False)

    for user_id in ("anna", "anna", "anna ", "\ud800"):
        structlog.get_logger().info("responded", user_id=user_id)

    logged = [line["user_id"] for line in lines(capsys)]
    assert logged[0] == logged[1]
    assert len(set(logged)) == 3
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in logged)


def test_the_hash_depends_on_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    """Given different keys, or none, I expect different hashes: a guessed id cannot be verified without the key."""
    for key in (None, "one", "two", "x" * 1_000):
        configure(ltm_log_user_ids=False, ltm_log_key=key)
        structlog.get_logger().info("responded", user_id="anna")

    assert len({line["user_id"] for line in lines(capsys)}) == 4


def test_a_standard_loggers_user_id_is_hashed_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Given a line as the client library logs it, I expect its user_id as a field, hashed like any other."""
    configure(ltm_log_user_ids=False)

    structlog.get_logger().info("one", user_id="anna")
    logging.getLogger("keepsake_client.async_client").warning("two", extra={"user_id": "anna"})

    structured, standard = lines(capsys)
    assert (standard["event"], standard["user_id"]) == ("two", structured["user_id"])


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
def test_a_traceback_is_redacted(capsys: pytest.CaptureFixture[str], fail: Any, through: str) -> None:
    """Given an error that quotes its arguments, I expect its traceback and its type without its message."""
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


def test_a_chain_of_errors_is_logged_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    """Given an error raised from another, I expect the cause before it, as Python writes it."""
    configure()
    try:
        fail_on_a_chain()
    except ValueError:
        structlog.get_logger().exception("failed")

    text = lines(capsys)[0]["exception"]
    assert 0 < text.index("KeyError\n") < text.index("direct cause") < text.rindex("ValueError")


def test_debug_shows_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """Given the level debug, I expect the message too: that is its purpose."""
    configure(ltm_log_level="debug")
    try:
        fail_on_a_detail()
    except psycopg.Error:
        structlog.get_logger().exception("failed")

    assert SECRET in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mem0.memory.main", "asyncio", "openai._base_client"])
def test_a_verbose_library_is_logged_by_its_place(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Given a line of Mem0 with what it could not store, I expect the place that wrote it, and not its text."""
    configure()

    logging.getLogger(name).error(f"Entity upsert failed for '{SECRET}'")

    (line,) = lines(capsys)
    assert (line["event"], line["level"]) == ("library_log", "error")
    assert line["at"].startswith(f"{name} test_logs.py:")
    assert SECRET not in json.dumps(line)


def test_a_warning_is_logged_without_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    """Given a warning that quotes a value, as pydantic's do, I expect its place and category."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure()
        warnings.warn(f"Expected `int`, input_value={SECRET!r}", UserWarning, stacklevel=1)

    (line,) = lines(capsys)
    assert line["event"].endswith(": UserWarning")
    assert SECRET not in json.dumps(line)


def test_an_uncaught_exception_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """Given an exception that ends the process, I expect one line, without the error's message."""
    configure()
    try:
        fail_on_a_chain()
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)

    (line,) = lines(capsys)
    assert (line["event"], line["level"]) == ("crashed", "critical")
    assert SECRET not in json.dumps(line)


def test_an_uncaught_exception_of_a_thread_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """Given an exception that ends a thread, I expect one line that names it, without the error's message."""
    configure()

    thread = threading.Thread(target=fail_on_a_chain, name="maintenance")
    thread.start()
    thread.join()

    (line,) = lines(capsys)
    assert (line["event"], line["thread"]) == ("thread_crashed", "maintenance")
    assert SECRET not in json.dumps(line)


def test_the_error_of_a_task_that_was_not_awaited_is_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    """Given a task whose error was never retrieved, I expect asyncio's report of it without the error's message."""
    configure()

    async def report() -> None:
        loop = asyncio.get_running_loop()
        loop.call_exception_handler({"message": "lost", "exception": ValueError(SECRET), "future": SECRET})

    asyncio.run(report())

    (line,) = lines(capsys)
    assert SECRET not in json.dumps(line)
    assert "ValueError" in line["exception"]


REDACTED: list[tuple[BaseException, str]] = [
    (redis.ConnectionError("Error 111 connecting to h:1. Refused."), "ConnectionError: Error 111 connecting to h:1."),
    (redis.exceptions.NoPermissionError("NOPERM may not run 'get'"), "NoPermissionError: NOPERM may not run 'get'"),
    (redis.DataError(SECRET), "DataError"),
    (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    (Unavailable("PostgreSQL does not answer"), "Unavailable: PostgreSQL does not answer"),
    (RuntimeError("redis://u:hush@h/0 is away"), "RuntimeError: redis://u:***@h/0 is away"),
    (RuntimeError("two\nlines"), "RuntimeError: two lines"),
    (InvalidMessage(f"data.{SECRET}: is unknown"), "InvalidMessage: invalid_request"),
    (ValueError(SECRET), "ValueError"),
]


@pytest.mark.parametrize(("error", "expected"), REDACTED, ids=[str(number) for number in range(len(REDACTED))])
def test_redacting_an_error_leaves_one_line(error: BaseException, expected: str) -> None:
    """Given an error, I expect its type, and its message where that is about servers and not about contents."""
    line = redact(error)

    assert line.startswith(expected)
    assert (SECRET in line, "hush" in line, "\n" in line) == (False, False, False)


def test_redacting_a_pipelines_error_leaves_the_servers_message() -> None:
    """Given redis-py's error with a command before the server's message, I expect that message alone."""
    with pytest.raises(redis.ResponseError) as failed:
        fail_in_a_pipeline()

    assert redact(failed.value) == "ResponseError: OOM command not allowed when used memory > 'maxmemory'."


def test_a_redacted_message_is_bounded() -> None:
    """Given an error with a long message, I expect its first 500 characters."""
    assert redact(OSError("x" * 1_000)) == f"OSError: {'x' * 500}"


def test_a_redis_that_wants_a_password_is_told_in_our_words() -> None:
    """Given NOAUTH while a process runs, I expect the setting to change, in place of what redis-py says of HELLO."""
    error = redis.AuthenticationError("HELLO must be called with the client already authenticated, otherwise ...")

    assert redact(error) == "AuthenticationError: it asks for another user or password than its URL has (REDIS_URL)"


def test_an_error_without_a_message_is_its_type() -> None:
    """Given an error without a message, I expect its type alone, with no colon."""
    assert redact(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize("name", ["mem0", "openai", "httpx", "httpx2", "psycopg.pool"])
def test_the_informational_lines_of_libraries_are_left_out(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Given a line at info of a library that logs every request, I expect none, and its warnings kept."""
    configure()

    logging.getLogger(name).info("HTTP Request: POST https://host/v1 200")
    logging.getLogger(name).warning("a warning")

    assert [line["level"] for line in lines(capsys)] == ["warning"]


def test_the_members_of_a_group_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """Given a group of errors, I expect each member, redacted."""
    configure()
    try:
        fail_in_a_group()
    except ExceptionGroup:
        structlog.get_logger().exception("failed")

    text = lines(capsys)[0]["exception"]
    assert "---- 1 ----\nTraceback (most recent call last):\nValueError\n" in text
    assert "---- 2 ----\nTraceback (most recent call last):\nInvalidMessage: invalid_request" in text


def test_the_exit_of_a_thread_is_not_a_crash(capsys: pytest.CaptureFixture[str]) -> None:
    """Given a thread that ends by SystemExit, I expect nothing in the log."""
    configure()

    thread = threading.Thread(target=sys.exit)
    thread.start()
    thread.join()

    assert lines(capsys) == []


def test_mem0s_request_for_spacy_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """Given Mem0's warning that spaCy is missing, which is not used, I expect nothing in the log."""
    configure()

    logging.getLogger("mem0.utils.spacy_models").warning("spaCy is not installed")

    assert lines(capsys) == []


def test_every_line_names_its_process(capsys: pytest.CaptureFixture[str]) -> None:
    """Given lines of structlog and of the standard library, I expect the process and a UTC time in each."""
    configure()

    structlog.get_logger().info("one")
    logging.getLogger("dramatiq").info("two")

    logged = lines(capsys)
    assert [line["process"] for line in logged] == ["test", "test"]
    assert all(line["timestamp"].endswith("Z") for line in logged)
    assert "logger" not in logged[0]
    assert logged[1]["logger"] == "dramatiq"


def test_the_level_filters_both_kinds_of_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Given LTM_LOG_LEVEL=warning, I expect no line at info of structlog or of the standard library."""
    configure(ltm_log_level="warning")

    for log in (structlog.get_logger(), logging.getLogger("dramatiq")):
        log.info("one")
        log.warning("two")

    assert [line["event"] for line in lines(capsys)] == ["two", "two"]


def fail_while_handling(cause: str | None) -> None:
    try:
        dict[str, str]().pop(SECRET)
    except KeyError as error:
        if cause is None:
            raise ValueError(SECRET)  # noqa: B904 - the context is what is tested
        raise ValueError(SECRET) from (error if cause == "explicit" else None)


@pytest.mark.parametrize("cause", [None, "explicit", "suppressed"])
def test_the_context_of_an_error_is_logged_as_python_does(
    capsys: pytest.CaptureFixture[str], cause: str | None
) -> None:
    """Given an error raised while another was handled, I expect the other one, unless it was suppressed."""
    configure()
    try:
        fail_while_handling(cause)
    except ValueError:
        structlog.get_logger().exception("failed")

    text = lines(capsys)[0]["exception"]
    assert ("KeyError" in text) == (cause != "suppressed")
    assert ("During handling of the above exception" in text) == (cause is None)


def test_an_error_that_causes_itself_is_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Given a cycle of causes, I expect an end."""
    configure()
    one, two = ValueError("one"), KeyError("two")
    one.__cause__, two.__cause__ = two, one

    structlog.get_logger().error("failed", exc_info=(ValueError, one, None))

    text = lines(capsys)[0]["exception"]
    assert (text.count("ValueError"), text.count("KeyError")) == (1, 1)


def test_an_interrupt_is_not_logged_as_a_crash(capsys: pytest.CaptureFixture[str]) -> None:
    """Given Ctrl-C, I expect Python's own traceback in place of the event `crashed`."""
    configure()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)

    assert "crashed" not in capsys.readouterr().err
