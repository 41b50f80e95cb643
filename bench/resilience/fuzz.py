"""Does anything give way to malformed, hostile and huge input? `python -m bench.resilience.fuzz [--n 20000] [--seed
N]`.

Starts the stack on real servers and sends such messages to the list of requests, the channel of updates and the list of
the memory service, every 20th of them a good one. It measures: the exit code is 0 whatever it finds.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import COUNTERS, REJECTED_STREAM, conversation_key, parse_request, parse_update

from adapters.memory_updates import says_logged
from bench.harness.common import quantile, show, write_json
from bench.resilience.faultlib import Ear, Pusher, Stack, running_stack, show_tracebacks
from bench.resilience.fuzzing import INPUTS, REQUESTS, UPDATES, Target, draw, huge
from services.memory.messages import parse_user_input
from services.runtime.queues import NAMESPACE, QUEUES
from services.runtime.redis import connect
from services.stack.probe import client_of

GOOD_EVERY = 20
#: Of so many bad ones, one is of 1 to 20 MB.
HUGE_EVERY = 2_000
HUGE_BYTES = (1_100_000, 20_000_000)
LATE_MS = 1_000
QUIET_WITHIN_S = 60.0
SENTINEL = "sentinel"
SHARES = ((REQUESTS, 60), (UPDATES, 20), (INPUTS, 20))
_MARK = re.compile(r"\b(?:good|bad)-\d{6}\b")


@dataclass
class Expected:
    """What should come of what was sent.

    Args:
        good: when each good request was pushed, by its request_id, on the monotonic clock.
        errors, answers: how often each readable request_id is to be answered, with an error and either way.
        kept: by user and id, the marks in the contents of messages that are to become a memory; those that share an id
            become one.
        rejected: how many are to be rejected.
        strange: bad messages that the contract's own reader stumbled over, with the error.
        unread: JSON objects with a fit request_id that the contract did not read.
        examples: one message by request_id.
    """

    good: dict[str, float] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    kept: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    rejected: int = 0
    strange: list[str] = field(default_factory=list)
    unread: int = 0
    examples: dict[str, bytes] = field(default_factory=dict)

    def request(self, raw: bytes, max_chars: int) -> None:
        """Note what is to come of a request."""
        try:
            request_id: str | None = parse_request(raw, max_chars).request_id
        except InvalidMessage as error:
            request_id = error.request_id
            if request_id is None:
                self.rejected += 1
                self.unread += _has_fit_id(raw)
                return
            self.errors[request_id] += 1
        assert request_id is not None
        self.answers[request_id] += 1
        self.examples[request_id] = raw

    def message(self, target: Target, raw: bytes, max_chars: int) -> None:
        """Note what is to come of an update or an input."""
        try:
            if target is UPDATES:
                if says_logged(raw):
                    return  # whoever says so has written it to the log
                message = parse_update(raw, max_chars)
            else:
                message = parse_user_input(raw, max_chars)
        except InvalidMessage:
            self.rejected += 1
        else:
            marks = _MARK.findall(message.content)
            if marks:
                self.kept.setdefault((message.user_id, message.message_id or marks[0]), set()).update(marks)

    def forgotten(self, remembered: set[str], kind: str) -> int:
        """How many of what was to become a memory did not, of the good or of the bad."""
        return sum(not marks & remembered for marks in self.kept.values() if any(m.startswith(kind) for m in marks))


def _has_fit_id(raw: bytes) -> bool:
    try:
        value = json.loads(raw.decode())
    except (ValueError, RecursionError):
        return False
    found = value.get("request_id") if isinstance(value, dict) else None
    return (isinstance(found, str) and bool(found.strip())) or type(found) is int


class Sender:
    """Sends good and bad messages at a steady rate, and notes what is to come of them."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self._rng = random.Random(seed)
        self._pusher = Pusher(stack.redis_url, threading.Event())
        settings = stack.settings
        self._max_chars = settings.ltm_max_content_chars
        self._command = {
            REQUESTS.name: ("LPUSH", settings.ltm_requests_queue),
            UPDATES.name: ("PUBLISH", settings.memory_updates_channel),
            INPUTS.name: ("LPUSH", settings.user_input_queue),
        }
        self.expected = Expected()
        self.kinds: Counter[str] = Counter()
        self.good_kinds: dict[str, str] = {}

    def send(self, numbers: range, rate: float) -> None:
        """Send those of these numbers."""
        begun = time.monotonic()
        for number in numbers:
            time.sleep(max(0.0, begun + (number - numbers.start) / rate - time.monotonic()))
            [target] = self._rng.choices([target for target, _ in SHARES], [share for _, share in SHARES])
            if number % GOOD_EVERY == 0:
                self._good(target, f"good-{number:06d}")
            else:
                self._bad(target, f"bad-{number:06d}", number)

    def _good(self, target: Target, mark: str) -> None:
        raw = json.dumps(target.model(self._rng, mark)).encode()
        if target is REQUESTS:
            kind = json.loads(raw)["type"]
            self.good_kinds[mark] = "writes" if kind in ("add", "profile_update") else "searches and profile_gets"
            self.expected.good[mark] = time.monotonic()
        else:
            self.expected.message(target, raw, self._max_chars)
        self._push(target, raw, "good")

    def _bad(self, target: Target, mark: str, number: int) -> None:
        if number % HUGE_EVERY == 1:
            raw = huge(self._rng, target, mark, self._rng.randint(*HUGE_BYTES))
        else:
            raw = draw(self._rng, target, mark)
        try:
            if target is REQUESTS:
                self.expected.request(raw, self._max_chars)
            else:
                self.expected.message(target, raw, self._max_chars)
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            self.expected.strange.append(f"{target.name}: {error!r} of {raw[:200]!r}")
        self._push(target, raw, "bad")

    def _push(self, target: Target, raw: bytes, kind: str) -> None:
        self.kinds[f"{kind} {target.name}"] += 1
        self._pusher.do(*self._command[target.name], raw)


class Sentinel:
    """A user of whom nobody else may change anything."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        with client_of(stack.settings) as client:
            for number in range(5):
                client.add(SENTINEL, f"Secret {number} of the sentinel.", deadline_ms=10_000)
            client.profile_update(SENTINEL, {"name": "Sentinel", "secret": 42}, deadline_ms=10_000)
        said = json.dumps({"user_id": SENTINEL, "content": "Said by the sentinel."})
        connect(stack.redis_url).lpush(stack.settings.user_input_queue, said)
        stack.wait_for_quiet(30)
        self._before = self._state()

    def _state(self) -> list[Any]:
        client: Any = connect(self._stack.redis_url)
        with psycopg.connect(self._stack.database_url) as connection:
            memories = connection.execute(
                "SELECT m.* FROM memories m JOIN users u ON u.number = user_number WHERE user_id = %s ORDER BY number",
                (SENTINEL,),
            ).fetchall()
            profile = connection.execute("SELECT * FROM profiles WHERE user_id = %s", (SENTINEL,)).fetchall()
            history = connection.execute("SELECT * FROM profile_history WHERE user_id = %s", (SENTINEL,)).fetchall()
        return [memories, profile, history, client.lrange(conversation_key(SENTINEL), 0, -1)]

    def changed(self) -> bool:
        """Whether anything of it is not as it was, or there was nothing to begin with."""
        return self._state() != self._before or not all(self._before)


def dead_letters(stack: Stack) -> list[dict[str, Any]]:
    """What failed for good."""
    client: Any = connect(stack.redis_url)
    return [json.loads(raw) for queue in QUEUES for raw in client.hvals(f"{NAMESPACE}:{queue}.XQ.msgs")]


def remembered(stack: Stack) -> set[str]:
    """The marks in the contents of all memories."""
    with psycopg.connect(stack.database_url) as connection:
        contents = connection.execute("SELECT content FROM memories WHERE content ~ '(good|bad)-'").fetchall()
    return {mark for (content,) in contents for mark in _MARK.findall(content)}


def judge(stack: Stack, sender: Sender, ear: Ear, sentinel: Sentinel, rejected_before: int) -> dict[str, float]:
    """The figures by name."""
    expected, answers = sender.expected, ear.answers
    heard = {mark: answers[mark] for mark in expected.good if mark in answers}
    ms = {mark: (heard[mark][0].at - pushed) * 1000 for mark, pushed in expected.good.items() if mark in heard}
    times: dict[str, float] = {}
    for kind in sorted(set(sender.good_kinds.values())):
        of_kind = [one for mark, one in ms.items() if sender.good_kinds[mark] == kind]
        times |= {f"  {kind}, ms, p{share * 100:.0f}": quantile(of_kind, share) for share in (0.5, 0.99)}
        times[f"  {kind}, ms, max"] = max(of_kind, default=float("nan"))
    answered = {request_id: len(found) for request_id, found in answers.items() if request_id not in expected.good}
    answered_with_error = Counter(
        request_id for request_id in answered for answer in answers[request_id] if answer.error is not None
    )
    kept = remembered(stack)
    client: Any = connect(stack.redis_url)
    return {
        "good requests": len(expected.good),
        "  answered": len(heard),
        "  with an error": sum(any(answer.error for answer in found) for found in heard.values()),
        **times,
        f"  later than {LATE_MS} ms": sum(one > LATE_MS for one in ms.values()),
        "  NOT ANSWERED": len(expected.good) - len(heard),
        "good messages": sum(
            number for kind, number in sender.kinds.items() if kind in ("good updates", "good inputs")
        ),
        "  NOT REMEMBERED": expected.forgotten(kept, "good"),
        "bad requests with a readable request_id": expected.errors.total(),
        "  answered with an error": sum(
            min(number, answered_with_error[request_id]) for request_id, number in expected.errors.items()
        ),
        "  NOT ANSWERED ": sum(
            max(0, number - answered_with_error[request_id]) for request_id, number in expected.errors.items()
        ),
        "strange requests that are valid all the same": (expected.answers - expected.errors).total(),
        "  NOT ANSWERED  ": (expected.answers - Counter(answered)).total(),
        "ANSWERED THOUGH NOBODY ASKED, OR TWICE": (Counter(answered) - expected.answers).total(),
        "ANSWERED WITH internal": sum(
            (answer.error or "").startswith("internal") for found in answers.values() for answer in found
        ),
        "strange messages that are valid all the same, NOT REMEMBERED": expected.forgotten(kept, "bad"),
        "to be rejected": expected.rejected,
        "  counted as rejected": int(client.hget(COUNTERS, "rejected") or 0) - rejected_before,
        f"  kept in {REJECTED_STREAM}": client.xlen(REJECTED_STREAM),
        "FIT request_id NOT READ": expected.unread,
        "THE CONTRACT'S READER STUMBLED": len(expected.strange),
        "DEAD LETTERS": len(dead_letters(stack)),
        "SENTINEL CHANGED": sentinel.changed(),
        "PROCESSES THAT DIED": stack.deaths().total(),
        "TRACEBACKS IN THE LOGS": sum(number.total() for number in stack.tracebacks().values()),
    }


def show_strange(stack: Stack, sender: Sender, ear: Ear) -> None:
    """Print an example of each kind of what should not be."""
    internal: dict[str, str] = {}
    for request_id, found in ear.answers.items():
        for answer in found:
            if (answer.error or "").startswith("internal"):
                internal.setdefault(str(answer.error), request_id)
    for error, request_id in internal.items():
        print(f"  {error}: {sender.expected.examples.get(request_id, b'?')[:300]!r}")
    for letter in dead_letters(stack)[:10]:
        options = letter.get("options", {})
        print(f"  dead letter of {letter.get('actor_name')}: {options.get('error')} {str(letter.get('kwargs'))[:300]}")
    for text in sender.expected.strange[:10]:
        print(f"  {text}")
    show_tracebacks(stack.tracebacks())


def measure(stack: Stack, n: int, seed: int, rate: float) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The figures, and the memory of each process."""
    sentinel, sender = Sentinel(stack), Sender(stack, seed)
    ear = Ear(stack.redis_url, stack.settings.ltm_responses_channel, lambda _: None)
    ear.start()
    ear.listening.wait(timeout=10)
    client: Any = connect(stack.redis_url)
    rejected_before = int(client.hget(COUNTERS, "rejected") or 0)
    # What has not served anything yet grows as it begins to; after a tenth it has seen a bit of everything.
    steps = [0, n // 10, n // 2, n]
    memory: dict[str, dict[str, float]] = {}
    for first, last in pairwise(steps):
        sender.send(range(first, last), rate)
        took, left = stack.wait_for_quiet(QUIET_WITHIN_S)
        print(f"  {last} sent, quiet after {took:.1f} s {left or ''}", flush=True)
        for name, figures in stack.memory().items():
            memory.setdefault(name, {}).update({f"{kind} after {last}": value for kind, value in figures.items()})
    figures = judge(stack, sender, ear, sentinel, rejected_before)
    ear.stop()
    show_strange(stack, sender, ear)
    return figures, memory


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
    with running_stack(keep=given.logs, MEMORY_MAX_MESSAGES="100000") as stack:
        figures, memory = measure(stack, given.n, given.seed, given.rate)
    show("what came of it", {name: {"": value} for name, value in figures.items()}, 0)
    show("megabytes of each process, when all was quiet", memory, 1)
    write_json(given.json, {"figures": figures, "memory": memory})


if __name__ == "__main__":
    main()
