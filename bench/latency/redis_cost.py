"""What a search and an indexed message cost the one Redis: `python -m bench.latency.redis_cost [--json PATH]`.

Starts a stack (or takes `--redis-url`, with DATABASE_URL) and compares Redis's own counts, of commands (INFO
commandstats) and of CPU time of its main thread (INFO cpu), over a time without load, one with searches and one with
messages. Less what the stack costs without load, they give the rate at which one core of Redis is full. A machine that
is busy otherwise makes them higher, most of all those of a message: what waits is looked after again and again.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness.load import Event, Load, poisson
from bench.harness.stack import Stack, stack_at
from bench.harness.tables import show, write_json
from bench.harness.texts import TextGenerator
from bench.harness.workload import message_event, run_with_progress, search_event

#: A search must be answered in that time, or the cost is of an overload.
DEADLINE_MS = 2_000


@dataclass(frozen=True)
class Usage:
    """What Redis had executed by a moment, in all.

    Args:
        commands: by name.
        cpu_s: CPU time of its main thread.
    """

    at: float
    commands: dict[str, int]
    cpu_s: float


def usage(client: Any) -> Usage:
    """What Redis has executed by now."""
    cpu = client.info("cpu")
    commands = {
        name.removeprefix("cmdstat_"): int(figures["calls"]) for name, figures in client.info("commandstats").items()
    }
    return Usage(time.monotonic(), commands, cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"])


def cost(before: Usage, after: Usage, idle: dict[str, float] | None, number: int) -> dict[str, float]:
    """Commands and CPU time of each of `number` operations, less those of a stack that does nothing meanwhile."""
    seconds = after.at - before.at
    spent = {name: after.commands[name] - before.commands.get(name, 0) for name in after.commands}
    base = idle or {"commands a second": 0.0, "CPU ms a second": 0.0}
    commands = sum(spent.values()) - base["commands a second"] * seconds
    cpu_ms = (after.cpu_s - before.cpu_s) * 1000 - base["CPU ms a second"] * seconds
    if idle is None:
        return {"commands a second": commands / seconds, "CPU ms a second": cpu_ms / seconds}
    return {
        "number": number,
        "commands": commands / number,
        "CPU us": cpu_ms * 1000 / number,
        "a second on one core": 1000 * number / cpu_ms,
    }


def measure(stack: Stack, given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The costs without load, of a search, and of a message."""
    texts, rng = TextGenerator(given.seed), random.Random(given.seed)

    def loaded(label: str, events: list[Event]) -> tuple[Usage, Usage]:
        before = usage(client)
        result = run_with_progress(Load(stack.wire, events), label)
        answered = [outcome.ms for outcome in result.outcomes if outcome.ms is not None]
        if len(answered) < len(result.outcomes):
            raise SystemExit(f"{len(result.outcomes) - len(answered)} searches were not answered: lower --rate")
        stack.wait_until_indexed()
        return before, usage(client)

    with stack.connect() as client:
        stack.wait_until_indexed()
        before = usage(client)
        time.sleep(given.idle_seconds)
        idle = cost(before, usage(client), None, 1)
        figures = {"without load": idle}
        users = [rng.randrange(given.users) for _ in range(10_000)]
        messages = [
            message_event(due, user, number, texts.statement(user))
            for number, (due, user) in enumerate(zip(poisson(given.rate, given.seconds, rng), users, strict=False))
        ]
        figures["a message"] = cost(*loaded("messages", messages), idle, len(messages))
        searches = [
            search_event(due, user, texts.query(user), DEADLINE_MS)
            for due, user in zip(poisson(given.rate, given.seconds, rng), users, strict=False)
        ]
        figures["a search"] = cost(*loaded("searches", searches), idle, len(searches))
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-url", help="of a running stack, with DATABASE_URL; the memories stay there")
    parser.add_argument("--rate", type=float, default=10.0, help="searches, and messages, a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each")
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    with stack_at(given.redis_url) as stack:
        figures = measure(stack, given)
    show("Redis without load", {"": figures.pop("without load")}, 1)
    show("Redis, for each", figures, 1)
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
