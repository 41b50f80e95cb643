"""Extraction where calls fail: smaller batches, messages that are set aside, the breaker, and the budget."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from threading import Barrier
from typing import Any

import pytest
import structlog
from psycopg_pool import ConnectionPool

from services.long_term_memory.extraction.batch import Batch, Extraction, Usage
from services.long_term_memory.extraction.budget import Budget, Reservation, settle
from services.long_term_memory.extraction.service import ExtractionService, Outcome
from services.long_term_memory.extraction.state import UNUSABLE_IN_A_ROW
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.pending import BATCH_MESSAGES
from services.long_term_memory.postgres.store import MemoryStore
from services.runtime.errors import ProviderRefuses, ProviderWaits, UnusableAnswer
from tests.integration.scripted_finder import (
    COST,
    LEASE_S,
    USAGE,
    ScriptedFinder,
    facts_of,
    pass_time,
    run_all,
    run_due,
    said,
    select,
)

PLENTY = Budget(10**9, 10**9)
BAD = "not to be read"


@pytest.fixture
def chat(mem0: Mem0Memory, store: MemoryStore) -> MemoryService:
    """The service where an LLM is configured."""
    return MemoryService(mem0, store, extract=True)


@pytest.fixture
def finder() -> ScriptedFinder:
    return ScriptedFinder()


class Start:
    """Starts extraction as a process does."""

    def __init__(self, pool: ConnectionPool, finder: ScriptedFinder, chat: MemoryService) -> None:
        self._of = pool, finder, chat.writer.embed

    def __call__(self, budget: Budget = PLENTY, capacity: int = 8) -> ExtractionService:
        return ExtractionService(*self._of, budget, capacity=capacity, call_s=60)


@pytest.fixture
def start(pool: ConnectionPool, finder: ScriptedFinder, chat: MemoryService) -> Start:
    return Start(pool, finder, chat)


@pytest.fixture
def extracting(start: Start) -> ExtractionService:
    """Extraction with a budget that is never used up."""
    return start()


def talk(chat: MemoryService, *users: str, count: int = BATCH_MESSAGES, bad: int | None = None) -> None:
    """Have users say so many messages each: by default a batch that is due at once."""
    for user in users:
        for number in range(count):
            content = BAD if number == bad else f"message {number}"
            chat.index(said(content, user, timestamp=1_712_345_678 + number))


def refuse_bad(finder: ScriptedFinder, error: Exception) -> None:
    """Have each batch fail that has a bad message, and the others be answered."""

    def answer(batch: Batch) -> Extraction:
        if any(message.content == BAD for message in batch.messages):
            raise error
        return finder.facts_of_all(batch)

    finder.answer = answer


def fail_with(finder: ScriptedFinder, error: Exception) -> None:
    def answer(_: Batch) -> Extraction:
        raise error

    finder.answer = answer


def state_of(pool: ConnectionPool) -> list[Any]:
    return select(pool, "SELECT state, reason FROM extraction_state")


def unusable() -> UnusableAnswer:
    return UnusableAnswer("no JSON", USAGE)


# Smaller batches


def test_a_message_that_cannot_be_read_is_set_aside(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given one message on which no answer is of use, I expect ever smaller batches until it is set aside with the
    reason, counted, and the facts of all others."""
    talk(chat, "u1", bad=3)
    refuse_bad(finder, unusable())

    outcomes = run_all(extracting, pool)

    assert finder.sizes == [20, 10, 5, 2, 4, 2, 1, 2, 1, 1, 1, 16]
    assert len(facts_of(pool)) == BATCH_MESSAGES - 1
    aside = "SELECT content, set_aside, tries FROM to_extract JOIN memories ON number = memory_number"
    assert select(pool, aside) == [(BAD, "no JSON", 3)]
    assert sum(outcome.messages_set_aside for outcome in outcomes) == 1
    assert select(pool, "SELECT FROM extraction") == []


def test_a_smaller_batch_outlives_the_process(
    chat: MemoryService, start: Start, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given an unusable answer and another process after it, I expect that one to read half of the batch."""
    talk(chat, "u1")
    fail_with(finder, unusable())
    run_due(start())

    finder.answer = finder.facts_of_all
    run_due(start())

    assert finder.sizes == [20, 10]


def test_what_is_left_of_a_smaller_batch_is_due_at_once(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a batch that was halved, I expect the other half to be read without waiting for silence."""
    talk(chat, "u1")
    fail_with(finder, unusable())
    run_due(extracting)
    finder.answer = finder.facts_of_all

    run_due(extracting)
    run_due(extracting)

    assert (finder.sizes, len(facts_of(pool))) == ([20, 10, 10], 20)


def test_a_batch_that_ends_the_process_is_made_smaller(
    chat: MemoryService, start: Start, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a message on which the process ends each time, I expect it to be set aside, and the others read."""

    def end(batch: Batch) -> Extraction:
        if any(message.content == BAD for message in batch.messages):
            raise SystemExit
        return finder.facts_of_all(batch)

    talk(chat, "u1", count=4, bad=0)
    finder.answer = end
    for _ in range(40):
        pass_time(pool, LEASE_S * 4)
        for lease in start().tick():
            try:
                start().extract(*lease)
            except SystemExit:
                continue

    assert len(facts_of(pool)) == 3
    ((reason,),) = select(pool, "SELECT set_aside FROM to_extract")
    assert "ended" in reason
    assert len(finder.batches) < 20


def test_the_cost_of_unusable_answers_is_counted(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given an unusable answer, I expect its tokens in the outcome and the usage, and nothing reserved."""
    talk(chat, "u1")
    fail_with(finder, unusable())

    assert run_due(extracting) == [Outcome(calls=1, tokens=COST, failed=1)]
    assert (
        select(pool, "SELECT calls, prompt_tokens + completion_tokens, reserved FROM extraction_usage")
        == [(1, COST, 0)] * 2
    )


def test_a_provider_that_answers_rubbish_is_waited_for(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given unusable answers to all, I expect all to wait after some, with nothing set aside."""
    talk(chat, *(f"u{number}" for number in range(4)))
    fail_with(finder, unusable())

    while not select(pool, "SELECT FROM extraction_state WHERE state = 'waiting'"):
        run_due(extracting)

    assert len(finder.batches) == UNUSABLE_IN_A_ROW
    assert (extracting.tick(), select(pool, "SELECT FROM to_extract WHERE set_aside IS NOT NULL")) == ([], [])


# The provider's state


def test_all_wait_for_a_provider_that_does_not_answer(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a time-out, I expect nothing to be leased for a while, then one owner to find out, another than the first,
    and all of them once it was answered."""
    talk(chat, "u1")
    fail_with(finder, ProviderWaits("no answer within 60 s"))
    assert run_due(extracting) == [Outcome(calls=1, failed=1)]
    talk(chat, "u2", "u3", "u4")

    assert (extracting.tick(), state_of(pool)) == ([], [("waiting", "no answer within 60 s")])
    pass_time(pool, 15)
    (lease,) = extracting.tick()
    assert extracting.tick() == []
    finder.answer = finder.facts_of_all
    extracting.extract(*lease)

    assert finder.batches[0].user_number != finder.batches[1].user_number
    assert (len(extracting.tick()), state_of(pool)) == (2, [("working", None)])


@pytest.mark.parametrize("may_be_paid", [True, False])
def test_a_call_that_was_given_up_may_be_paid_for(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool, may_be_paid: bool
) -> None:
    """Given a provider that is too slow for the time-out, I expect its calls to take what was reserved for them out of
    the budget; those that it did not begin take nothing."""
    talk(chat, "u1")
    fail_with(finder, ProviderWaits("no answer within 60 s", may_be_paid=may_be_paid))

    (outcome,) = run_due(extracting)

    tokens = finder.estimate_tokens(finder.batches[0]) if may_be_paid else 0
    assert outcome == Outcome(calls=1, tokens=tokens, failed=1)
    assert select(pool, "SELECT prompt_tokens, reserved FROM extraction_usage") == [(tokens, 0)] * 2


def test_a_call_over_midnight_is_of_the_day_on_which_it_began(pool: ConnectionPool) -> None:
    """Given a call that began yesterday, I expect what it took in yesterday's usage, and today's budget whole."""
    with pool.connection() as connection:
        today = Budget(1_000, 1_000).reserve(connection, 7, 400)
        assert isinstance(today, Reservation)
        began = replace(today, day=today.day - timedelta(days=1))
        connection.execute(
            "INSERT INTO extraction_usage SELECT day - 1, user_number, 0, 0, 0, reserved FROM extraction_usage"
        )
        settle(connection, began, Usage(300, 50))

    statement = "SELECT day = %s, calls, prompt_tokens + completion_tokens, reserved FROM extraction_usage ORDER BY day"
    with pool.connection() as connection:
        rows = connection.execute(statement, (began.day,)).fetchall()
    assert rows == [(True, 1, 350, 0)] * 2 + [(False, 0, 0, 400)] * 2


def test_failures_in_a_row_are_waited_for_longer(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given one failure after another, I expect twice the wait each time, up to ten minutes; the batch then smaller."""
    talk(chat, "u1")
    fail_with(finder, ProviderWaits("503"))
    waits = []
    for _ in range(8):
        run_due(extracting)
        ((seconds,),) = select(pool, "SELECT round(extract(epoch FROM waits_until - now()))::int FROM extraction_state")
        waits.append(seconds)
        pass_time(pool, LEASE_S * 4)

    assert waits == [10, 20, 40, 80, 160, 320, 600, 600]
    assert finder.sizes == [20, 20, 20, 10, 10, 10, 5, 5]


@pytest.mark.parametrize(("retry_after_s", "waits"), [(90.0, 90), (1.0, 10), (1e12, 3_600)])
def test_a_provider_is_left_alone_for_as_long_as_it_asks(
    chat: MemoryService,
    extracting: ExtractionService,
    finder: ScriptedFinder,
    pool: ConnectionPool,
    retry_after_s: float,
    waits: int,
) -> None:
    """Given a Retry-After, I expect it to be kept, though not below the backoff, and not for ever."""
    talk(chat, "u1")
    fail_with(finder, ProviderWaits("429", retry_after_s))

    run_due(extracting)

    seconds = "SELECT round(extract(epoch FROM waits_until - now()))::int FROM extraction_state"
    assert select(pool, seconds) == [(waits,)]


def test_a_failure_costs_no_reservation(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given calls that were not served, I expect them counted, and no tokens."""
    talk(chat, "u1")
    fail_with(finder, ProviderWaits("503"))

    run_due(extracting)

    assert select(pool, "SELECT calls, prompt_tokens, reserved FROM extraction_usage") == [(1, 0, 0)] * 2


def test_two_refusals_of_different_batches_stop_everything(
    chat: MemoryService, start: Start, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given two owners whose batches are refused, I expect everything to be stopped, said once, and nothing lost; a
    process that starts tries again."""
    talk(chat, "u1", "u2", "u3")
    fail_with(finder, ProviderRefuses("400: no such parameter", 400))
    extracting = start()
    with structlog.testing.capture_logs() as logs:
        for _ in range(5):
            run_due(extracting)

    assert (len(finder.batches), state_of(pool)) == (2, [("stopped", "400: no such parameter")])
    assert [log["event"] for log in logs].count("extraction_stopped") == 1
    pass_time(pool, 100_000)
    assert extracting.tick() == []

    finder.answer = finder.facts_of_all
    run_all(start(), pool)
    assert len(facts_of(pool)) == 3 * BATCH_MESSAGES


@pytest.mark.parametrize(("status", "stops"), [(401, True), (404, True), (400, False), (403, False)])
def test_a_second_refusal_of_one_batch(
    chat: MemoryService,
    extracting: ExtractionService,
    finder: ScriptedFinder,
    pool: ConnectionPool,
    status: int,
    stops: bool,
) -> None:
    """Given one owner whose batch is refused twice, I expect a stop where the status is about the key or the model,
    and else a smaller batch."""
    talk(chat, "u1")
    fail_with(finder, ProviderRefuses(str(status), status))

    run_due(extracting)
    assert extracting.tick() == []
    pass_time(pool, 100)
    run_due(extracting)

    assert (state_of(pool)[0][0] == "stopped") == stops
    assert finder.sizes == ([20, 20] if stops else [20, 10])


def test_a_batch_that_alone_is_refused_stops_nothing(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given one message that the provider refuses, and others that it serves, I expect that one set aside alone."""
    talk(chat, "u1", bad=7)
    talk(chat, "u2")
    refuse_bad(finder, ProviderRefuses("403: content policy", 403))

    run_all(extracting, pool)

    assert len(facts_of(pool)) == 2 * BATCH_MESSAGES - 1
    assert select(pool, "SELECT set_aside FROM to_extract") == [("403: content policy",)]
    assert state_of(pool) == [("working", None)]


def test_nothing_is_read_while_it_is_paused(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a pause, before and after a lease was taken, I expect no call, and all of it read after it."""
    talk(chat, "u1")
    (lease,) = extracting.tick()
    select(pool, "INSERT INTO extraction_state (paused) VALUES (true) RETURNING 1")

    assert extracting.extract(*lease) == Outcome()
    assert extracting.tick() == []
    select(pool, "UPDATE extraction_state SET paused = false RETURNING 1")
    run_due(extracting)

    assert finder.sizes == [BATCH_MESSAGES]


# The budget


def test_a_user_over_the_budget_waits_alone(
    chat: MemoryService, start: Start, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a user who has used up the day's tokens, I expect others to be read, and that one the next day."""
    extracting = start(Budget(10**9, COST))
    talk(chat, "u1", count=2 * BATCH_MESSAGES)
    talk(chat, "u2")
    for _ in range(3):
        run_due(extracting)
    assert [len(facts_of(pool)), *finder.sizes] == [40, 20, 20]

    select(pool, "UPDATE extraction_usage SET day = day - 1 RETURNING 1")
    pass_time(pool, 3_600)
    run_due(extracting)

    assert len(facts_of(pool)) == 60


def test_the_characters_of_a_user_share_one_budget(
    chat: MemoryService, start: Start, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a user who talks with two characters, and tokens for one call, I expect one of the two to be read, and the
    other the next day."""
    for agent in ("luna", "sol"):
        for number in range(BATCH_MESSAGES):
            chat.index(said(f"to {agent} {number}", "u1", timestamp=1_712_345_678 + number, agent_id=agent))
    extracting = start(Budget(10**9, COST))

    run_due(extracting)
    assert len(facts_of(pool)) == BATCH_MESSAGES

    select(pool, "UPDATE extraction_usage SET day = day - 1 RETURNING 1")
    pass_time(pool, 3_600)
    run_due(extracting)
    assert len(facts_of(pool)) == 2 * BATCH_MESSAGES


def test_all_wait_when_the_budget_of_all_is_used_up(
    chat: MemoryService, start: Start, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a budget for one call, I expect the owner to be read who waits for the longest, and the other the next
    day."""
    talk(chat, "u2", "u1")
    extracting = start(Budget(COST, COST), capacity=1)
    for _ in range(3):
        run_due(extracting)
    assert [batch.owner.user for batch in finder.batches] == ["u2"]
    assert (state_of(pool), extracting.tick()) == ([("over_budget", None)], [])

    select(pool, "UPDATE extraction_usage SET day = day - 1 RETURNING 1")
    pass_time(pool, 100)
    run_due(extracting)
    assert [batch.owner.user for batch in finder.batches] == ["u2", "u1"]
    assert state_of(pool) == [("working", None)]


def test_calls_at_the_same_time_share_the_budget(pool: ConnectionPool) -> None:
    """Given eight calls at once and a budget for five, I expect five reservations, and room again once one has cost
    less."""
    budget, ready = Budget(500, 500), Barrier(8)

    def reserve(owner: int) -> Reservation | str:
        ready.wait(30)
        with pool.connection() as connection, connection.transaction():
            return budget.reserve(connection, owner, 100)

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(reserve, range(1, 9)))

    reserved = [outcome for outcome in outcomes if isinstance(outcome, Reservation)]
    assert (len(reserved), outcomes.count("all")) == (5, 3)
    with pool.connection() as connection, connection.transaction():
        settle(connection, reserved[0], None)
        assert isinstance(budget.reserve(connection, 9, 100), Reservation)


def test_a_message_that_no_day_has_tokens_for_is_set_aside(
    chat: MemoryService, start: Start, finder: ScriptedFinder, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a message that alone takes more than a day has, I expect it set aside, and what is behind it read."""
    monkeypatch.setattr(finder, "estimate_tokens", lambda batch: sum(message.tokens for message in batch.messages))
    chat.index(said("word " * 10_000))
    talk(chat, "u1", count=3)

    run_all(start(Budget(10**9, 5_000)), pool)

    assert (finder.sizes, len(facts_of(pool))) == ([3], 3)
    assert select(pool, "SELECT set_aside FROM to_extract") == [("it takes more tokens than a day has",)]


def test_a_budget_of_nothing_loses_nothing(
    chat: MemoryService, start: Start, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a budget that is too small for any call, I expect none, and all messages to wait for a larger one."""
    talk(chat, "u1")
    none = start(Budget(0, 0))
    for _ in range(10):
        run_due(none)
        pass_time(pool, LEASE_S * 4)
    assert (finder.batches, select(pool, "SELECT count(*) FROM to_extract WHERE set_aside IS NULL")) == ([], [(20,)])

    run_all(start(), pool)
    assert len(facts_of(pool)) == BATCH_MESSAGES
