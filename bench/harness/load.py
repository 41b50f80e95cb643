"""Open-loop load generator on the public wire: every event is sent when it is due, answered requests or not.

The generator is a process of its own, `python -m bench.harness.load`: it reads a plan on stdin, and writes what it sent
and received to stdout. It is written by hand, and knows redis-py and nothing of Keepsake, for three reasons. A closed
loop, or a client that waits for its response, would slow down with what it measures and hide the delay (coordinated
omission). What measures must not share code, and so faults, with what is measured. And it starts at once and costs
little of the processor that it shares with the stack.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from bench.harness.outcomes import Outcome, correlate
from bench.harness.responses import Response, ResponseListener

REQUEST, UPDATE = "request", "update"
ROOT = Path(__file__).parents[2]
#: How long the generator waits for responses after its last event.
GRACE_S = 3.0


def poisson(rate: float, seconds: float, rng: random.Random, begin: float = 0.0) -> list[float]:
    """Moments of independent arrivals (a Poisson process), in order.

    Args:
        rate: arrivals a second on average.
        seconds: how long they arrive.
        begin: when they begin, in seconds.
    """
    moments = []
    moment = begin + rng.expovariate(rate)
    while moment < begin + seconds:
        moments.append(moment)
        moment += rng.expovariate(rate)
    return moments


@dataclass(frozen=True)
class Event:
    """One message to send.

    Args:
        due: when, in seconds after the beginning.
        kind: REQUEST is pushed to the list of requests, UPDATE published on the channel of updates.
        body: its JSON.
    """

    due: float
    kind: str
    body: str


@dataclass(frozen=True)
class Wire:
    """The Redis that a load goes to, and the names of its list and channels."""

    redis_url: str
    requests: str
    responses: str
    updates: str


@dataclass(frozen=True)
class Result:
    """The result of a load; moments in seconds since 1970.

    Args:
        published: when each message was published, by its id.
        begun_at: the beginning of the load.
        ended_at: when the generator stopped listening.
    """

    outcomes: list[Outcome]
    published: dict[str, float]
    begun_at: float
    ended_at: float

    def due_between(self, begin: float, end: float) -> list[Outcome]:
        """The outcomes of the requests that were due then, in seconds after the beginning."""
        return [outcome for outcome in self.outcomes if begin <= outcome.due - self.begun_at < end]


class Load:
    """A load that runs in a process of its own, started by the constructor.

    Args:
        events: in any order.
        backlog: messages published all at once just before.
        grace_s: how long to wait for responses after the last event, while requests are unanswered.
    """

    def __init__(
        self, wire: Wire, events: Iterable[Event], backlog: Sequence[str] = (), grace_s: float = GRACE_S
    ) -> None:
        ordered = sorted(events, key=lambda event: event.due)
        plan = {
            **vars(wire),
            "events": [[event.due, event.kind, event.body] for event in ordered],
            "backlog": list(backlog),
            "grace_s": grace_s,
        }
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
        """Whether the load has not ended yet."""
        return self._reader.is_alive()

    def result(self) -> Result:
        """The result, once the load has ended.

        Raises:
            RuntimeError: the generator failed; its stderr says why.
        """
        self._reader.join()
        if self._process.returncode:
            raise RuntimeError(f"the load generator ended with {self._process.returncode}")
        written = json.loads(self._written[0])
        outcomes = correlate(written["sent"], [Response(**fields) for fields in written["responses"]])
        return Result(outcomes, written["published"], written["begun_at"], written["ended_at"])

    def stop(self) -> None:
        """Kill the generator."""
        self._process.kill()
        self._reader.join()


def _generate(plan: dict[str, Any]) -> dict[str, Any]:
    client = redis.Redis.from_url(plan["redis_url"])
    client.ping()
    listener = ResponseListener(plan["redis_url"], plan["responses"])
    listener.start()
    events = [(due, kind, body.encode()) for due, kind, body in plan["events"]]
    ids = [json.loads(body)["request_id" if kind == REQUEST else "message_id"] for _, kind, body in events]
    with client.pipeline(transaction=False) as pipeline:
        for body in plan["backlog"]:
            pipeline.publish(plan["updates"], body)
        pipeline.execute()
    sent, published = [], {}
    begun_at = time.time() + 0.01
    for (due, kind, body), event_id in zip(events, ids, strict=True):
        if (wait := begun_at + due - time.time()) > 0:
            time.sleep(wait)
        moment = time.time()
        if kind == REQUEST:
            client.lpush(plan["requests"], body)
            sent.append([event_id, begun_at + due, moment])
        else:
            published[event_id] = moment
            client.publish(plan["updates"], body)
    until = time.time() + plan["grace_s"]
    request_ids = {request_id for request_id, *_ in sent}
    while time.time() < until and not request_ids <= listener.by_request.keys():
        time.sleep(0.05)
    listener.stop()
    return {
        "begun_at": begun_at,
        "ended_at": time.time(),
        "sent": sent,
        "published": published,
        "responses": [vars(response) for found in listener.by_request.values() for response in found],
    }


def main() -> None:
    """Read a plan on stdin, carry it out, and write its result to stdout."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    json.dump(_generate(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
