"""Rows and figures of the live page, from trace records."""

from __future__ import annotations

from typing import Any

import pytest
from keepsake_client.protocol import TraceRecord

from services.gateway.console.figures import Spread, figures_of
from services.gateway.console.passed import Passed, outcome_of, stages_of


def request(**fields: Any) -> TraceRecord:
    times = {"pushed": 10.0, "taken": 10.01, "queued": 10.01, "started": 10.05, "answered": 10.12}
    ms = {"embed_ms": 20.0, "database_ms": 10.0, "rank_ms": 5.0, "context_ms": 15.0}
    return TraceRecord.model_validate({"kind": "request", "type": "context", "times": times, "ms": ms, **fields})


def rounded(record: TraceRecord) -> dict[str, int]:
    return {name: round(ms) for name, ms in stages_of(record)}


def test_the_stages_of_a_search_add_up_to_its_time() -> None:
    """Given the times and durations of a search, I expect its stages; the rest is completing and publishing."""
    assert rounded(request()) == {"queue": 50, "embed": 20, "database": 10, "rank": 5, "publish": 35}


def test_a_search_that_never_began_was_in_the_queue_all_the_time() -> None:
    """Given a search that expired before a worker took it, I expect one stage."""
    assert rounded(request(times={"taken": 10.0, "answered": 10.5}, outcome="expired")) == {"queue": 500}


def test_the_stages_of_a_message_go_from_publish_to_index() -> None:
    """Given a message without the time of its dispatch, I expect that time to be part of the next stage."""
    times = {"said": 1.0, "logged": 10.0, "started": 10.2, "indexed": 10.5}
    assert rounded(TraceRecord(kind="message", times=times)) == {"queue": 200, "index": 300}


def test_what_has_no_end_has_no_stages() -> None:
    """Given a record without its last time, as of another program, I expect no stages, and no clock to be trusted."""
    assert stages_of(TraceRecord(kind="message", times={"logged": 10.0})) == ()
    assert rounded(request(times={"pushed": 10.0, "started": 9.0, "answered": 10.1}, ms={}))["queue"] == 0


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({}, "ok"),
        ({"partial": True}, "partial"),
        ({"deadline_ms": 100}, "late"),
        ({"outcome": "expired"}, "expired"),
        ({"outcome": "unavailable"}, "failed"),
        ({"kind": "reply", "outcome": "timeout"}, "unanswered"),
    ],
)
def test_an_outcome_says_whether_the_asker_had_an_answer_in_time(fields: dict[str, Any], outcome: str) -> None:
    """Given a record, I expect its outcome in the words of the live page."""
    assert outcome_of(request(**fields)) == outcome


def test_percentiles_are_by_nearest_rank() -> None:
    """Given durations of 1 to 100 ms within a minute, I expect the 50th, the 95th and the 99th."""
    spread = Spread.of([float(ms) for ms in range(100, 0, -1)], 100, 60.0)
    assert (spread.p50, spread.p95, spread.p99, spread.per_minute) == (50, 95, 99, 100)


def test_without_durations_there_are_no_percentiles() -> None:
    """Given none, I expect none."""
    assert Spread.of([], 0, 0.0) == Spread(0, 0.0, None, None, None)


def test_figures_are_of_the_time_that_is_known() -> None:
    """Given two searches within the two minutes that are kept, one late, I expect one a minute, and one late."""
    rows = [Passed.of(f"{at}-0", request(deadline_ms=budget)) for at, budget in ((1_000, 600), (2_000, 100))]
    figures = figures_of(rows, now=121.0, since=1.0)
    assert (figures.span_s, figures.searches.per_minute) == (120.0, 1.0)
    assert figures.outcomes == {"ok": 1, "late": 1}
