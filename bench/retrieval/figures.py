"""Figures of one data set from its rankings: recall, hits, intervals, updates, what is empty, reliability."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from bench.harness.statistics import mean, quantile
from bench.retrieval.corpus import Corpus, Search
from services.long_term_memory.retrieval.ranking import DEFAULT_MIN_SCORE

RECALL_CUTS = (1, 5, 10, 20)
HIT_CUTS = (1, 5, 10)
#: The default `min_score` and others, for the share of searches that return nothing.
MIN_SCORES = (0.05, DEFAULT_MIN_SCORE, 0.12, 0.2, 0.3)
#: Edges of the bins of the reliability diagram.
_SCORES = (0.0, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
_DRAWS = 2_000
#: Kinds of questions about a fact that was changed or contradicted.
_UPDATE_KINDS = ("update", "contradiction")

Table = dict[str, dict[str, float]]


class Searched(Protocol):
    """What the figures of one search are made of."""

    @property
    def best(self) -> float:
        """The best score; 0 where nothing was found."""

    def recall(self, first: int, min_score: float = 0.0) -> float:
        """Recall among the first results, of those with at least that score."""

    def hit(self, first: int, min_score: float = 0.0) -> float:
        """Whether an answer is among the first."""


@dataclass(frozen=True)
class Found:
    """The result of one search.

    Args:
        rows: the rows found, best first.
        scores: their scores.
    """

    corpus: Corpus
    search: Search
    rows: list[int]
    scores: list[float]

    def recall(self, first: int, min_score: float = 0.0) -> float:
        """Recall among the first results, of those with at least that score."""
        return self.search.recall([r for r, s in zip(self.rows[:first], self.scores, strict=False) if s >= min_score])

    def hit(self, first: int, min_score: float = 0.0) -> float:
        """Whether an answer is among the first."""
        return float(self.recall(first, min_score) > 0)

    def session_recall(self, first: int = 10) -> float:
        """The share of the answers' sessions among the first sessions, each at the rank of its first memory."""
        wanted = {self.corpus.sessions(sorted(part))[0] for part in self.search.evidence}
        return len(wanted.intersection(self.corpus.sessions(self.rows)[:first])) / len(wanted)

    @property
    def best(self) -> float:
        """The best score; 0 where nothing was found."""
        return self.scores[0] if self.scores else 0.0


def quality(found: Sequence[Searched]) -> dict[str, float]:
    """Recall and hit rates of answerable searches."""
    figures = {f"recall@{k}": mean([one.recall(k) for one in found]) for k in RECALL_CUTS}
    return figures | {f"hit@{k}": mean([one.hit(k) for one in found]) for k in HIT_CUTS}


def by_kind(found: Sequence[Found]) -> dict[str, list[Found]]:
    """The searches by the kind of their question."""
    kinds: dict[str, list[Found]] = defaultdict(list)
    for one in found:
        kinds[one.search.question.kind].append(one)
    return kinds


def interval(differences: Sequence[float], seed: int = 7) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean, by question."""
    values = np.array(differences)
    drawn = np.random.default_rng(seed).integers(len(values), size=(_DRAWS, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def differences(of: Sequence[Found], against: Sequence[Found]) -> Table:
    """The difference of two rankings of the same searches, with intervals, by figure."""
    measures = {f"recall@{k}": (k, Found.recall) for k in (1, 5, 10)} | {f"hit@{k}": (k, Found.hit) for k in (1, 5, 10)}
    table: Table = {}
    for name, (k, measure) in measures.items():
        each = [measure(a, k) - measure(b, k) for a, b in zip(of, against, strict=True)]
        low, high = interval(each)
        table[name] = {"difference": mean(each), "from": low, "to": high}
    return table


def unanswerable(found: Sequence[Searched]) -> dict[str, float]:
    """How many searches for what was never said return nothing, by `min_score`; and their median best score."""
    best = [one.best for one in found]
    empty = {f"empty at {cut:g}": mean([float(score < cut) for score in best]) for cut in MIN_SCORES}
    return {"n": float(len(found)), **empty, "median best": quantile(best, 0.5)}


def kept(found: Sequence[Searched]) -> dict[str, float]:
    """What answerable searches keep, by `min_score`."""
    return {f"recall@10 at {cut:g}": mean([one.recall(10, cut) for one in found]) for cut in (0.0, *MIN_SCORES)}


def reliability(own: Sequence[Found], others: Sequence[Found]) -> Table:
    """By bins of the best score: how often the first memory answers, of searches that have an answer and that have not.

    `right` weighs both kinds alike: a search is as likely to have no answer.
    """
    table: Table = {}
    for low, high in pairwise(_SCORES):
        within = [[f for f in part if low <= f.best < high or f.best == high == 1.0] for part in (own, others)]
        answerable, unanswered = (
            len(part) / max(len(all_), 1) for part, all_ in zip(within, (own, others), strict=True)
        )
        if not within[0] and not within[1]:
            continue
        hits = sum(f.hit(1) for f in within[0]) / max(len(own), 1)
        table[f"{low:g} to {high:g}"] = {
            "answerable": float(len(within[0])),
            "unanswerable": float(len(within[1])),
            "mean score": mean([f.best for part in within for f in part]),
            "right": hits / (answerable + unanswered),
            "right, answerable": mean([f.hit(1) for f in within[0]]),
        }
    return table


def updates(found: Iterable[Found]) -> Table:
    """Of the answers of one question, told at several times: whether the newest comes before the oldest."""
    table: Table = {}
    for kind, searches in by_kind(
        [f for f in found if any(k in f.search.question.kind for k in _UPDATE_KINDS)]
    ).items():
        of_two = [f for f in searches if len({f.corpus.columns.timestamp[row] for row in f.search.wanted}) > 1]
        if not of_two:
            continue
        places = [_places_of_newest_and_oldest(f) for f in of_two]
        table[kind] = {
            "n": float(len(of_two)),
            "newer first": mean([float(newest < oldest) for newest, oldest in places]),
            "newest within 5": mean([float(newest < 5) for newest, _ in places]),
            "oldest within 5": mean([float(oldest < 5) for _, oldest in places]),
            "median place, newest": quantile([newest + 1 for newest, _ in places], 0.5),
            "oldest": quantile([oldest + 1 for _, oldest in places], 0.5),
        }
    return table


def _places_of_newest_and_oldest(found: Found) -> tuple[int, int]:
    wanted = sorted(found.search.wanted, key=lambda row: float(found.corpus.columns.timestamp[row]))
    newest, oldest = (
        found.rows.index(row) if row in found.rows else len(found.rows) for row in (wanted[-1], wanted[0])
    )
    return newest, oldest
