"""Retrieval on data sets: `python -m bench.retrieval.sets --data FILE... [--cache DIR] [--json PATH]`.

For each file (of any form that `bench.retrieval.datasets` reads): recall and hit rates of all rankings, by kind of
question, with bootstrap intervals of the full ranking against its parts; how many searches for what was never said
return nothing (the file's own questions without evidence, and each user's questions asked of the user before); what the
answerable ones keep; how often the first memory is right, by score; whether the newer of two facts comes first; and for
LoCoMo MemPalace's metric: the share of evidence sessions among the first ten, all five categories, captions left out,
where a question without evidence counts 1.

In process and without PostgreSQL: see `bench.retrieval.corpus`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.harness.statistics import mean
from bench.harness.tables import show, track, write_json
from bench.retrieval import figures
from bench.retrieval.corpus import Corpus, Search, asked_of_the_next, corpora
from bench.retrieval.datasets import ADVERSARIAL, read, without_captions
from bench.retrieval.figures import Found, Table
from bench.retrieval.variants import FULL, VARIANTS
from bench.retrieval.vectors import VectorCache
from services.long_term_memory.retrieval.weights import Weights

#: Memories that are ranked: sessions are counted among these.
LIMIT = 100


def search(corpus: Corpus, asked: Search, weights: Weights) -> Found:
    """Rank the memories of a user for a search."""
    ranking = corpus.ranked(asked, weights, LIMIT)
    return Found(corpus, asked, ranking.rows.tolist(), ranking.score.tolist())


def answerable(found: Iterable[Found]) -> list[Found]:
    """The results of which a set's figures consist."""
    return [f for f in found if f.search.evidence and f.search.question.kind != ADVERSARIAL]


def measure(users: list[Corpus], label: str) -> dict[str, Any]:
    """All tables of one set by title."""
    asked = [(user, one) for user in users for one in user.searches]
    found = {
        name: [search(user, one, weights) for user, one in track(asked, f"{label}, {name}") if one.evidence]
        for name, weights in VARIANTS.items()
    }
    counted = {name: answerable(of) for name, of in found.items()}
    tables: dict[str, Any] = {
        f"{len(counted['full'])} answerable questions": {name: figures.quality(of) for name, of in counted.items()},
        "recall@10 (and hit@5) by kind": _kinds(found),
        "full - both": figures.differences(counted["full"], counted["both"]),
        "full - semantic": figures.differences(counted["full"], counted["semantic"]),
    }
    unanswerable = {
        "own": [search(user, one, FULL) for user, one in asked if not one.evidence],
        "of the next user": [search(user, one, FULL) for user, one in track(asked_of_the_next(users), "next user")],
        ADVERSARIAL: [f for f in found["full"] if f.search.question.kind == ADVERSARIAL],
    }
    tables["unanswerable, full"] = {name: figures.unanswerable(of) for name, of in unanswerable.items() if of}
    tables["kept by min_score"] = {"full": figures.kept(counted["full"])}
    others = unanswerable["own"] + unanswerable["of the next user"]
    tables["reliability by best score"] = figures.reliability(counted["full"], others)
    tables["updates"] = figures.updates(counted["full"])
    return tables


def _kinds(found: dict[str, list[Found]]) -> Table:
    kinds = {name: figures.by_kind(of) for name, of in found.items()}
    table: Table = {}
    for kind, of in kinds["full"].items():
        row: dict[str, float] = {"n": float(len(of))}
        for k, name in ((10, "recall"), (5, "hit")):
            row |= {
                f"{variant} {name[0]}@{k}": mean([getattr(f, name)(k) for f in kinds[variant][kind]])
                for variant in kinds
            }
        table[kind] = row | {"full, sessions": mean([f.session_recall() for f in of])}
    return table


def mempalace(path: Path, vectors: VectorCache) -> Table:
    """MemPalace's metric on a LoCoMo file, by category, of words + meaning and of the full ranking."""
    table: Table = {}
    users = corpora([without_captions(user) for user in read(path)], vectors)
    without = sum(not evidence for evidence in _evidence(path))
    for name in ("both", "full"):
        found = [
            search(user, one, VARIANTS[name]) for user in users for one in track(user.searches, "MemPalace's metric")
        ]
        table[name] = {
            kind: mean([f.session_recall() for f in of]) for kind, of in sorted(figures.by_kind(found).items())
        }
        table[name]["all"] = mean([f.session_recall() for f in found] + [1.0] * without)
    return table


def _evidence(path: Path) -> list[list[str]]:
    return [qa.get("evidence") or [] for sample in json.loads(path.read_text()) for qa in sample["qa"]]


def _is_locomo(path: Path) -> bool:
    stored = json.loads(path.read_text())
    return isinstance(stored, list) and "conversation" in stored[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files")
    parser.add_argument("--cache", type=Path, help="a directory that keeps the vectors for the next run")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    vectors = VectorCache(given.cache)
    everything = {}
    for path in given.data:
        tables = measure(corpora(read(path), vectors), path.stem)
        if _is_locomo(path):
            tables["MemPalace's metric: share of evidence sessions among ten"] = mempalace(path, vectors)
        for title, table in tables.items():
            if table:
                show(f"{path.stem}: {title}", table)
        everything[path.stem] = tables
    write_json(given.json, everything)


if __name__ == "__main__":
    main()
