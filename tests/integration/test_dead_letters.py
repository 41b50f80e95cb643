"""Dead letters: recorded with the reason, shown, replayed and dropped, by real workers on a real Valkey."""

from __future__ import annotations

import json
from collections.abc import Iterator

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import current_millis
from keepsake_client.errors import Unavailable
from typer.testing import CliRunner

from services.cli.app import build_app
from services.runtime.dead_letters import DeadLetter, RedisDeadLetters, record
from services.runtime.queues import QueueKeys
from tasks.broker import build_broker
from tasks.middleware.deliveries import DeliveryLimit
from tasks.middleware.retries import Retries, RetryPolicy
from tests.support import free_port, wait_until

SECRET = "my cat is called Tofu"
TWICE = RetryPolicy(max_age_s=60, min_backoff_ms=1, max_backoff_ms=2)


class Site:
    """One worker of the index queue on a database of its own, whose actor fails in the ways a test lists."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = redis.Redis.from_url(url)
        self.client.flushdb()
        self.broker = build_broker(url, [DeliveryLimit(self.client), Retries()])
        self.failures: list[Exception] = []
        self.ran: list[str] = []

        @dramatiq.actor(broker=self.broker, actor_name="memory.index", queue_name="index", retry=TWICE)
        def index(update: str) -> None:
            self.ran.append(update)
            if self.failures:
                raise self.failures.pop(0)

        self.index = index
        self.worker = dramatiq.Worker(self.broker, worker_timeout=300, worker_threads=1)
        self.worker.start()
        self.letters = RedisDeadLetters(self.client)

    def kill(self, *failures: Exception, count: int = 1) -> list[DeadLetter]:
        """The dead letters, once so many messages have failed."""
        self.failures = list(failures)
        for number in range(count):
            self.index.send(update=f"{SECRET} {number}")
        wait_until(lambda: self.quiet() and len(list(self.letters.all())) == count, description="the dead letters")
        return list(self.letters.all())

    def quiet(self) -> bool:
        assert isinstance(self.broker, RedisBroker)
        return bool(self.broker.do_qsize("index") == 0)

    def ltm(self, *arguments: str) -> tuple[int, str]:
        """Run `ltm dead`; its exit code and what it printed."""
        result = CliRunner().invoke(build_app(), ["dead", *arguments], env={"REDIS_URL": self.url, "BROKER_URL": ""})
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    def close(self) -> None:
        self.worker.stop()
        self.broker.close()
        self.client.flushdb()
        self.client.close()


@pytest.fixture
def site(valkey_url: str) -> Iterator[Site]:
    site = Site(valkey_url.removesuffix("/0") + "/5")
    yield site
    site.close()


# What is kept


def test_a_dead_letter_keeps_what_it_was_about(site: Site) -> None:
    """Given a message that failed for good, I expect its queue, actor and payload."""
    (letter,) = site.kill(ValueError(SECRET))

    assert (letter.queue, letter.actor, letter.payload) == (
        "index",
        "memory.index",
        {"args": [], "update": f"{SECRET} 0"},
    )


def test_a_dead_letter_says_why_and_where(site: Site) -> None:
    """Given a crash, I expect its kind and its whole traceback: Dramatiq by itself keeps neither of the last try."""
    (letter,) = site.kill(ValueError("no such thing"))

    assert letter.error == "internal: ValueError"
    assert "ValueError: no such thing" in letter.traceback
    assert "raise self.failures.pop(0)" in letter.traceback


def test_a_dead_letter_counts_its_tries(site: Site) -> None:
    """Given a message that failed twice transiently and then permanently, I expect three attempts."""
    (letter,) = site.kill(Unavailable("down"), Unavailable("down"), ValueError("no"))

    assert (letter.tries, letter.error) == (3, "internal: ValueError")


def test_an_unknown_actor_is_the_reason(site: Site) -> None:
    """Given an actor that is not declared, I expect the error that Dramatiq has for it: it never ran."""
    site.broker.enqueue(dramatiq.Message("index", "unknown", (), {}, {}))
    wait_until(lambda: list(site.letters.all()), description="the dead letter")

    (letter,) = site.letters.all()

    assert (letter.actor, letter.error, letter.tries) == ("unknown", "internal: ActorNotFound", 0)


def test_a_reason_is_not_recorded_for_a_message_of_another_process(site: Site) -> None:
    """Given a message that this process does not hold any more, I expect no copy of it to be left behind."""
    (letter,) = site.kill(ValueError())
    assert site.letters.drop(letter)

    record(site.client, QueueKeys("index"), "x", letter.id, letter.raw)

    assert site.client.exists("dramatiq:index.msgs", "dramatiq:index.XQ.msgs") == 0


# Replay


def test_a_replayed_message_runs_as_if_for_the_first_time(site: Site) -> None:
    """Given a dead letter whose cause is gone, I expect its replay to do the work, and nothing to be left of it."""
    (letter,) = site.kill(ValueError())

    assert site.letters.replay(letter)
    wait_until(lambda: len(site.ran) == 2 and site.quiet(), description="the second run")

    assert site.ran == [f"{SECRET} 0"] * 2
    assert list(site.letters.all()) == []
    assert set(site.client.scan_iter()) <= {b"dramatiq:__heartbeats__"}


def test_a_replayed_message_starts_with_no_attempts(site: Site) -> None:
    """Given a replay that fails transiently, I expect it retried: its past does not count."""
    (letter,) = site.kill(Unavailable("down"), ValueError())
    site.failures = [Unavailable("down"), Unavailable("down"), ValueError()]

    site.letters.replay(letter)
    wait_until(
        lambda: not site.failures and site.quiet() and list(site.letters.all()), description="the second dead letter"
    )

    assert next(site.letters.all()).tries == 3


def test_a_letter_is_replayed_once(site: Site) -> None:
    """Given two replays of one letter, I expect the second to report that it is gone."""
    (letter,) = site.kill(ValueError())

    assert [site.letters.replay(letter), site.letters.replay(letter)] == [True, False]


def test_what_is_no_message_cannot_be_replayed(site: Site) -> None:
    """Given garbage among the dead letters, I expect it listed, not replayed, and dropped when asked to."""
    site.client.zadd("dramatiq:index.XQ", {"bad": current_millis()})
    site.client.hset("dramatiq:index.XQ.msgs", "bad", b"garbage")

    (letter,) = site.letters.all()

    assert letter.error == "undecodable: it is no actor message"
    assert (site.letters.replay(letter), site.letters.drop(letter), list(site.letters.all())) == (False, True, [])


# The commands


def test_the_list_names_everything_but_content(site: Site) -> None:
    """Given dead letters, I expect a line each with id, queue, actor, time, tries and reason, and no content."""
    (letter,) = site.kill(ValueError(SECRET))

    code, output = site.ltm("list")

    assert code == 0
    for part in (letter.id, "index", "memory.index", "tries 1", "internal: ValueError"):
        assert part in output
    assert SECRET not in output


def test_an_empty_list_says_so(site: Site) -> None:
    """Given no dead letters, I expect a line and success."""
    assert site.ltm("list") == (0, "no dead letters\n")


def test_the_list_of_one_queue(site: Site) -> None:
    """Given dead letters of another queue, I expect them left out."""
    site.kill(ValueError())

    assert site.ltm("list", "--queue", "writes") == (0, "no dead letters\n")


def test_an_unknown_queue_is_a_wrong_argument(site: Site) -> None:
    """Given an unknown queue, I expect an error that names it."""
    code, output = site.ltm("list", "--queue", "bulk")

    assert code == 2
    assert "there is no queue 'bulk'" in output


def test_one_is_shown_whole(site: Site) -> None:
    """Given the beginning of an id, I expect payload and traceback of that one."""
    (letter,) = site.kill(ValueError("no such thing"))

    code, output = site.ltm("show", letter.id[:8])

    assert code == 0
    assert json.dumps(f"{SECRET} 0") in output
    assert "ValueError: no such thing" in output


def test_an_unknown_id_is_an_error(site: Site) -> None:
    """Given an id that no letter has, I expect an error that says so."""
    with pytest.raises(Exception, match="no dead letters have an id that begins with 'x'"):
        site.ltm("show", "x")


def test_all_are_replayed(site: Site) -> None:
    """Given several dead letters, I expect one command to run them all again."""
    site.kill(*[ValueError() for _ in range(3)], count=3)

    assert site.ltm("replay", "--all") == (0, "replayed 3\n")
    wait_until(lambda: len(site.ran) == 6 and site.quiet(), description="the second runs")
    assert site.ltm("list") == (0, "no dead letters\n")


def test_one_is_dropped(site: Site) -> None:
    """Given an id, I expect that letter gone and the others kept."""
    first, second = site.kill(ValueError(), ValueError(), count=2)

    assert site.ltm("drop", first.id) == (0, "dropped 1\n")
    assert [letter.id for letter in site.letters.all()] == [second.id]


@pytest.mark.parametrize("arguments", [["replay"], ["drop"], ["replay", "x", "--all"]])
def test_replay_and_drop_need_an_id_or_all(site: Site, arguments: list[str]) -> None:
    """Given neither an id nor --all, or both, I expect a usage error."""
    code, output = site.ltm(*arguments)

    assert code == 2
    assert "give an ID, or --all" in output


def test_a_rabbitmq_that_is_down_is_told(site: Site) -> None:
    """Given queues on a RabbitMQ that does not answer, I expect one line, without its password."""
    address = f"127.0.0.1:{free_port()}"
    environment = {"REDIS_URL": site.url, "BROKER_URL": f"amqp://me:secret@{address}"}
    result = CliRunner().invoke(build_app(), ["dead", "list"], env=environment)

    assert str(result.exception).startswith(f"amqp://me:***@{address}: ConnectionRefusedError: ")
