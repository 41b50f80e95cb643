"""An open-loop load on the public wire, and what came of it.

The generator is a process of its own, `python -m bench.harness.load`: it reads a plan on stdin, sends every event at
its time whether or not earlier ones were answered, and writes what it sent and heard to stdout. It knows redis-py
and nothing of
Keepsake, so that it starts at once and costs little of the processor that it shares with what it measures.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis

ASK, TELL = "ask", "tell"
ROOT = Path(__file__).parents[2]
#: How long the generator goes on listening after its last event.
GRACE_S = 3.0
#: Where the time of a request goes, in order.
STAGES = ("wait in list", "adapter", "wait in queue", "embed", "database", "rank", "rest of the actor", "publish")


def poisson(rate: float, seconds: float, rng: random.Random, begin: float = 0.0) -> list[float]:
    """The moments of arrivals that do not know of one another, `rate` a second on average, in order."""
    moments = []
    moment = begin + rng.expovariate(rate)
    while moment < begin + seconds:
        moments.append(moment)
        moment += rng.expovariate(rate)
    return moments


def highest_held(held: Callable[[float], bool], low: float, high: float, tolerance: float) -> float:
    """The highest rate that is held, to within the `tolerance`, which is a share of it; 0 if `low` is not held.

    Args:
        held: whether a rate is held; one that is not is taken to mean that no higher one is.
    """
    if not held(low):
        return 0.0
    if held(high):
        return high
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (middle, high) if held(middle) else (low, middle)
    return low


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed; NaN of none."""
    ordered = sorted(values)
    if not ordered:
        return float("nan")
    # 0.07 * 100 is a little more than 7 in floating point, and the 7th value is meant.
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


@dataclass(frozen=True)
class Event:
    """Something to send.

    Args:
        due: when, in seconds after the beginning.
        kind: ASK pushes to the list of requests, TELL publishes on the channel of updates.
        body: what, as JSON.
    """

    due: float
    kind: str
    body: str


@dataclass(frozen=True)
class Wire:
    """Where the load goes to, and what the list and channels are called there."""

    redis_url: str
    requests: str
    responses: str
    updates: str


@dataclass(frozen=True)
class Outcome:
    """One request and what came of it; moments in seconds since 1970.

    Args:
        due: when it was to be sent; `sent_at` is when it was.
        answered_at: when its response was heard; None where there was none.
        error: the code of the failure.
        answers: how many responses there were; one is right.
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
        """How long the answer took; None without one, or where it was an error."""
        return None if self.answered_at is None or self.error else (self.answered_at - self.sent_at) * 1000

    def stages(self) -> dict[str, float]:
        """Milliseconds by stage, from the moments that the parts recorded; of an answer with timings only."""
        if self.answered_at is None or not self.timings:
            return {}
        moments = [self.sent_at, *(self.timings[f"{name}_at"] for name in ("received", "enqueued", "started"))]
        hops = [(later - earlier) * 1000 for earlier, later in pairwise(moments)]
        inside = [self.timings.get(f"{name}_ms", 0.0) for name in ("embed", "database", "rank")]
        responded_at = self.timings["responded_at"]
        rest = (responded_at - self.timings["started_at"]) * 1000 - sum(inside)
        return dict(zip(STAGES, [*hops, *inside, rest, (self.answered_at - responded_at) * 1000], strict=True))


def correlate(sent: Sequence[Sequence[Any]], heard: Sequence[Sequence[Any]]) -> list[Outcome]:
    """Every request with its first response, in the order they were sent.

    Args:
        sent: [request_id, due, sent_at] each.
        heard: [answered_at, response] each; responses to anybody else's requests are passed over.
    """
    answers: dict[str, list[Sequence[Any]]] = {}
    for one in heard:
        answers.setdefault(one[1].get("request_id"), []).append(one)
    outcomes = []
    for request_id, due, sent_at in sent:
        if not (found := answers.get(request_id)):
            outcomes.append(Outcome(request_id, due, sent_at))
            continue
        answered_at, response = found[0]
        error = None if response.get("success") else str(response.get("error")).partition(":")[0]
        outcomes.append(
            Outcome(
                request_id,
                due,
                sent_at,
                answered_at,
                error,
                bool(response.get("partial")),
                response.get("memories") or 0,
                len(found),
                response.get("timings") or {},
            )
        )
    return outcomes


def summary(outcomes: Sequence[Outcome], budget_ms: float) -> dict[str, float]:
    """The figures of a run: latencies are of answers; what expired, failed or was not answered is counted."""
    latencies = [outcome.ms for outcome in outcomes if outcome.ms is not None]
    errors = Counter(outcome.error for outcome in outcomes if outcome.error)
    return {
        "asked": len(outcomes),
        "answered": len(latencies),
        **{f"p{share * 100:g}": quantile(latencies, share) for share in (0.5, 0.95, 0.99)},
        "max": max(latencies, default=float("nan")),
        "late": sum(ms > budget_ms for ms in latencies),
        "partial": sum(outcome.partial for outcome in outcomes if not outcome.error),
        "expired": errors.pop("expired", 0),
        "failed": errors.total(),
        "unanswered": sum(outcome.answered_at is None for outcome in outcomes),
        "twice": sum(outcome.answers > 1 for outcome in outcomes),
        "lag p99": quantile([(o.sent_at - o.due) * 1000 for o in outcomes], 0.99),
    }


def at_least(outcomes: Sequence[Outcome], until: float) -> list[float]:
    """Milliseconds that each asker had waited when the generator left: of those not answered, a lower bound."""
    return [((o.answered_at or until) - o.sent_at) * 1000 for o in outcomes]


def stage_table(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """p50, p95 and p99 of each stage, and of what is not the search itself, of the answers that say."""
    timed = [stages for outcome in outcomes if outcome.error is None and (stages := outcome.stages())]
    columns: dict[str, list[float]] = {name: [stages[name] for stages in timed] for name in STAGES if timed}
    if timed:
        columns["all but the search"] = [
            sum(ms for name, ms in stages.items() if name not in ("embed", "database", "rank")) for stages in timed
        ]
        columns["all"] = [sum(stages.values()) for stages in timed]
    return {
        name: {f"p{share * 100:g}": quantile(values, share) for share in (0.5, 0.95, 0.99)}
        for name, values in columns.items()
    }


@dataclass(frozen=True)
class Result:
    """What a load came to.

    Args:
        told: when each message was published, by its id.
        begun_at: when its beginning was, in seconds since 1970.
        ended_at: when the generator stopped listening.
    """

    outcomes: list[Outcome]
    told: dict[str, float]
    begun_at: float
    ended_at: float


class Load:
    """A load that runs in a process of its own, from its construction on.

    Args:
        events: in any order.
        backlog: messages published all at once just before.
        grace_s: how long to listen on after the last event, if something is still unanswered.
    """

    def __init__(
        self, wire: Wire, events: Iterable[Event], backlog: Sequence[str] = (), grace_s: float = GRACE_S
    ) -> None:
        ordered = sorted(events, key=lambda event: event.due)
        told = [[event.due, event.kind, event.body] for event in ordered]
        plan = {**vars(wire), "events": told, "backlog": list(backlog), "grace_s": grace_s}
        self.seconds = ordered[-1].due if ordered else 0.0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.harness.load"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._written: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(json.dumps(plan),), daemon=True)
        self._reader.start()

    def _read(self, plan: str) -> None:
        self._written.append(self._process.communicate(plan)[0])

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._reader.is_alive()

    def result(self) -> Result:
        """What came of it, once it has ended.

        Raises:
            RuntimeError: the generator failed; it has said why on stderr.
        """
        self._reader.join()
        if self._process.returncode:
            raise RuntimeError(f"the load generator ended with {self._process.returncode}")
        written = json.loads(self._written[0])
        outcomes = correlate(written["asked"], written["heard"])
        return Result(outcomes, written["told"], written["begun_at"], written["ended_at"])

    def stop(self) -> None:
        """End it, whatever it is at."""
        self._process.kill()
        self._reader.join()


class _Ear(threading.Thread):
    """Hears responses and notes when each came."""

    def __init__(self, client: redis.Redis, channel: str) -> None:
        super().__init__(daemon=True)
        self._pubsub = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._pubsub.subscribe(channel)
        self.heard: list[list[Any]] = []
        self.ids: set[str] = set()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            message = self._pubsub.get_message(timeout=0.5)
            if message is None:
                continue
            moment = time.time()
            response = json.loads(message["data"])
            known = {name: response.get(name) for name in ("request_id", "success", "error", "partial", "timings")}
            self.heard.append([moment, {**known, "memories": len(response.get("memories") or ())}])
            self.ids.add(response.get("request_id"))


def _generate(plan: dict[str, Any]) -> dict[str, Any]:
    client = redis.Redis.from_url(plan["redis_url"])
    ear = _Ear(client, plan["responses"])
    ear.start()
    client.ping()
    events = [(due, kind, body.encode()) for due, kind, body in plan["events"]]
    ids = [json.loads(body)["request_id" if kind == ASK else "message_id"] for _, kind, body in events]
    time.sleep(0.2)  # the subscription has long arrived by then
    with client.pipeline(transaction=False) as pipeline:
        for body in plan["backlog"]:
            pipeline.publish(plan["updates"], body)
        pipeline.execute()
    asked, told = [], {}
    begun_at = time.time() + 0.01
    for (due, kind, body), event_id in zip(events, ids, strict=True):
        if (wait := begun_at + due - time.time()) > 0:
            time.sleep(wait)
        moment = time.time()
        if kind == ASK:
            client.lpush(plan["requests"], body)
            asked.append([event_id, begun_at + due, moment])
        else:
            told[event_id] = moment
            client.publish(plan["updates"], body)
    until = time.time() + plan["grace_s"]
    wanted = {one[0] for one in asked}
    while time.time() < until and not wanted <= ear.ids:
        time.sleep(0.05)
    ear.done.set()
    ear.join()
    return {"begun_at": begun_at, "ended_at": time.time(), "asked": asked, "told": told, "heard": ear.heard}


def main() -> None:
    """Read a plan, follow it, and write what came of it."""
    json.dump(_generate(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
