"""The load by HTTP of the benchmarks: what it reports of answers, and of those that do not come."""

from __future__ import annotations

import math

from bench.harness.http_load import Answer, Call, HTTPLoad
from bench.harness.llm_server import Cut, LLMServer, Raw, Status
from bench.resilience.doors import http_summary

OK = Raw(b'{"memories":[],"partial":true}')


def answer(status: int, ms: float = 10.0) -> Answer:
    return Answer("a", 0.0, ms / 1000, status, partial=False, attempts=1)


def test_a_request_is_repeated_until_it_is_acknowledged() -> None:
    """Given a server that fails once and drops a connection once, I expect three attempts with the same headers."""
    with LLMServer(OK) as server:
        server.then(Status(503), Cut())
        calls = [Call("write", 0.0, "/v1/events", {"n": 1}, {"Authorization": "Bearer k"}, retry_s=30.0)]
        (found,) = HTTPLoad(server.url.removesuffix("/v1"), calls).answers()

    assert (found.name, found.ok, found.attempts, found.partial) == ("write", True, 3, True)
    assert [(request.path, request.authorization) for request in server.requests] == [("/v1/events", "Bearer k")] * 3


def test_a_request_that_is_sent_once_reports_what_became_of_it() -> None:
    """Given calls that are not repeated, I expect the status of each, and 0 of one without an answer."""
    with LLMServer(OK) as server:
        server.then(Status(504), Cut())
        calls = [Call(f"call {number}", 0.0, "/v1/x", {}) for number in range(3)]
        found = HTTPLoad(server.url.removesuffix("/v1"), calls).answers()

    assert sorted((one.status, one.attempts) for one in found) == [(0, 1), (200, 1), (504, 1)]


def test_a_summary_counts_each_kind_of_failure() -> None:
    """Given answers in time, late, expired, failed and none, I expect each counted where it belongs, and once."""
    figures = http_summary([answer(200), answer(202, 900.0), answer(504), answer(500), answer(0)])

    assert (figures["asked"], figures["answered"]) == (5, 2)
    assert [figures[name] for name in ("late", "expired", "failed", "unanswered")] == [1, 1, 1, 1]
    assert math.isnan(http_summary([])["max"])
