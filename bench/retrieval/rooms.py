"""What knowing who asks is worth in a room: `python -m bench.retrieval.rooms [--cache DIR] [--json PATH]`.

For each language and kind of question of tests/data/rooms.json: how often an answer comes first, and among the first
three, and how often one has the default min_score or more; by the weight of what another than the asker said. With a
weight of 0 the asker is as good as unknown.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from bench.harness.statistics import mean
from bench.harness.tables import show, write_json
from bench.retrieval.chats import ROOMS
from bench.retrieval.corpus import Corpus, Search, corpora
from bench.retrieval.datasets import read
from bench.retrieval.figures import Table
from bench.retrieval.vectors import VectorCache
from services.long_term_memory.retrieval.ranking import DEFAULT_MIN_SCORE
from services.long_term_memory.retrieval.weights import Weights

WEIGHTS = (0.0, -0.5, -1.0, -1.5, -2.0, -2.5, -3.0, -4.0)


def figures(searches: list[tuple[Corpus, Search]], weights: Weights) -> dict[str, float]:
    """The row of a table."""
    first, third, kept = [], [], []
    for corpus, search in searches:
        ranking = corpus.ranked(search, weights)
        right = [row in search.wanted for row in ranking.rows.tolist()]
        first.append(any(right[:1]))
        third.append(any(right[:3]))
        kept.append(any(r and s >= DEFAULT_MIN_SCORE for r, s in zip(right, ranking.score.tolist(), strict=True)))
    return {"n": len(searches), "first": mean(first), "hit@3": mean(third), "kept": mean(kept)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="a directory that keeps the vectors for the next run")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    users = corpora(read(ROOMS), VectorCache(given.cache))
    tables: dict[str, Table] = {}
    for user in [*users, None]:
        asked = [(one, search) for one in users if user in (one, None) for search in one.searches]
        for kind in dict.fromkeys(search.question.kind for _, search in asked):
            of_kind = [(one, search) for one, search in asked if search.question.kind == kind]
            table: Table = {f"{w:g}": figures(of_kind, replace(Weights(), not_of_asker=w)) for w in WEIGHTS}
            tables[f"{user.name if user else 'all'}, {kind}"] = table
    for title, table in tables.items():
        show(title, table)
    write_json(given.json, tables)


if __name__ == "__main__":
    main()
