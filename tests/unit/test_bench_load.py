"""The load of the benchmarks: when it arrives, what came of it, and what the figures mean."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from bench.harness.load import (
    STAGES,
    Outcome,
    at_least,
    correlate,
    highest_held,
    poisson,
    quantile,
    stage_table,
    summary,
)
from bench.harness.texts import Speech
from bench.resilience.soak import slope


def answered(sent_at: float, ms: float, **known: object) -> Outcome:
    return Outcome("r", sent_at, sent_at, sent_at + ms / 1000, answers=1, **known)  # type: ignore[arg-type]


def test_arrivals_come_in_order_within_their_time() -> None:
    """Given a rate and a time, I expect every arrival inside of it, in order, and about so many."""
    moments = poisson(50, 100, random.Random(1), begin=10)

    assert moments == sorted(moments)
    assert all(10 <= moment < 110 for moment in moments)
    assert 4_700 < len(moments) < 5_300


def test_arrivals_do_not_know_of_one_another() -> None:
    """Given Poisson arrivals, I expect gaps that vary as much as they are long: their deviation is their mean."""
    moments = poisson(20, 1_000, random.Random(2))
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))

    assert mean == pytest.approx(1 / 20, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.01, 1), (0.07, 7), (0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100)]
)
def test_a_quantile_is_the_smallest_value_that_the_share_does_not_exceed(share: float, expected: float) -> None:
    """Given the numbers 1 to 100 in disorder, I expect the n-th of them for n per cent."""
    assert quantile(random.Random(3).sample(range(1, 101), 100), share) == expected


def test_there_is_no_quantile_of_nothing() -> None:
    """Given no values, I expect NaN rather than an error or a flattering zero."""
    assert math.isnan(quantile([], 0.5))


def test_the_highest_rate_is_found() -> None:
    """Given a limit, I expect the bisection to end just below it, and never above."""
    tried = []

    def held(rate: float) -> bool:
        tried.append(rate)
        return rate <= 63

    found = highest_held(held, 10, 130, 0.05)

    assert 63 * 0.95 <= found <= 63
    assert len(tried) < 10


def test_the_search_for_a_rate_ends_at_its_bounds() -> None:
    """Given that everything is held, I expect the upper bound; given that nothing is, 0."""
    assert highest_held(lambda _: True, 10, 130, 0.05) == 130
    assert highest_held(lambda _: False, 10, 130, 0.05) == 0


def test_requests_meet_their_first_responses() -> None:
    """Given responses out of order, of others, and one twice, I expect each request with its own first one."""
    sent = [["a", 1.0, 1.0], ["b", 2.0, 2.1], ["c", 3.0, 3.0], ["d", 4.0, 4.0]]
    heard = [
        [2.5, {"request_id": "b", "success": True, "memories": 3, "partial": True}],
        [2.6, {"request_id": "somebody else's", "success": True}],
        [2.7, {"request_id": "a", "success": True}],
        [2.8, {"request_id": "b", "success": True}],
        [3.5, {"request_id": "c", "success": False, "error": "expired: too late"}],
    ]

    a, b, c, d = correlate(sent, heard)

    assert a.ms == pytest.approx(1_700)
    assert b.ms == pytest.approx(400)  # from when it was sent, not from when it was due
    assert (b.partial, b.memories, b.answers) == (True, 3, 2)
    assert (c.error, c.ms) == ("expired", None)
    assert (d.answered_at, d.ms) == (None, None)


def test_a_summary_counts_everything_once() -> None:
    """Given one outcome of each kind, I expect each counted under its name, and latencies of answers alone."""
    outcomes = [
        answered(0, 10),
        answered(0, 20, partial=True),
        answered(0, 400),
        answered(0, 900, error="expired"),
        answered(0, 5, error="invalid"),
        Outcome("r", 0, 0.25),
    ]

    figures = summary(outcomes, budget_ms=300)

    assert figures["asked"] == 6
    assert (figures["answered"], figures["p50"], figures["max"]) == (3, 20, 400)
    assert [figures[name] for name in ("late", "partial", "expired", "failed", "unanswered", "twice")] == [1] * 5 + [0]
    assert figures["lag p99"] == 250


def test_who_was_not_answered_has_waited_until_the_end() -> None:
    """Given an unanswered request, I expect it to count as a wait, at least until the generator left."""
    assert at_least([answered(0, 10), Outcome("r", 1, 1)], until=5) == [10, 4_000]


def test_the_stages_of_a_request_add_up_to_its_round_trip() -> None:
    """Given the moments that the parts recorded, I expect every millisecond in one stage."""
    timings = {
        "received_at": 0.001,
        "enqueued_at": 0.003,
        "started_at": 0.006,
        "embed_ms": 10.0,
        "database_ms": 2.0,
        "rank_ms": 1.0,
        "responded_at": 0.021,
    }
    outcome = answered(0, 22, timings=timings)

    stages = outcome.stages()

    assert list(stages) == list(STAGES)
    assert [round(ms, 6) for ms in stages.values()] == [1, 2, 3, 10, 2, 1, 2, 1]
    table = stage_table([outcome, answered(0, 5)])
    assert table["all"]["p50"] == pytest.approx(22)
    assert table["all but the search"]["p99"] == pytest.approx(9)


def test_answers_without_timings_have_no_stage_table() -> None:
    """Given a consumer that records no timings, I expect an empty table."""
    assert stage_table([answered(0, 10)]) == {}


def test_no_query_is_asked_twice() -> None:
    """Given thousands of queries, half of them Chinese, I expect them all to differ, and the same for a seed."""
    speech, again = Speech(1), Speech(1)
    queries = [speech.query(number) for number in range(10_000)]

    assert len(set(queries)) == 10_000
    assert sum(any("一" <= char <= "鿿" for char in query) for query in queries) == 5_000
    assert [again.query(number) for number in range(100)] == queries[:100]
    assert "{" not in "".join(queries)


def test_queries_repeat_on_request() -> None:
    """Given that queries may repeat, I expect them from a small pool."""
    speech = Speech(1, repeat=20)

    assert len({speech.query(0) for _ in range(1_000)}) == 20


def test_a_slope_is_growth_an_hour() -> None:
    """Given a megabyte more each minute, I expect 60 an hour; given one sample, none."""
    assert slope([0, 60, 120], [10, 11, 12]) == pytest.approx(60)
    assert slope([0], [10]) == 0
