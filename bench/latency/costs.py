"""What a search, a message and a turn cost: CPU time of each process, bytes in Redis, in PostgreSQL and on the network.

`python -m bench.latency.costs [--searches N] [--messages M] [--turns T] [--memories-per-user K …] [--json PATH]`

One stack, one kind of work after the other; CPU time is that of each process with its children, as the operating system
counts it, before and after, so it includes what a process does while idle. Searches are sent at a fixed rate and have
words of their own, so that each is embedded; once for users with each of the given numbers of memories. Messages are
published all at once. Turns go through `user_input_queue`, the memory service and chat-ai with its built-in replier:
the costs of these two are read there, and those of the gateway from searches by HTTP.

These are the figures of services/stack/costs.py; docs/capacity.md has the model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis
from keepsake_client.protocol import TRACES_STREAM, conversation_key
from keepsake_client.turns import TURNS_STREAM

from bench.harness.http_load import Call, HTTPLoad
from bench.harness.load import Load
from bench.harness.memory_usage import memory_by_process
from bench.harness.stack import LTM_UP, Stack, running_stack
from bench.harness.tables import show, write_json
from bench.harness.texts import TextGenerator
from bench.harness.workload import backlog, past_messages, run_with_progress, search_event, user_id
from services.long_term_memory.factory import open_long_term_memory
from services.runtime.queues import INDEX_QUEUE, QueueKeys
from services.stack.processes import INDEXER

#: The most users that search, and the memories that all of them have, at most.
SEARCHING_USERS, THEIR_MEMORIES = 20, 8_000
#: How many are stored at once.
BATCH = 50
IDLE_S = 10.0


def cpu_s(pid: int) -> float:
    """The CPU time that a process, its children and those that have ended took, in seconds."""
    process = psutil.Process(pid)
    times = [process.cpu_times(), *(child.cpu_times() for child in process.children(recursive=True))]
    return sum(one.user + one.system for one in times) + times[0].children_user + times[0].children_system


class Meter:
    """Reads what a stack has used so far."""

    def __init__(self, stack: Stack) -> None:
        pids = stack.pids()
        self._pids = {name: pid for name, pid in pids.items() if name != LTM_UP}
        self._client = stack.connect()
        self._database = psycopg.connect(stack.database_url, autocommit=True)
        self._began = time.monotonic()

    def read(self) -> dict[str, float]:
        """Milliseconds of CPU by process, bytes of Redis's network and of PostgreSQL's log, and the time."""
        info: Any = self._client.info()
        row = self._database.execute("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn").fetchone()
        return {
            **{f"{name}, ms": 1000 * cpu_s(pid) for name, pid in self._pids.items()},
            "to Redis, bytes": info["total_net_input_bytes"],
            "from Redis, bytes": info["total_net_output_bytes"],
            "WAL, bytes": float(row[0]) if row else 0.0,
            "seconds": time.monotonic() - self._began,
        }


@contextmanager
def metered(meter: Meter, idle: dict[str, float], number: int, into: dict[str, float]) -> Iterator[None]:
    """Write what the block used for each of `number`, without what an idle stack uses in that time, `into`."""
    before = meter.read()
    yield
    after = meter.read()
    seconds = after["seconds"] - before["seconds"]
    for name in before:
        if name != "seconds":
            into[name] = (after[name] - before[name] - idle.get(name, 0.0) * seconds) / number
    into["number"] = number


def measure(given: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """All costs: of the kinds of work, of what waits in Redis and is kept there, of a memory, and of each process."""
    texts = TextGenerator(given.seed)
    figures: dict[str, dict[str, float]] = {}
    bytes_of: dict[str, dict[str, float]] = {}
    with running_stack(without=(), durable=True, forked=False, LTM_INTERACTIVE_PROCESSES="1") as stack:
        meter = Meter(stack)
        idle = figures["idle, a second"] = {}
        with metered(meter, {}, 1, idle):
            time.sleep(IDLE_S)
        idle.update({name: value / IDLE_S for name, value in idle.items()})
        users = range(0)
        for memories in given.memories_per_user:
            users = range(users.stop, users.stop + max(2, min(SEARCHING_USERS, THEIR_MEMORIES // memories)))
            _remember(stack, users, memories, texts)
            kind = figures[f"a search of {memories} memories"] = {}
            with metered(meter, idle, given.searches, kind):
                _search(stack, users, given.searches, given.rate, texts)
        kind = figures["a search by HTTP"] = {}
        with metered(meter, idle, given.searches, kind):
            _search_by_http(stack, given.searches, given.rate, texts)
        kind = figures["a message"] = {}
        with metered(meter, idle, given.messages, kind):
            _publish(stack, backlog(given.messages, given.messages // 10, texts))
            stack.wait_until_indexed()
        bytes_of["a waiting message"] = _waiting(stack, given.messages, texts)
        kind = figures["a turn"] = {}
        with metered(meter, idle, given.turns, kind):
            _converse(stack, given.turns, texts)
        bytes_of["kept in Redis"] = _kept(stack)
        bytes_of["a memory"] = _of_a_memory(stack)
        memory = memory_by_process(stack)
    return {"costs": figures, "bytes": bytes_of, "megabytes": memory}


def _remember(stack: Stack, users: range, memories: int, texts: TextGenerator) -> None:
    """Give each of these users so many memories."""
    ltm = open_long_term_memory(stack.settings, connections=2)
    try:
        for user in users:
            updates = [one.model_copy(update={"user_id": user_id(user)}) for one in past_messages(1, memories, texts)]
            for begin in range(0, memories, BATCH):
                ltm.memories.index_many(updates[begin : begin + BATCH])
    finally:
        ltm.close()


def _search(stack: Stack, users: range, searches: int, rate: float, texts: TextGenerator) -> None:
    asking = [users[n % len(users)] for n in range(searches)]
    events = [search_event(n / rate, user, texts.query(user), 5_000) for n, user in enumerate(asking)]
    run_with_progress(Load(stack.wire, events), "searches")


def _search_by_http(stack: Stack, searches: int, rate: float, texts: TextGenerator) -> None:
    calls = [
        Call(
            "search",
            n / rate,
            "/v1/memories/search",
            {"user_id": user_id(n % SEARCHING_USERS), "query": texts.query(n % SEARCHING_USERS), "deadline_ms": 5_000},
        )
        for n in range(searches)
    ]
    HTTPLoad(stack.ltm_up.gateway_url, calls).answers()


def _publish(stack: Stack, bodies: Sequence[str]) -> None:
    """Publish messages all at once, and wait until they are in the stream."""
    with stack.connect() as client, client.pipeline(transaction=False) as pipeline:
        written = client.xlen(stack.settings.ltm_stream_key)
        for body in bodies:
            pipeline.publish(stack.wire.updates, body)
        pipeline.execute()
        while client.xlen(stack.settings.ltm_stream_key) < written + len(bodies):
            time.sleep(0.2)


def _waiting(stack: Stack, messages: int, texts: TextGenerator) -> dict[str, float]:
    """What messages take of Redis that wait while the indexer is stopped."""
    indexer = psutil.Process(stack.pids()[INDEXER])
    bodies, stream = backlog(messages, messages // 10, texts), stack.settings.ltm_stream_key
    with stack.connect() as client:
        before: Any = client.info("memory")
        indexer.suspend()
        try:
            _publish(stack, bodies)
            after: Any = client.info("memory")
            queued: Any = client.hlen(QueueKeys(INDEX_QUEUE).messages)
            figures = {
                "as it is published": sum(len(body.encode()) for body in bodies) / messages,
                "in the stream": _usage(client, stream) / int(client.xlen(stream)),
                "on the queue": _usage(client, QueueKeys(INDEX_QUEUE).messages) / queued,
                "of Redis's memory": (after["used_memory"] - before["used_memory"]) / messages,
            }
        finally:
            indexer.resume()
        stack.wait_until_indexed()
    return figures


def _converse(stack: Stack, turns: int, texts: TextGenerator) -> None:
    """Have `turns` messages answered by chat-ai."""
    with stack.connect() as client, client.pubsub() as replies:
        replies.subscribe(stack.settings.ai_responses_channel)
        for n in range(turns):
            said = {"user_id": f"turn-user-{n % SEARCHING_USERS}", "content": texts.statement(n), "task_id": f"t{n}"}
            client.lpush(stack.settings.user_input_queue, json.dumps(said))
        left, until = turns, time.monotonic() + 120
        while left and time.monotonic() < until:
            message = replies.get_message(ignore_subscribe_messages=True, timeout=1)
            left -= message is not None
    stack.wait_until_indexed()


def _kept(stack: Stack) -> dict[str, float]:
    """Bytes of what Redis keeps for a while, each."""
    with stack.connect() as client:
        conversation = conversation_key("turn-user-0")
        return {
            "a message of a conversation": _usage(client, conversation) / client.llen(conversation),
            "a trace record": _usage(client, TRACES_STREAM) / client.xlen(TRACES_STREAM),
            "a turn record": _usage(client, TURNS_STREAM) / client.xlen(TURNS_STREAM),
        }


def _usage(client: redis.Redis, key: str) -> float:
    return float(client.memory_usage(key, samples=0) or 0)


def _of_a_memory(stack: Stack) -> dict[str, float]:
    """Bytes of one memory: what it takes of the disk, by table and index, and what a search reads of it."""
    with psycopg.connect(stack.database_url) as connection:
        rows = _one(connection, "SELECT count(*) FROM memories")
        return {
            "table": _one(connection, "SELECT pg_table_size('memories')") / rows,
            "indexes": _one(connection, "SELECT pg_indexes_size('memories')") / rows,
            "all relations": _one(
                connection,
                "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class"
                " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace",
            )
            / rows,
            "read by a search": _one(
                connection, "SELECT sum(octet_length(head) + octet_length(terms) + 8) FROM memories"
            )
            / rows,
        }


def _one(connection: psycopg.Connection[Any], query: str) -> int:
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=600)
    parser.add_argument("--rate", type=float, default=40.0, help="searches a second")
    parser.add_argument("--messages", type=int, default=3_000)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--memories-per-user", type=int, nargs="+", default=[100, 2_000])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    figures = measure(given)
    names = figures["costs"]["a message"]
    show("costs", {name: {kind: of[name] for kind, of in figures["costs"].items()} for name in names}, 3)
    for what, of in figures["bytes"].items():
        show(what, {name: {"bytes": value} for name, value in of.items()}, 0)
    show("memory", figures["megabytes"], 0)
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
