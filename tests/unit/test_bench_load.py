"""The load of the benchmarks: arrivals, outcomes and statistics."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import redis
from fakeredis import TcpFakeServer
from hypothesis import given
from hypothesis import strategies as st

from bench.harness.load import ROOT, Result, poisson
from bench.harness.outcomes import STAGES, Outcome, correlate, faults, stage_table, summary, waits
from bench.harness.responses import Response, ResponseListener
from bench.harness.stack import up_options
from bench.harness.statistics import percentiles, quantile
from bench.harness.texts import TextGenerator
from bench.latency.capacity import highest_rate, lowered_until_held
from bench.resilience.soak import slope
from tests.support import wait_until


def answered(sent_at: float, ms: float, **known: object) -> Outcome:
    return Outcome("r", sent_at, sent_at, sent_at + ms / 1000, answers=1, **known)  # type: ignore[arg-type]


def test_arrivals_come_in_order_within_their_time() -> None:
    """Given a rate and a time, I expect every arrival within it, in order, and about as many as the rate says."""
    moments = poisson(50, 100, random.Random(1), begin=10)

    assert moments == sorted(moments)
    assert all(10 <= moment < 110 for moment in moments)
    assert 4_700 < len(moments) < 5_300


def test_arrivals_are_independent() -> None:
    """Given Poisson arrivals, I expect gaps whose standard deviation is their mean."""
    moments = poisson(20, 1_000, random.Random(2))
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))

    assert mean == pytest.approx(1 / 20, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 1), (0.01, 1), (0.07, 7), (0.5, 50), (0.501, 51), (0.95, 95), (0.99, 99), (0.995, 100), (1.0, 100)],
)
def test_a_quantile_is_the_value_of_the_nearest_rank(share: float, expected: float) -> None:
    """Given the numbers 1 to 100 in random order, I expect the value of rank ceil(share * 100)."""
    assert quantile(random.Random(3).sample(range(1, 101), 100), share) == expected


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.integers(1, 100))
def test_a_quantile_is_the_smallest_value_that_enough_values_do_not_exceed(values: list[int], percent: int) -> None:
    """Given any values, I expect one of them that at least the share is less or equal to, and no smaller one."""
    found = quantile(values, percent / 100)

    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 1.0])
def test_the_quantile_of_one_value_is_that_value(share: float) -> None:
    """Given one value, I expect it for any share."""
    assert quantile([7.5], share) == 7.5


def test_the_quantile_of_no_values_is_nan() -> None:
    """Given no values, I expect NaN rather than an error or a zero that looks like a good time."""
    assert math.isnan(quantile([], 0.5))


def test_percentiles_have_their_usual_names() -> None:
    """Given values and shares, I expect each quantile under its name."""
    assert percentiles(range(1, 1_001)) == {"p50": 500, "p95": 950, "p99": 990}
    assert percentiles(range(1, 1_001), [0.999]) == {"p99.9": 999}


def test_the_highest_rate_is_found() -> None:
    """Given a limit, I expect the bisection to end just below it, and never above."""
    tried = []

    def held(rate: float) -> bool:
        tried.append(rate)
        return rate <= 63

    found = highest_rate(held, 10, 130, 0.05)

    assert 63 * 0.95 <= found <= 63
    assert len(tried) < 10


def test_the_search_for_a_rate_ends_at_its_bounds() -> None:
    """Given that every rate is sustained, I expect the upper bound; given that none is, 0."""
    assert highest_rate(lambda _: True, 10, 130, 0.05) == 130
    assert highest_rate(lambda _: False, 10, 130, 0.05) == 0


def test_a_rate_is_lowered_until_it_is_sustained() -> None:
    """Given a rate above the limit, I expect steps down to below it; given that no rate is sustained, 0."""
    assert lowered_until_held(lambda rate: rate <= 90, 100) == pytest.approx(86.49)
    assert lowered_until_held(lambda _: False, 100) == 0


def test_each_request_gets_its_first_response() -> None:
    """Given responses out of order, to other requests, and a duplicate, I expect each request with its first one."""
    sent = [["a", 1.0, 1.0], ["b", 2.0, 2.1], ["c", 3.0, 3.0], ["d", 4.0, 4.0]]
    responses = [
        Response(2.5, "b", partial=True, memories=3),
        Response(2.6, "of another client"),
        Response(2.7, "a"),
        Response(2.8, "b"),
        Response(3.5, "c", error="expired: too late"),
    ]

    a, b, c, d = correlate(sent, responses)

    assert a.ms == pytest.approx(1_700)
    assert b.ms == pytest.approx(400)  # from when it was sent, not from when it was due
    assert (b.partial, b.memories, b.answers) == (True, 3, 2)
    assert (c.error, c.ms) == ("expired", None)
    assert (d.answered_at, d.ms) == (None, None)


@pytest.fixture
def redis_server() -> Iterator[str]:
    """The URL of a fakeredis that is reached over TCP."""
    with TcpFakeServer(("127.0.0.1", 0), server_type="redis") as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"redis://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_listener_collects_every_response_from_its_start_on(redis_server: str) -> None:
    """Given a success, an error, a duplicate and no JSON, I expect each by request_id, the error checked."""
    listener = ResponseListener(redis_server, "responses", clock=lambda: 7.0, check=lambda body: body.get("problem"))
    listener.start()
    with redis.Redis.from_url(redis_server) as client:
        success = {"request_id": "a", "success": True, "memories": [{}, {}], "partial": True}
        error = {"request_id": "b", "success": False, "error": "expired: too late", "problem": "of another user"}
        for body in (json.dumps(success), json.dumps(error), json.dumps(success), "no JSON"):
            client.publish("responses", body)
    wait_until(lambda: "None" in listener.by_request, description="the last response")
    listener.stop()

    first = Response(7.0, "a", partial=True, memories=2)
    assert listener.by_request["a"] == [first, first]
    assert listener.by_request["b"] == [Response(7.0, "b", "expired: too late", problem="of another user")]


def test_a_summary_counts_everything_once() -> None:
    """Given one outcome of each kind, I expect each counted under its name, and latencies of successes alone."""
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
    assert faults(figures) == "1 late, 1 partial, 1 expired, 1 failed, 1 unanswered"


def test_an_unanswered_request_has_waited_until_the_end() -> None:
    """Given an unanswered request, I expect its wait to last until the generator stopped listening."""
    assert waits([answered(0, 10), Outcome("r", 1, 1)], until=5) == [10, 4_000]


def test_the_stages_of_a_request_add_up_to_its_round_trip() -> None:
    """Given the moments that the processes recorded, I expect every millisecond in one stage."""
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
    """Given responses without timings, I expect an empty table."""
    assert stage_table([answered(0, 10)]) == {}


def test_a_part_of_a_run_has_the_requests_that_were_due_in_it() -> None:
    """Given a run, I expect the outcomes due from the beginning of a part until before its end."""
    outcomes = [Outcome("r", 1_000 + due, 1_000 + due) for due in (0.0, 9.9, 10.0, 19.9, 20.0)]

    part = Result(outcomes, {}, 1_000, 1_030).due_between(10, 20)

    assert [outcome.due for outcome in part] == [1_010.0, 1_019.9]


def test_no_query_comes_twice() -> None:
    """Given thousands of queries, half of them Chinese, I expect no duplicates, and the same ones for a seed."""
    texts, again = TextGenerator(1), TextGenerator(1)
    queries = [texts.query(number) for number in range(10_000)]

    assert len(set(queries)) == 10_000
    assert sum(any("一" <= char <= "鿿" for char in query) for query in queries) == 5_000
    assert [again.query(number) for number in range(100)] == queries[:100]
    assert "{" not in "".join(queries)


def test_queries_repeat_on_request() -> None:
    """Given that queries may repeat, I expect them from a small pool."""
    texts = TextGenerator(1, repeat=20)

    assert len({texts.query(0) for _ in range(1_000)}) == 20


def test_a_slope_is_growth_an_hour() -> None:
    """Given one megabyte more each minute, I expect 60 an hour; given one sample, 0."""
    assert slope([0, 60, 120], [10, 11, 12]) == pytest.approx(60)
    assert slope([0], [10]) == 0


def test_a_benchmark_that_imports_mem0_switches_its_telemetry_off_first() -> None:
    """Given a benchmark that imports Mem0, I expect Mem0 to see its telemetry switched off."""
    code = "import bench.latency.floors, mem0.memory.telemetry as telemetry; print(telemetry.MEM0_TELEMETRY)"

    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert printed.strip() == "False"


def test_the_load_generator_knows_nothing_of_keepsake() -> None:
    """Given the load generator in a process of its own, I expect it to import redis-py and nothing of Keepsake."""
    code = "import sys, bench.harness.load; print(*{name.partition('.')[0] for name in sys.modules})"

    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "redis" in printed.split()
    assert not {"keepsake_client", "services", "adapters", "tasks", "rich", "pydantic"} & set(printed.split())


def test_a_stack_of_a_benchmark_takes_no_port_of_another(tmp_path: Path) -> None:
    """Given an ephemeral stack, a durable one, and one with a Redis of its own, I expect no option but free ports."""
    assert up_options(None, ["chat-ai"], {}) == ["--ephemeral", "--without", "chat-ai"]
    assert up_options(tmp_path, [], {}) == ["--data-dir", str(tmp_path), "--gateway-port", "0", "--redis-port", "0"]
    free = ["--gateway-port", "0"]
    assert up_options(tmp_path, [], {"REDIS_URL": "redis://proxy:1"}) == ["--data-dir", str(tmp_path), *free]
