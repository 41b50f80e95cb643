"""Embedders of the benchmarks: one that caches, and the rate of the real one without anything around it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable, Sequence
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

from mem0.configs.embeddings.base import BaseEmbedderConfig
from mem0.embeddings.base import EmbeddingBase

from bench.harness.statistics import timed
from bench.harness.texts import TextGenerator
from services.long_term_memory.embeddings.providers import build_embedder
from services.runtime.settings import Settings


class CachingEmbedder(EmbeddingBase):  # type: ignore[misc]  # Mem0 has no types
    """An embedder that embeds every text once: to fill several tables with the same memories, never to measure."""

    def __init__(self, inner: EmbeddingBase) -> None:
        super().__init__(BaseEmbedderConfig())
        self._inner = inner
        self._cache: dict[tuple[str, str | None], list[float]] = {}

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        """The vector of one text."""
        return self.embed_batch([text], memory_action)[0]

    def embed_batch(self, texts: Sequence[str], memory_action: str | None = "add") -> list[list[float]]:
        """The vectors of many texts."""
        for text in texts:
            if (text, memory_action) not in self._cache:
                self._cache[text, memory_action] = self._inner.embed(text, memory_action)
        return [self._cache[text, memory_action] for text in texts]


def embedder_rate(embedder: EmbeddingBase, texts: Iterable[str], action: str) -> float:
    """Texts a second that this process embeds on one thread, one at a time."""
    number, total_ms = 0, 0.0
    for text in texts:
        _, ms = timed(lambda: embedder.embed(text, action))  # noqa: B023 - called at once
        number, total_ms = number + 1, total_ms + ms
    rate: float = number / total_ms * 1000
    return rate


def embedders_rate(settings: Settings, processes: int, seconds: float) -> float:
    """Messages a second that so many processes embed together, each on one thread, one at a time."""
    context = multiprocessing.get_context("spawn")
    start, rates = context.Barrier(processes), context.SimpleQueue()
    workers = [context.Process(target=_embed_for, args=(seconds, settings, start, rates)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    total: float = sum(rates.get() for _ in workers)
    return total


def _embed_for(seconds: float, settings: Settings, start: Barrier, rates: SimpleQueue[float]) -> None:
    embedder, texts, number = build_embedder(settings), TextGenerator(os.getpid()), 0
    embedder.embed("Where were we?", "add")
    start.wait()
    begun = time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds:
        embedder.embed(texts.statement(number), "add")
        number += 1
    rates.put(number / spent)
