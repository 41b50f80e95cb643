"""Searches by HTTP beside searches by the wire: `python -m bench.latency.doors [--rate N] [--blocks N] [--json PATH]`.

Starts a stack (or takes `--redis-url`, with DATABASE_URL) and a gateway on it. Searches arrive at the same rate, open
loop, by turns for some seconds over the wire and for as long by HTTP, so that what the machine does besides falls on
both. Queries repeat, so that the workers' caches answer: what is measured is the way, not the embedder.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
from keepsake_client import AsyncClient
from keepsake_client.errors import KeepsakeError, RequestFailed

from bench.harness.load import ROOT, poisson
from bench.harness.stack import stack_at
from bench.harness.statistics import percentiles
from bench.harness.tables import show, track, write_json
from bench.harness.texts import TextGenerator
from bench.harness.workload import past_messages, user_id
from services.long_term_memory.factory import open_long_term_memory
from tests.support import free_port, wait_until

WIRE, HTTP = "wire", "HTTP"
DEADLINE_MS = 2_000
#: Texts of queries, each asked of each user before the measurement begins.
TEXTS = 10
#: One search of this user.
Search = Callable[[str, str], Awaitable[Any]]


class HTTPConnections:
    """Keep-alive connections to the gateway, written by hand: a client library costs more than what is measured."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def search(self, user: str, query: str) -> Any:
        """The answer to a search."""
        body = json.dumps({"user_id": user, "query": query, "deadline_ms": DEADLINE_MS}).encode()
        head = "POST /v1/memories/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        headers = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(headers.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        answer = json.loads(await reader.readexactly(length))
        self._idle.append((reader, writer))
        if not headers.startswith(b"http/1.1 200"):
            raise RequestFailed(f"{answer['code']}: {answer['detail']}")
        return answer

    async def close(self) -> None:
        """Close all that are idle."""
        while self._idle:
            _, writer = self._idle.pop()
            writer.close()
            await writer.wait_closed()


@contextlib.contextmanager
def gateway(redis_url: str) -> Iterator[tuple[int, psutil.Process]]:
    """A gateway on this Redis: its port and its process."""
    port = free_port()
    settings = {"REDIS_URL": redis_url, "LTM_GATEWAY_PORT": str(port), "LTM_GATEWAY_RATE": "0"}
    process = subprocess.Popen([sys.executable, "-m", "services.gateway"], cwd=ROOT, env={**os.environ, **settings})

    def ready() -> bool:
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/readyz"):
            return True
        return False

    try:
        wait_until(ready, description="the gateway to be ready")
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)


async def block(
    search: Search, users: int, rate: float, seconds: float, rng: random.Random, took: list[float]
) -> Counter[str]:
    """Searches at this rate for some seconds; the outcomes. Each is timed from when it was due."""
    texts, outcomes = TextGenerator(1, TEXTS), Counter[str]()
    begun = time.perf_counter()

    async def one(due: float, user: int, query: str) -> None:
        try:
            await search(user_id(user), query)
        except KeepsakeError as error:
            outcomes[error.code] += 1
            return
        took.append((time.perf_counter() - begun - due) * 1000)
        outcomes["ok"] += 1

    async with asyncio.TaskGroup() as tasks:
        for due in poisson(rate, seconds, rng):
            await asyncio.sleep(max(0.0, due - (time.perf_counter() - begun)))
            user = rng.randrange(users)
            tasks.create_task(one(due, user, texts.query(user)))
    return outcomes


async def measured(
    redis_url: str, port: int, given: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, Counter[str]]]:
    """Milliseconds and outcomes of each way, of blocks by turns."""
    rng = random.Random(given.seed)
    connections = HTTPConnections(port)
    took: dict[str, list[float]] = {WIRE: [], HTTP: []}
    outcomes = {WIRE: Counter[str](), HTTP: Counter[str]()}
    async with AsyncClient(redis_url) as client:

        async def by_wire(user: str, query: str) -> Any:
            return await client.request("search", user, {"query": query}, deadline_ms=DEADLINE_MS)

        ways: dict[str, Search] = {WIRE: by_wire, HTTP: connections.search}
        for search in ways.values():
            await block(search, given.users, given.rate / 4, given.seconds, rng, [])
        for _ in track(range(given.blocks), "measuring"):
            for name in rng.sample(list(ways), len(ways)):
                outcomes[name] += await block(ways[name], given.users, given.rate, given.seconds, rng, took[name])
    await connections.close()
    return took, outcomes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-url", help="of a running stack, with DATABASE_URL; bench-user-* stay there")
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--memories-per-user", type=int, default=100)
    parser.add_argument("--rate", type=float, default=200.0, help="searches a second")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each block")
    parser.add_argument("--blocks", type=int, default=4, help="of each way")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    with stack_at(given.redis_url) as stack:
        ltm = open_long_term_memory(stack.settings, 1)
        try:
            updates = past_messages(given.users, given.memories_per_user, TextGenerator(1))
            for begin in track(range(0, len(updates), 50), "filling"):
                ltm.memories.index_many(updates[begin : begin + 50])
        finally:
            ltm.close()
        with gateway(stack.redis_url) as (port, process):
            took, outcomes = asyncio.run(measured(stack.redis_url, port, given))
            seconds, memory_mb = sum(process.cpu_times()[:2]), process.memory_info().rss / 1e6
    rows: dict[str, dict[str, float]] = {
        name: {"searches": len(ms), **percentiles(ms), "failed": outcomes[name].total() - outcomes[name]["ok"]}
        for name, ms in took.items()
    }
    rows["difference"] = {name: rows[HTTP][name] - rows[WIRE][name] for name in ("p50", "p95", "p99")}
    rows["ratio"] = {name: rows[HTTP][name] / rows[WIRE][name] for name in ("p50", "p95", "p99")}
    show(f"{given.rate:g} searches/s by turns, in ms", rows, 2)
    print(f"outcomes: {', '.join(f'{name} {dict(counts)}' for name, counts in outcomes.items())}")
    print(f"the gateway: {seconds:.1f} s of CPU, {memory_mb:.0f} MB; at most 8 ms more at p50 are wanted")
    write_json(given.json, {"rows": rows, "outcomes": outcomes, "cpu_s": seconds, "memory_mb": memory_mb})


if __name__ == "__main__":
    main()
