"""Searches beside a backlog on RabbitMQ: `python -m bench.latency.rabbitmq_backlog [--messages 1000000] [--nodes 1]`.

Starts nodes of RabbitMQ on hosts made of network namespaces (root, iproute2, rabbitmq-server), and a durable stack on
them whose 20 users have 500 memories each. They search at `--rate` a second: without a backlog; while `--messages` wait
in the index queue and no indexer runs; and while the indexer works on them. It prints what the searches took, how fast
the queue was filled and shrinks, and RabbitMQ's memory and disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
from keepsake_client.protocol import MemoryUpdateMessage

from bench.harness.load import Load, poisson
from bench.harness.outcomes import faults, summary
from bench.harness.stack import Stack, running_stack
from bench.harness.tables import progress_bar, show, write_json
from bench.harness.texts import TextGenerator
from bench.harness.workload import search_event, user_id
from bench.latency.forgetting import OTHERS, fill
from services.runtime.queues import INDEX_QUEUE
from services.runtime.rabbitmq import ManagementApi
from services.stack.processes import CHAT, GATEWAY, INDEXER, MEMORY
from tasks.broker import build_broker
from tasks.queues import index_message
from tasks.rabbitmq_broker import ReportingRabbitmqBroker
from tests.integration.rabbitmq_nodes import RabbitmqNode, rabbitmq_nodes
from tests.network_namespaces import network

BUDGET_MS = 300
#: RabbitMQ's figures are up to five seconds old.
FIGURES_AFTER_S = 6.0
#: Messages that are published one by one, each confirmed; the rest by so many processes, unconfirmed.
CONFIRMED, PUBLISHERS = 10_000, 2
WITHOUT = (CHAT, MEMORY, GATEWAY)


def publish(url: str, messages: int, seed: int, *, confirmed: bool) -> None:
    """Publish messages of many users to the index queue: each confirmed, as adapters do, or as fast as may be."""
    texts, broker = TextGenerator(seed), build_broker(url, [])
    assert isinstance(broker, ReportingRabbitmqBroker)
    broker.confirm_delivery = confirmed
    pool = [texts.statement(0) for _ in range(1_000)]
    for number in range(messages):
        update = MemoryUpdateMessage(
            user_id=user_id(OTHERS + number % 10_000),
            content=f"{pool[number % len(pool)]} {number}",
            source="user",
            timestamp=time.time(),
            message_id=f"{seed}-{number}",
        )
        broker.enqueue(index_message(update, time.time()))
    broker.close()


def fill_queue(url: str, api: ManagementApi, messages: int) -> dict[str, float]:
    """Fill the index queue, the first of it with confirmations; how many a second that was, by one publisher."""
    confirmed = min(messages, CONFIRMED)
    begun = time.monotonic()
    publish(url, confirmed, 0, confirmed=True)
    confirmed_s = time.monotonic() - begun
    rest = (messages - confirmed) // PUBLISHERS
    processes = [
        multiprocessing.Process(target=publish, args=(url, rest, seed), kwargs={"confirmed": False})
        for seed in range(1, PUBLISHERS + 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes)
    with progress_bar() as progress:
        task = progress.add_task("filling the queue", total=messages)
        while (waiting := _waiting(api)) < confirmed + rest * PUBLISHERS:
            progress.update(task, completed=waiting)
            time.sleep(1)
    seconds = time.monotonic() - begun - confirmed_s
    return {"confirmed, a second": confirmed / confirmed_s, "unconfirmed, a second": rest * PUBLISHERS / seconds}


def _waiting(api: ManagementApi) -> int:
    return api.report().depths.get(INDEX_QUEUE, {}).get("waiting", 0)


def searches(stack: Stack, given: argparse.Namespace, texts: TextGenerator) -> list[Any]:
    """The outcomes of searches at a steady rate."""
    moments = poisson(given.rate, given.seconds, random.Random(7))
    events = [
        search_event(due, number % OTHERS, texts.query(number % OTHERS), BUDGET_MS)
        for number, due in enumerate(moments)
    ]
    return list(Load(stack.wire, events).result().outcomes)


def footprint(nodes: list[RabbitmqNode]) -> dict[str, dict[str, float]]:
    """Megabytes of memory and disk of each node."""
    figures = {}
    for node in nodes:
        resident = sum(process.memory_info().rss for process in node.processes())
        disk = sum(file.stat().st_size for file in node.home.rglob("*") if file.is_file())
        figures[node.name] = {"memory MB": resident / 1e6, "disk MB": disk / 1e6}
    return figures


def measure(nodes: list[RabbitmqNode], given: argparse.Namespace) -> dict[str, Any]:
    """All figures, in the order of the report."""
    texts, url = TextGenerator(7), ";".join(node.url for node in nodes)
    found: dict[str, Any] = {"searches": {}, "nodes": {}}

    def searched(label: str, stack: Stack) -> None:
        found["searches"][label] = summary(searches(stack, given, texts), BUDGET_MS)

    def looked(label: str) -> int:
        time.sleep(FIGURES_AFTER_S)
        found["nodes"] |= {f"{label}, {name}": figures for name, figures in footprint(nodes).items()}
        return _waiting(api)

    with running_stack(without=(*WITHOUT, INDEXER), durable=True, BROKER_URL=url) as stack:
        api = ManagementApi(stack.settings, 10.0)
        fill(stack.database_url, 0, texts)
        searches(stack, given, texts)  # warms up
        looked("empty")
        searched("no backlog", stack)
        found["filling"] = fill_queue(url, api, given.messages)
        found["waiting"] = looked("full")
        searched("backlog, no indexer", stack)
    with running_stack(without=WITHOUT, durable=True, BROKER_URL=url) as stack:
        fill(stack.database_url, 0, texts)
        searches(stack, given, texts)
        begun, indexed = time.monotonic(), _memories(stack)
        searched("backlog, indexer at work", stack)
        found["indexed a second"] = (_memories(stack) - indexed) / (time.monotonic() - begun)
        found["left"] = looked("at work")
    return found


def _memories(stack: Stack) -> int:
    with psycopg.connect(stack.database_url) as connection:
        row = connection.execute("SELECT count(*) FROM memories").fetchone()
    assert row is not None
    return int(row[0])


def main() -> None:
    """Start the nodes, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000, help="that wait in the index queue")
    parser.add_argument("--nodes", type=int, default=1, help="of RabbitMQ, one cluster")
    parser.add_argument("--rate", type=float, default=10.0, help="searches a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="for how long they search, each time")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    with ExitStack() as at_exit:
        lab = at_exit.enter_context(network())
        hosts = [lab.host(f"rabbit{number}") for number in range(given.nodes)]
        nodes = at_exit.enter_context(rabbitmq_nodes(hosts))
        at_exit.enter_context(lab.host("stack").entered())
        found = measure(nodes, given)
    show(f"searches, within {BUDGET_MS} ms or late", found["searches"], digits=1)
    show("RabbitMQ", found["nodes"], digits=0)
    print(f"{found['waiting']} waiting; published: {found['filling']}")
    print(f"indexed at {found['indexed a second']:.0f} a second beside the searches; {found['left']} left")
    for label, figures in found["searches"].items():
        print(f"{label}: {faults(figures) or 'none late, partial, failed or twice'}")
    write_json(given.json, found)


if __name__ == "__main__":
    main()
