"""Messages and searches while an LLM is well, down, hangs or answers wrongly, side by side with none.

`python -m bench.resilience.provider_outage [--outage-seconds 120] [--seconds 60] [--json PATH]`

Two stacks, with an LLM and without one, get the same messages and searches at the same moments, so what the machine
does besides falls on both. The LLM is a server of this benchmark on a port of its own: it is well, then closed for
`--outage-seconds`, then it hangs, answers 401, and answers rubbish, `--seconds` each; between them it is well until
everything has been read. Each message is timed from its PUBLISH until its row is visible, which is when any search
finds it. In the end every message must be stored once, and be evidence of exactly the facts that its rules give.

Time passes faster for what waits for the LLM (`bench.harness.extraction`), so there are more calls than in practice.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg
from rich.console import Console

from bench.harness.extraction import OutboxClock, llm_settings, wait_until_read
from bench.harness.llm_server import RULES, Behaviour, Hang, LLMServer, Status
from bench.harness.load import UPDATE, Event, Load, poisson
from bench.harness.outcomes import Outcome
from bench.harness.stack import Stack, running_stack
from bench.harness.statistics import percentiles
from bench.harness.tables import show, write_json
from bench.harness.texts import TextGenerator
from bench.harness.workload import message, run_with_progress, search_event
from bench.latency.indexing import IDLE_S, RowWatcher
from bench.resilience.llm_faults import Rubbish
from bench.resilience.statements import read_facts, statement, verify_facts

#: What is promised of every message, whatever the LLM does.
SEARCHABLE_WITHIN_MS: Final = 1_000
WARM_UP_S: Final = 10.0
DEADLINE_MS: Final = 10_000
WITH, WITHOUT = "with an LLM", "without"
#: None: the port is closed.
STATES: Final[dict[str, Callable[[], Behaviour] | None]] = {
    "well": lambda: RULES,
    "down": None,
    "hangs": Hang,
    "answers 401": lambda: Status(401),
    "answers rubbish": Rubbish,
}


@dataclass
class Measured:
    """What was measured of one stack in one state of the LLM."""

    searchable: list[float]
    searches: list[Outcome]
    never_seen: int
    latencies: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.latencies = [one.ms for one in self.searches if one.ms is not None]


class Events:
    """The messages and searches of a run; no message comes twice."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._rng = random.Random(given.seed)
        self._texts = TextGenerator(given.seed)
        self._given = given
        self._number = 0

    def next(self, seconds: float) -> list[Event]:
        """Those of the next so many seconds."""
        events = []
        for due in poisson(self._given.messages_rate, seconds, self._rng):
            body = message(self._rng.randrange(self._given.users), self._number, statement(self._number))
            events.append(Event(due, UPDATE, json.dumps({**body, "source": "user"}, ensure_ascii=False)))
            self._number += 1
        for due in poisson(self._given.searches_rate, seconds, self._rng):
            user = self._rng.randrange(self._given.users)
            events.append(search_event(due, user, self._texts.query(user), DEADLINE_MS))
        return events


def side_by_side(stacks: dict[str, Stack], events: Sequence[Event], label: str) -> dict[str, Measured]:
    """The same load on all stacks at the same time."""
    watchers = {name: RowWatcher(stack.database_url) for name, stack in stacks.items()}
    for watcher in watchers.values():
        watcher.start()
    loads = {name: Load(stack.wire, events) for name, stack in stacks.items()}
    results = {name: run_with_progress(load, label) for name, load in loads.items()}
    measured = {}
    for name, result in results.items():
        watcher, until = watchers[name], time.monotonic() + IDLE_S
        while not result.published.keys() <= watcher.seen.keys() and time.monotonic() < until:
            time.sleep(0.1)
        watcher.done.set()
        watcher.join()
        took = [(watcher.seen[one] - at) * 1000 for one, at in result.published.items() if one in watcher.seen]
        measured[name] = Measured(took, result.outcomes, len(result.published) - len(took))
    return measured


def measure(stacks: dict[str, Stack], given: argparse.Namespace, port: int) -> dict[str, dict[str, Measured]]:
    """By state of the LLM, and by stack."""
    events, measured = Events(given), {}
    clock = OutboxClock(stacks[WITH].database_url, lambda: well)
    well = True
    clock.start()
    try:
        with LLMServer(port=port):
            side_by_side(stacks, events.next(WARM_UP_S), "warming up")
        for state, behaviour in STATES.items():
            well = state == "well"
            seconds = given.outage_seconds if behaviour is None else given.seconds
            with LLMServer(behaviour(), port) if behaviour else nullcontext() as server:
                measured[state] = side_by_side(stacks, events.next(seconds), f"the LLM: {state}")
                calls = server.calls if server else 0
            well = True
            begun = time.monotonic()
            with LLMServer(port=port):
                wait_until_read(stacks[WITH].database_url)
            print(f"{state}: {calls} calls; everything read {time.monotonic() - begun:.0f} s after its end", flush=True)
    finally:
        clock.stop()
    return measured


def rows(measured: dict[str, dict[str, Measured]]) -> dict[str, dict[str, float]]:
    """The figures by state of the LLM, and those of all states together."""
    table = {state: _row(by_stack[WITH], by_stack[WITHOUT]) for state, by_stack in measured.items()}
    table["all"] = _row(
        *(
            Measured(
                [ms for by_stack in measured.values() for ms in by_stack[name].searchable],
                [one for by_stack in measured.values() for one in by_stack[name].searches],
                sum(by_stack[name].never_seen for by_stack in measured.values()),
            )
            for name in (WITH, WITHOUT)
        )
    )
    return table


def _row(llm: Measured, none: Measured) -> dict[str, float]:
    searchable, without = percentiles(llm.searchable), percentiles(none.searchable)
    searches, bare = percentiles(llm.latencies), percentiles(none.latencies)
    return {
        "messages": len(llm.searchable),
        "never seen": llm.never_seen,
        "searchable p99": searchable["p99"],
        "max": max(llm.searchable),
        "without p99": without["p99"],
        "without max": max(none.searchable),
        "searches": len(llm.searches),
        "failed": len(llm.searches) - len(llm.latencies),
        "search p50": searches["p50"],
        "p99": searches["p99"],
        "without p50": bare["p50"],
        "without p99 ": bare["p99"],
        "p50 ratio": searches["p50"] / bare["p50"],
        "p99 ratio": searches["p99"] / bare["p99"],
    }


def stored_twice(stack: Stack) -> int:
    """How many messages are stored more than once."""
    query = (
        "SELECT payload ->> 'message_id' FROM memories JOIN users u ON u.number = user_number WHERE kind = 'message'"
    )
    with psycopg.connect(stack.database_url) as connection:
        ids = Counter(message_id for (message_id,) in connection.execute(query))
    return sum(number > 1 for number in ids.values())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outage-seconds", type=float, default=120.0, help="how long the LLM is down")
    parser.add_argument("--seconds", type=float, default=60.0, help="each of the other states")
    parser.add_argument("--messages-rate", type=float, default=2.0, help="messages a second, on each stack")
    parser.add_argument("--searches-rate", type=float, default=4.0, help="searches a second, on each stack")
    parser.add_argument("--users", type=int, default=30)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--logs", type=Path, help="keep the logs of the stack with an LLM here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    with ExitStack() as context:
        with LLMServer() as server:  # for its port, which is free again
            port, settings = server.server_port, llm_settings(server)
        stacks = {
            WITHOUT: context.enter_context(running_stack(durable=True)),
            WITH: context.enter_context(running_stack(durable=True, keep_logs=given.logs, forked=True, **settings)),
        }
        table = rows(measure(stacks, given, port))
        facts = verify_facts(read_facts(stacks[WITH].database_url))
        facts["  MESSAGES STORED TWICE"] = sum(stored_twice(stack) for stack in stacks.values())
    show("the LLM; publish -> searchable and searches in ms", table, 1)
    show("stored in the end", {name: {"": figure} for name, figure in facts.items()}, 0)
    slowest = table["all"]["max"]
    line = f"{'yes' if slowest <= SEARCHABLE_WITHIN_MS else 'NO ':<4} publish -> searchable, at most: {slowest:.0f} ms"
    Console(soft_wrap=True).print(f"\n{line} (target: <= {SEARCHABLE_WITHIN_MS} ms)", markup=False, highlight=False)
    write_json(given.json, {"states": table, "stored": facts})


if __name__ == "__main__":
    main()
