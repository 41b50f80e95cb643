"""Dramatiq's own log lines, from a real worker, with and without the filter.

The tests without it pin the wording of Dramatiq: when one fails, Dramatiq has changed it and the filter must follow.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries

from tasks.log_filter import DramatiqLogFilter, install_log_filter

SECRET = "my cat is called Tofu"


@pytest.fixture
def output() -> Iterator[tuple[io.StringIO, logging.Handler]]:
    """All that is logged at any level, as text, and the handler that writes it."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text, handler
    root.setLevel(level)
    root.removeHandler(handler)


class Refused(Exception):
    """An error that is expected."""


def serve_some() -> str:
    """Run a worker over messages that hold the secret: one returns, one crashes, one is refused. Its message ids."""
    broker = StubBroker(middleware=[Retries()], fail_fast_default=False)

    @dramatiq.actor(broker=broker, actor_name="returns", max_retries=0)
    def returns(text: str) -> str:
        return text

    @dramatiq.actor(broker=broker, actor_name="crashes", max_retries=1, min_backoff=1, max_backoff=1)
    def crashes(text: str) -> None:
        raise ZeroDivisionError

    @dramatiq.actor(broker=broker, actor_name="refuses", throws=Refused)
    def refuses(text: str) -> None:
        raise Refused

    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
    worker.start()
    message = returns.send(text=SECRET)
    crashes.send(SECRET)
    refuses.send(text=SECRET)
    broker.join("default", timeout=60_000)
    worker.stop()
    broker.close()
    return message.message_id


def test_dramatiq_logs_contents_by_itself(output: tuple[io.StringIO, logging.Handler]) -> None:
    """Given no filter, I expect the contents in the log: the filter is needed."""
    text, _ = output

    serve_some()

    assert SECRET in text.getvalue()


def test_dramatiq_warns_of_discarded_results_by_itself(output: tuple[io.StringIO, logging.Handler]) -> None:
    """Given no filter, I expect the warning that a value has been discarded."""
    text, _ = output

    serve_some()

    assert "the value has been discarded" in text.getvalue()


def test_no_content_is_logged(output: tuple[io.StringIO, logging.Handler]) -> None:
    """Given the filter, I expect no content in the log at any level, whether actors return, crash or refuse."""
    text, handler = output
    handler.addFilter(DramatiqLogFilter())

    serve_some()

    assert SECRET not in text.getvalue()


def test_no_discarded_result_is_warned_of(output: tuple[io.StringIO, logging.Handler]) -> None:
    """Given the filter, I expect no such warning: ResponsePublisher takes the results."""
    text, handler = output
    handler.addFilter(DramatiqLogFilter())

    serve_some()

    assert "discarded" not in text.getvalue()


def test_messages_are_named(output: tuple[io.StringIO, logging.Handler]) -> None:
    """Given the filter, I expect a message by its actor and id."""
    text, handler = output
    handler.addFilter(DramatiqLogFilter())

    message_id = serve_some()

    assert f"Received message returns {message_id}" in text.getvalue()


def test_a_crash_keeps_its_traceback(output: tuple[io.StringIO, logging.Handler]) -> None:
    """Given the filter, I expect the traceback of a crash in the log all the same."""
    text, handler = output
    handler.addFilter(DramatiqLogFilter())

    serve_some()

    assert "ZeroDivisionError" in text.getvalue()


def test_lines_of_other_loggers_are_unchanged(output: tuple[io.StringIO, logging.Handler]) -> None:
    """Given lines that Dramatiq did not write, I expect them unchanged, whatever their arguments are."""
    text, handler = output
    handler.addFilter(DramatiqLogFilter())

    logging.getLogger("elsewhere").info("%(name)s came", {"name": "Lin"})
    logging.getLogger("elsewhere").info("%s and %d", "Lin", 2)

    assert text.getvalue() == "Lin came\nLin and 2\n"


def test_a_message_in_any_form_is_named(output: tuple[io.StringIO, logging.Handler]) -> None:
    """Given a line with a message, as it was enqueued or as a worker has it, I expect its actor and id."""
    text, handler = output
    handler.addFilter(DramatiqLogFilter())
    message: dramatiq.Message[None] = dramatiq.Message("default", "returns", (SECRET,), {}, {})

    for form in (message, dramatiq.MessageProxy(message)):
        logging.getLogger("elsewhere").info("got %s", form)

    assert text.getvalue() == f"got returns {message.message_id}\n" * 2


def test_it_is_installed_on_every_handler_and_silences_the_pool() -> None:
    """Given two handlers, I expect the filter on both, and errors alone of psycopg's pool: it logs every attempt."""
    pool = logging.getLogger("psycopg.pool")
    level = pool.level
    handlers = [logging.NullHandler(), logging.NullHandler()]

    try:
        install_log_filter(handlers)
        assert [type(each) for handler in handlers for each in handler.filters] == [DramatiqLogFilter] * 2
        assert pool.level == logging.ERROR
    finally:
        pool.setLevel(level)
