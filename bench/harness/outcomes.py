"""Outcomes of requests under load: latencies, counts, and the stages of a round trip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bench.harness.responses import Response
from bench.harness.statistics import percentiles, quantile

#: The stages of a request's round trip, in order.
STAGES = ("wait in list", "adapter", "wait in queue", "embed", "database", "rank", "rest of the actor", "publish")
#: Those that are the search itself.
SEARCH_STAGES = ("embed", "database", "rank")
#: Counts of a summary that should be 0. A partial answer is ranked by words alone: the embedder did not keep up.
FAULTS = ("late", "partial", "expired", "failed", "unanswered", "twice")


@dataclass(frozen=True)
class Outcome:
    """One request and its first response; moments in seconds since 1970.

    Args:
        due: when it was to be sent; `sent_at` is when it was sent.
        answered_at: when its response was received; None without a response.
        error: the error code of the response.
        answers: the number of responses; more than one is a duplicate.
    """

    request_id: str
    due: float
    sent_at: float
    answered_at: float | None = None
    error: str | None = None
    partial: bool = False
    memories: int = 0
    answers: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)

    @property
    def ms(self) -> float | None:
        """Latency in ms; None without a response, or where it is an error."""
        return None if self.answered_at is None or self.error else (self.answered_at - self.sent_at) * 1000

    def stages(self) -> dict[str, float]:
        """Milliseconds by stage, from the moments that the processes recorded; empty without timings."""
        if self.answered_at is None or not self.timings:
            return {}
        moments = [self.sent_at, *(self.timings[f"{name}_at"] for name in ("received", "enqueued", "started"))]
        hops = [(later - earlier) * 1000 for earlier, later in pairwise(moments)]
        inside = [self.timings.get(f"{name}_ms", 0.0) for name in SEARCH_STAGES]
        responded_at = self.timings["responded_at"]
        rest = (responded_at - self.timings["started_at"]) * 1000 - sum(inside)
        return dict(zip(STAGES, [*hops, *inside, rest, (self.answered_at - responded_at) * 1000], strict=True))


def correlate(sent: Sequence[Sequence[Any]], responses: Sequence[Response]) -> list[Outcome]:
    """Every request with its first response, in the order in which they were sent.

    Args:
        sent: [request_id, due, sent_at] each.
        responses: in the order in which they were received; those to other requests are ignored.
    """
    by_request: dict[str, list[Response]] = {}
    for response in responses:
        by_request.setdefault(response.request_id, []).append(response)
    outcomes = []
    for request_id, due, sent_at in sent:
        if not (answers := by_request.get(request_id)):
            outcomes.append(Outcome(request_id, due, sent_at))
            continue
        first = answers[0]
        error = None if first.error is None else first.error.partition(":")[0]
        outcomes.append(
            Outcome(
                request_id,
                due,
                sent_at,
                first.received_at,
                error,
                first.partial,
                first.memories,
                len(answers),
                first.timings,
            )
        )
    return outcomes


def summary(outcomes: Sequence[Outcome], budget_ms: float) -> dict[str, float]:
    """The figures of a run: latencies of successful responses; expired, failed and unanswered requests are counted."""
    latencies = [outcome.ms for outcome in outcomes if outcome.ms is not None]
    errors = Counter(outcome.error for outcome in outcomes if outcome.error)
    return {
        "asked": len(outcomes),
        "answered": len(latencies),
        **percentiles(latencies),
        "max": max(latencies, default=float("nan")),
        "late": sum(ms > budget_ms for ms in latencies),
        "partial": sum(outcome.partial for outcome in outcomes if not outcome.error),
        "expired": errors.pop("expired", 0),
        "failed": errors.total(),
        "unanswered": sum(outcome.answered_at is None for outcome in outcomes),
        "twice": sum(outcome.answers > 1 for outcome in outcomes),
        "lag p99": quantile([(o.sent_at - o.due) * 1000 for o in outcomes], 0.99),
    }


def faults(figures: Mapping[str, float]) -> str:
    """The counts of a summary that should be 0 and are not, as text; empty without any."""
    return ", ".join(f"{figures[name]:g} {name}" for name in FAULTS if figures[name])


def waits(outcomes: Sequence[Outcome], until: float) -> list[float]:
    """Milliseconds that each request waited for its response; of unanswered ones, a lower bound.

    Args:
        until: when the listener stopped, in seconds since 1970.
    """
    return [((o.answered_at or until) - o.sent_at) * 1000 for o in outcomes]


def stage_table(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """p50, p95 and p99 of each stage and of all but the search itself, over the responses with timings."""
    timed = [stages for outcome in outcomes if outcome.error is None and (stages := outcome.stages())]
    if not timed:
        return {}
    columns = {name: [stages[name] for stages in timed] for name in STAGES}
    columns["all but the search"] = [
        sum(ms for name, ms in stages.items() if name not in SEARCH_STAGES) for stages in timed
    ]
    columns["all"] = [sum(stages.values()) for stages in timed]
    return {name: percentiles(values) for name, values in columns.items()}
