"""Fuzz run: does malformed, hostile or huge input break anything?

`python -m bench.resilience.fuzz [--n 20000] [--seed N]`

Starts the stack on real servers and sends such messages to the list of requests, the channel of updates and the list of
the memory service; every 20th is a good one. It measures: the exit code is 0 whatever it finds.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
from keepsake_client.protocol import COUNTERS, REJECTED_STREAM

from bench.harness.memory_usage import memory_by_process
from bench.harness.responses import Response, ResponseListener
from bench.harness.stack import Stack, running_stack
from bench.harness.statistics import percentiles
from bench.harness.tables import show, write_json
from bench.resilience.fuzz_expectation import MARK, Expectation
from bench.resilience.fuzz_inputs import INPUTS, REQUESTS, UPDATES, Target, draw, huge
from bench.resilience.fuzz_sentinel import Sentinel
from bench.resilience.log_inspection import restarts, show_tracebacks, tracebacks
from bench.resilience.publisher import Publisher
from services.stack.processes import CHAT, GATEWAY

GOOD_EVERY = 20
#: One bad message in so many has 1 to 20 MB.
HUGE_EVERY = 2_000
HUGE_BYTES = (1_100_000, 20_000_000)
LATE_MS = 1_000
IDLE_WITHIN_S = 60.0
SHARES = ((REQUESTS, 60), (UPDATES, 20), (INPUTS, 20))
MAX_SHOWN = 10


class Workload:
    """Good and bad messages at a steady rate, and what is expected of them."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self._rng = random.Random(seed)
        self._publisher = Publisher(stack.redis_url, threading.Event())
        settings = stack.settings
        self._max_chars = settings.ltm_max_content_chars
        self._command = {
            REQUESTS.name: ("LPUSH", settings.ltm_requests_queue),
            UPDATES.name: ("PUBLISH", settings.memory_updates_channel),
            INPUTS.name: ("LPUSH", settings.user_input_queue),
        }
        self.expected = Expectation()
        self.sent: Counter[str] = Counter()
        self.good_kinds: dict[str, str] = {}

    def send(self, numbers: range, rate: float) -> None:
        """Send the messages with these numbers, `rate` a second."""
        begun = time.monotonic()
        for number in numbers:
            time.sleep(max(0.0, begun + (number - numbers.start) / rate - time.monotonic()))
            [target] = self._rng.choices([target for target, _ in SHARES], [share for _, share in SHARES])
            if number % GOOD_EVERY == 0:
                self._send_good(target, f"good-{number:06d}")
            else:
                self._send_bad(target, f"bad-{number:06d}", number)

    def _send_good(self, target: Target, mark: str) -> None:
        raw = json.dumps(target.model(self._rng, mark)).encode()
        if target is REQUESTS:
            kind = json.loads(raw)["type"]
            self.good_kinds[mark] = "writes" if kind in ("add", "profile_update") else "searches and profile_gets"
            self.expected.good[mark] = time.monotonic()
        else:
            self.expected.add_message(target, raw, self._max_chars)
        self._send(target, raw, "good")

    def _send_bad(self, target: Target, mark: str, number: int) -> None:
        if number % HUGE_EVERY == 1:
            raw = huge(self._rng, target, mark, self._rng.randint(*HUGE_BYTES))
        else:
            raw = draw(self._rng, target, mark)
        try:
            if target is REQUESTS:
                self.expected.add_request(raw, self._max_chars)
            else:
                self.expected.add_message(target, raw, self._max_chars)
        except Exception as error:  # noqa: BLE001 - a parser that raises anything else is what the run looks for
            self.expected.crashes.append(f"{target.name}: {error!r} of {raw[:200]!r}")
        self._send(target, raw, "bad")

    def _send(self, target: Target, raw: bytes, kind: str) -> None:
        self.sent[f"{kind} {target.name}"] += 1
        self._publisher.send(*self._command[target.name], raw)


def verify(
    stack: Stack,
    workload: Workload,
    responses: Mapping[str, Sequence[Response]],
    sentinel: Sentinel,
    counted: Mapping[str, int],
) -> dict[str, float]:
    """The figures by name. Those in capitals should be 0.

    Args:
        responses: by request_id.
        counted: what the stack counted during the run.
    """
    expected = workload.expected
    bad = {request_id: found for request_id, found in responses.items() if request_id not in expected.good}
    answered = Counter({request_id: len(found) for request_id, found in bad.items()})
    with_error = Counter({request_id: sum(one.error is not None for one in found) for request_id, found in bad.items()})
    remembered = _remembered(stack)
    client: Any = stack.connect()
    return {
        **_of_good_requests(workload, responses),
        "good messages": sum(workload.sent[kind] for kind in ("good updates", "good inputs")),
        "  NOT REMEMBERED": expected.missing(remembered, "good"),
        "bad requests with a readable request_id": expected.errors.total(),
        "  answered with an error": (expected.errors & with_error).total(),
        "  NOT ANSWERED ": (expected.errors - with_error).total(),
        "unusual requests that are valid": (expected.answers - expected.errors).total(),
        "  NOT ANSWERED  ": (expected.answers - answered).total(),
        "ANSWERED WITHOUT A REQUEST, OR TWICE": (answered - expected.answers).total(),
        "ANSWERED WITH internal": sum(_is_internal(one) for found in responses.values() for one in found),
        "unusual messages that are valid, NOT REMEMBERED": expected.missing(remembered, "bad"),
        "to be rejected": expected.rejected,
        "  counted as rejected": counted["rejected"],
        "without text, to be skipped": expected.skipped,
        "  counted as skipped": counted["skipped_without_text"],
        "with a message_id that another event had": counted["message_ids_reused"],
        f"  kept in {REJECTED_STREAM}": client.xlen(REJECTED_STREAM),
        "VALID request_id NOT READ": expected.unread_ids,
        "UNEXPECTED ERRORS OF A PARSER": len(expected.crashes),
        "DEAD LETTERS": len(stack.dead_letters()),
        "SENTINEL CHANGED": sentinel.changed(),
        "RESTARTED PROCESSES": restarts(stack).total(),
        "TRACEBACKS IN THE LOGS": sum(number.total() for number in tracebacks(stack).values()),
    }


def _of_good_requests(workload: Workload, responses: Mapping[str, Sequence[Response]]) -> dict[str, float]:
    good = workload.expected.good
    answered = {mark: responses[mark] for mark in good if mark in responses}
    ms = {mark: (found[0].received_at - good[mark]) * 1000 for mark, found in answered.items()}
    times: dict[str, float] = {}
    for kind in sorted(set(workload.good_kinds.values())):
        of_kind = [one for mark, one in ms.items() if workload.good_kinds[mark] == kind]
        times |= {f"  {kind}, ms, {name}": value for name, value in percentiles(of_kind, (0.5, 0.99)).items()}
        times[f"  {kind}, ms, max"] = max(of_kind, default=float("nan"))
    return {
        "good requests": len(good),
        "  answered": len(answered),
        "  with an error": sum(any(one.error for one in found) for found in answered.values()),
        **times,
        f"  later than {LATE_MS} ms": sum(one > LATE_MS for one in ms.values()),
        "  NOT ANSWERED": len(good) - len(answered),
    }


def _remembered(stack: Stack) -> set[str]:
    """The marks in the contents of all memories."""
    with psycopg.connect(stack.database_url) as connection:
        contents = connection.execute("SELECT content FROM memories WHERE content ~ '(good|bad)-'").fetchall()
    return {mark for (content,) in contents for mark in MARK.findall(content)}


def _counters(stack: Stack) -> Counter[str]:
    client: Any = stack.connect()
    return Counter({name.decode(): int(count) for name, count in client.hgetall(COUNTERS).items()})


def _is_internal(response: Response) -> bool:
    return (response.error or "").startswith("internal")


def show_findings(stack: Stack, workload: Workload, responses: Mapping[str, Sequence[Response]]) -> None:
    """Print an example of each finding."""
    internal: dict[str, str] = {}
    for request_id, found in responses.items():
        for response in filter(_is_internal, found):
            internal.setdefault(str(response.error), request_id)
    for error, request_id in internal.items():
        print(f"  {error}: {workload.expected.examples.get(request_id, b'?')[:300]!r}")
    for letter in map(json.loads, stack.dead_letters()[:MAX_SHOWN]):
        options = letter.get("options", {})
        print(f"  dead letter of {letter.get('actor_name')}: {options.get('error')} {str(letter.get('kwargs'))[:300]}")
    for text in workload.expected.crashes[:MAX_SHOWN]:
        print(f"  {text}")
    show_tracebacks(tracebacks(stack))


def measure(stack: Stack, n: int, seed: int, rate: float) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The figures, and the memory of each process in MB."""
    sentinel, workload = Sentinel(stack), Workload(stack, seed)
    listener = ResponseListener(stack.redis_url, stack.settings.ltm_responses_channel, clock=time.monotonic)
    listener.start()
    before = _counters(stack)
    # A process grows at its first message of each kind; after a tenth of the run it has had most kinds.
    steps = [0, n // 10, n // 2, n]
    memory: dict[str, dict[str, float]] = {}
    for first, last in pairwise(steps):
        workload.send(range(first, last), rate)
        took, left = stack.wait_until_idle(IDLE_WITHIN_S)
        print(f"  {last} sent, idle after {took:.1f} s {left or ''}", flush=True)
        for name, figures in memory_by_process(stack).items():
            memory.setdefault(name, {}).update({f"{kind} after {last}": figures[kind] for kind in ("rss", "uss")})
    results = verify(stack, workload, listener.by_request, sentinel, _counters(stack) - before)
    listener.stop()
    show_findings(stack, workload, listener.by_request)
    return results, memory


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20_000, help="how many messages")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=50.0, help="messages a second")
    parser.add_argument("--logs", type=Path, help="keep the logs here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    print(f"seed {given.seed}, {given.n} messages at {given.rate:.0f} a second", flush=True)
    with running_stack(
        without=(CHAT, GATEWAY), durable=True, keep_logs=given.logs, MEMORY_MAX_MESSAGES="100000"
    ) as stack:
        figures, memory = measure(stack, given.n, given.seed, given.rate)
    show("results", {name: {"": value} for name, value in figures.items()}, 0)
    show("megabytes of each process, when idle", memory, 1)
    write_json(given.json, {"figures": figures, "memory": memory})


if __name__ == "__main__":
    main()
