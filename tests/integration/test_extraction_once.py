"""Extraction by eight threads whose calls outlive their leases, fail and end: each message's facts once, in order."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from random import Random
from threading import Barrier, BrokenBarrierError, Lock
from typing import Any

import pytest
from psycopg_pool import ConnectionPool

from services.long_term_memory.extraction.batch import Batch, Extraction
from services.long_term_memory.extraction.budget import Budget
from services.long_term_memory.extraction.service import ExtractionService
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.pending import BATCH_MESSAGES
from services.long_term_memory.postgres.store import MemoryStore
from services.runtime.errors import ProviderWaits, UnusableAnswer
from tests.integration.scripted_finder import LEASE_S, USAGE, ScriptedFinder, extraction, found, pass_time, said, select
from tests.support import PATIENCE_S

THREADS = 8
USERS = 12


class Killed(BaseException):
    """The end of a process."""


class Disturbed(ScriptedFinder):
    """A finder whose calls end at random: well, without a usable answer, without any, with the process, or only after
    the lease has been given to another."""

    def __init__(self, pool: ConnectionPool, seed: int) -> None:
        super().__init__()
        self._pool = pool
        self._random = Random(seed)
        self._lock = Lock()
        self._calls = 0
        self.outlived = 0
        self.meet = Barrier(2)

    def find(self, batch: Batch) -> Extraction:
        with self._lock:
            self._calls += 1
            call, fate = self._calls, self._random.random()
        if fate < 0.1:
            raise UnusableAnswer("no JSON", USAGE)
        if fate < 0.15:
            raise ProviderWaits("503")
        if fate < 0.25:
            raise Killed
        if fate < 0.55:
            # The lease runs out meanwhile. It waits for a second call that has outlived its own, so that their commits
            # come at the same time, unless there is none.
            with self._pool.connection() as connection:
                end = "UPDATE extraction SET lease_until = now() WHERE user_number = %s"
                connection.execute(end, (batch.user_number,))
            self.outlived += 1
            try:
                self.meet.wait(0.05)
            except BrokenBarrierError:
                self.meet.reset()
        facts = [found(f"call {call}: {message.content}", message.number) for message in batch.messages]
        return extraction(*facts)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_each_message_is_read_once_whatever_happens(
    mem0: Mem0Memory, store: MemoryStore, pool: ConnectionPool, seed: int
) -> None:
    """Given eight threads that disturb each other, and messages that come meanwhile, I expect each message to be the
    evidence of one fact, in the order of the messages, and nothing pending or reserved."""
    chat = MemoryService(mem0, store, extract=True)
    finder = Disturbed(pool, seed)
    later = iter(
        [
            said(f"later {number}", f"u{number % USERS}", timestamp=1_712_400_000 + number)
            for number in range(USERS * 10)
        ]
    )

    def work(lease: Any) -> None:
        service = ExtractionService(pool, finder, chat.writer.embed, Budget(10**12, 10**12), capacity=64, call_s=60)
        try:
            service.extract(*lease)
        except Killed:
            return

    for user in range(USERS):
        for number in range(BATCH_MESSAGES):
            chat.index(said(f"message {number}", f"u{user}", timestamp=1_712_345_678 + number))
    ticking = ExtractionService(pool, finder, chat.writer.embed, Budget(10**12, 10**12), capacity=64, call_s=60)
    running: list[Any] = []

    def all_read(threads: ThreadPoolExecutor) -> bool:
        """Make a round; whether it finds nothing to do."""
        for message in [one for _, one in zip(range(2), later, strict=False)]:
            chat.index(message)
        running[:] = [one for one in running if not one.done()]
        leases = ticking.tick()
        if not leases and not running:
            if not select(pool, "SELECT FROM extraction") and next(later, None) is None:
                return True
            pass_time(pool, LEASE_S * 4)
        running.extend(threads.submit(work, lease) for lease in leases)
        if len(running) >= THREADS:
            running.pop(0).result(60)
        return False

    with ThreadPoolExecutor(THREADS) as threads:
        until = time.monotonic() + PATIENCE_S
        while not all_read(threads):
            assert time.monotonic() < until, "there are messages that are never read"

    per_message = select(
        pool,
        "SELECT count(DISTINCT e.fact_number), t.set_aside IS NOT NULL FROM memories m"
        " JOIN users u ON u.number = user_number LEFT JOIN fact_evidence e ON e.memory_number = m.number"
        " LEFT JOIN to_extract t ON t.memory_number = m.number WHERE kind = 'message' GROUP BY m.number, t.set_aside",
    )
    assert {(count, aside) for count, aside in per_message} <= {(1, False), (0, True)}
    assert select(pool, "SELECT FROM extraction") == []
    assert finder.outlived > 10
    # Of each owner, the facts of an earlier message were stored before those of a later one.
    orders = select(
        pool,
        "SELECT array_agg(e.memory_number ORDER BY f.number) FROM fact_evidence e"
        " JOIN memories f ON f.number = e.fact_number GROUP BY f.user_number",
    )
    assert len(orders) == USERS
    for (order,) in orders:
        assert order == sorted(order)
