"""Ablation and sensitivity analysis of the ranking's constants.

`python -m bench.retrieval.sensitivity --data FILE... [--cache DIR] [--span S] [--draws N] [--json PATH]`.

Prints, for each file of any form that `bench.retrieval.datasets` reads, recall@10 and hit@1 of the ranking without each
of its parts; and the range of both when all constants but the embedder's and the score's are multiplied at once, each
by a random factor between 1 - S and 1 + S, N times. A constant without which nothing is lost should go.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness.statistics import mean
from bench.harness.tables import show, track, write_json
from bench.retrieval.corpus import Corpus, corpora
from bench.retrieval.datasets import read
from bench.retrieval.figures import Table
from bench.retrieval.sets import answerable, search
from bench.retrieval.variants import FULL
from bench.retrieval.vectors import VectorCache
from services.long_term_memory.retrieval.weights import Weights

#: Properties of the embedding model, and what the score is computed with: they do not rank.
FIXED = {
    "unrelated_cosine",
    "japanese_cosine",
    "unrelated_memories",
    "cosine_deviation",
    "corpus_size",
    "corpus_size_prior",
    "calibration_slope",
    "calibration_intercept",
    "runner_up",
    "unsupported",
    "then_in_score",
}
_NONE = (0.0, 0.0)
#: The ranking without one of its parts.
ABLATIONS: dict[str, Weights] = {
    "full": FULL,
    "no meaning of neighbours": replace(FULL, meaning_kernel=_NONE),
    "no words of neighbours": replace(FULL, words_kernel=_NONE),
    "no neighbours": replace(FULL, meaning_kernel=_NONE, words_kernel=_NONE, follow_up_boost=0.0),
    "no follow-up boost": replace(FULL, follow_up_boost=0.0),
    "one speaker's turns in full": replace(FULL, same_speaker=1.0),
    "no words of sessions": replace(FULL, session_words=0.0),
    "words of sessions unbounded": replace(FULL, session_words_bound=1e6),
    "no meaning of sessions": replace(FULL, session_meaning=0.0),
    "words in full at any coverage": replace(FULL, full_coverage=1e-9),
    "no idf smoothing": replace(FULL, idf_smoothing=0.0),
    "speakers not named as well": replace(FULL, other_speaker=0.0),
    "the AI's words as the user's": replace(FULL, from_ai=0.0),
    "nothing for asking at the end": replace(FULL, ends_asking=0.0),
    "nothing for only asking": replace(FULL, only_asks=0.0),
    "no length": replace(FULL, length=0.0),
    "no newness": replace(FULL, newest=0.0),
    "no times named": replace(FULL, answers_then=0.0),
}


def perturbed(rng: np.random.Generator, span: float) -> Weights:
    """The weights, each multiplied by a random factor between 1 - span and 1 + span."""
    moved: dict[str, Any] = {}
    for name in (field.name for field in fields(Weights) if field.name not in FIXED):
        value = getattr(FULL, name)
        factors = rng.uniform(1 - span, 1 + span, np.size(value)).tolist()
        moved[name] = tuple(np.multiply(value, factors).tolist()) if isinstance(value, tuple) else value * factors[0]
    moved["answers_then"] = min(moved["answers_then"], 0.95)  # it is a share
    return replace(FULL, **moved)


def measured(sets: Mapping[str, Sequence[Corpus]], weights: Weights) -> dict[str, float]:
    """recall@10 and hit@1 of each set."""
    figures: dict[str, float] = {}
    for name, users in sets.items():
        found = answerable(search(user, one, weights) for user in users for one in user.searches if one.evidence)
        figures |= {f"{name} r@10": mean([f.recall(10) for f in found]), f"{name} h@1": mean([f.hit(1) for f in found])}
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files")
    parser.add_argument("--cache", type=Path, help="a directory that keeps the vectors for the next run")
    parser.add_argument("--span", type=float, default=0.25, help="largest relative change of a constant")
    parser.add_argument("--draws", type=int, default=25, help="how many times")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    vectors = VectorCache(given.cache)
    sets = {path.stem.removesuffix("-dev"): corpora(read(path), vectors) for path in given.data}
    ablation = {name: measured(sets, ABLATIONS[name]) for name in track(list(ABLATIONS), "ablation")}
    rng = np.random.default_rng(7)
    drawn = [measured(sets, perturbed(rng, given.span)) for _ in track(range(given.draws), "perturbing")]
    moved: Table = {
        name: {figure: of(one[figure] for one in drawn) for figure in ablation["full"]}
        for name, of in (("lowest", min), ("highest", max))
        if drawn
    }
    show("without each part", ablation)
    show(f"all constants changed by up to {given.span:.0%}, {given.draws} times", moved)
    write_json(given.json, {"ablation": ablation, "changed": moved})


if __name__ == "__main__":
    main()
