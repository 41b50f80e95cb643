"""Ranking: orders the memories of one user by how likely they answer a query, and gives that probability.

Every memory is ranked. What supports a memory is added up as evidence, by `evidence.py`.

Order follows evidence. `score` is the probability that follows from it: that of the best memory is comparable across
queries and users, and low when nothing relevant is stored; that of the others falls from there.

Everything here is a function of arrays; nothing depends on databases, texts or models.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np

from services.long_term_memory.retrieval.columns import Booleans, Floats, Integers, MemoryColumns
from services.long_term_memory.retrieval.evidence import evidence_of
from services.long_term_memory.retrieval.features import Features
from services.long_term_memory.retrieval.query import QueryFeatures
from services.long_term_memory.retrieval.quotations import behind_what_they_repeat
from services.long_term_memory.retrieval.weights import Weights

#: What scores less is not returned, unless the search says otherwise.
DEFAULT_MIN_SCORE: Final = 0.09

#: What scores as much may answer what the user has asked before: a line that repeats the query comes behind it. What
#: carries nothing scores less, and so do most others of a few memories.
ANSWER_SCORE: Final = 0.2
#: The default in log-odds.
_MIN_LOG_ODDS: Final = math.log(DEFAULT_MIN_SCORE / (1.0 - DEFAULT_MIN_SCORE))


@dataclass(frozen=True, slots=True)
class Ranking:
    """A ranking: memories, best first.

    Args:
        rows: (k,) int64, their rows among the columns that were ranked.
        score: (k,) float64, the probability that each answers; falls in order.
        meaning: (k,) float64, the parts of the evidence, in log-odds ...
        words: (k,) float64
        session: (k,) float64
        utterance: (k,) float64
    """

    rows: Integers
    score: Floats
    meaning: Floats
    words: Floats
    session: Floats
    utterance: Floats

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def evidence(self) -> Floats:
        """(k,) float64, the sum of the parts, in log-odds."""
        return self.meaning + self.words + self.session + self.utterance

    def first(self, count: int) -> Ranking:
        """The best `count` memories."""
        return self.where(np.arange(len(self)) < count)

    def joined(self, others: Ranking) -> Ranking:
        """These memories and behind them others, each with its own score."""
        return Ranking(
            **{part.name: np.append(getattr(self, part.name), getattr(others, part.name)) for part in fields(Ranking)}
        )

    def followed_by(self, others: Ranking) -> Ranking:
        """These memories and behind them others, none with a higher score than the one before."""
        both = self.joined(others)
        return replace(both, score=np.minimum.accumulate(both.score))

    def where(self, kept: Booleans) -> Ranking:
        """The memories of the mask `kept`, (k,) bool, in the same order."""
        return self.at(np.flatnonzero(kept))

    def at(self, places: Integers) -> Ranking:
        """The memories at these places, in their order."""
        return Ranking(**{part.name: getattr(self, part.name)[places] for part in fields(Ranking)})


#: Gives the best so many of the memories that a ranking leaves out; of one text at most two, with those of the ranking.
Others = Callable[[int], Ranking]


def rank(
    columns: MemoryColumns,
    query: QueryFeatures,
    features: Features,
    weights: Weights | None = None,
    *,
    limit: int | None = None,
) -> Ranking:
    """The memories most likely to answer, best first, each text once.

    Echoes of the query are ranked as if they had never been stored. Memories that are not eligible still contribute to
    their neighbours and to the statistics. Where the query was not embedded, only memories with one of its words are
    ranked, and the limit counts these alone.

    Args:
        limit: how many at most; None for all.
    """
    ranking, _ = rank_with_others(columns, query, features, weights, limit=limit)
    return ranking


def rank_with_others(
    columns: MemoryColumns,
    query: QueryFeatures,
    features: Features,
    weights: Weights | None = None,
    *,
    limit: int | None = None,
) -> tuple[Ranking, Others]:
    """What `rank` gives, and what gives the best of the memories that are not among it, for an explanation.

    Args:
        limit: of the ranking.
    """
    weights = weights or Weights()
    limit = len(columns) if limit is None else limit
    if features.repeats.any():
        return _with_repeats(columns, query, features, weights, limit)
    embedded = not np.isnan(columns.cosine).all()
    original = np.flatnonzero(~features.echoes)
    if len(original) < len(columns):
        columns, features = columns.where(~features.echoes), features.where(~features.echoes)
    if not columns.message_count:
        nothing = Ranking(original[:0], *(np.zeros(0) for _ in range(5)))
        return nothing, lambda _: nothing

    found = evidence_of(columns, query, features, weights)
    candidates = np.flatnonzero(features.eligible & (embedded | (found.words > 0)))
    evidence = behind_what_they_repeat(columns, found.total, candidates, limit)
    best = _best(evidence, candidates, columns.fingerprint, limit)
    beside = weights.meaning * found.baseline_shift - (1.0 - weights.then_in_score) * found.time_named[best[:1]]

    def ranking_of(rows: Integers, score: Floats) -> Ranking:
        parts = (part[rows] for part in (found.meaning, found.words, found.session, found.utterance))
        return Ranking(original[rows], score, *parts)

    score = _probability(evidence[best] + beside, found.asked, columns, weights)
    ranking = ranking_of(best, score)

    def others(count: int) -> Ranking:
        rows = _others(evidence, candidates, columns.fingerprint, best, count)
        below = np.append(best[:1], rows)  # every score falls from that of the first
        return ranking_of(rows, _probability(evidence[below] + beside, found.asked, columns, weights)[1:])

    return ranking, others


def _with_repeats(
    columns: MemoryColumns, query: QueryFeatures, features: Features, weights: Weights, limit: int
) -> tuple[Ranking, Others]:
    """The memories as if what repeats the query had never been stored, with that after those which may answer.

    It takes the last place of a list that is full of answers: what is stored can be found by its own words.
    """
    none = np.zeros_like(features.repeats)
    without = replace(features, echoes=features.echoes | features.repeats, repeats=none)
    answers, other_answers = rank_with_others(columns, query, without, weights, limit=limit)
    own = replace(features, eligible=features.eligible & features.repeats, repeats=none)
    repeats, other_repeats = rank_with_others(columns, query, own, weights, limit=limit)
    place = int(np.count_nonzero(answers.score >= ANSWER_SCORE))
    place = min(place, limit - 1) if limit > 1 else place
    order = np.r_[:place, len(answers) : len(answers) + len(repeats), place : len(answers)]
    both = answers.joined(repeats).at(order)
    both = replace(both, score=np.minimum.accumulate(both.score))

    def others(count: int) -> Ranking:
        left = both.where(np.arange(len(both)) >= limit)
        return left.joined(other_answers(count)).joined(other_repeats(count))

    return both.first(limit), others


def _probability(evidence: Floats, asked: float, columns: MemoryColumns, weights: Weights) -> Floats:
    """The probability that each memory answers, from its evidence and that of the best, which is the first.

    Args:
        evidence: (k,) float64, best first, in log-odds.
        asked: the sum of the idf of the query's terms, in log-odds.
    """
    statements = np.count_nonzero(columns.statements)
    chance = weights.corpus_size * np.log(statements + weights.corpus_size_prior) + np.log1p(asked)
    best = weights.calibration_slope * (evidence[:1] - chance) + weights.calibration_intercept
    return falling_scores(best, evidence, weights)


def falling_scores(best: Floats, evidence: Floats, weights: Weights) -> Floats:
    """The scores of memories by how much less evidence each has than the first, which has the highest.

    They fall from the score of the first towards the default `min_score`: one with less evidence is hardly as likely an
    answer, but may be the rest of one, and whether there is an answer at all is decided by the first. One that nothing
    supports, as an unrelated one of a few or a greeting, falls below that.

    Args:
        best: (1,) float64, the log-odds of the score of the first.
        evidence: (k,) float64, in log-odds.
    """
    margin = best - _MIN_LOG_ODDS
    margin = np.where(margin > 0.0, margin, 1.0)
    behind = evidence[:1] - evidence
    lacking = np.minimum(np.maximum(weights.unsupported - evidence, 0.0), behind)
    log_odds = best - margin * behind / (behind + weights.runner_up) - weights.calibration_slope * lacking
    scores: Floats = 1.0 / (1.0 + np.exp(-np.clip(log_odds, -30.0, 30.0)))
    return scores


def _best(evidence: Floats, candidates: Integers, fingerprint: Integers, limit: int) -> Integers:
    """The rows of the best `limit` candidates, best first; of those with one fingerprint only the first."""
    considered = 4 * limit + 16
    while True:
        best = candidates
        if considered < len(best):
            best = best[np.argpartition(-evidence[best], considered)[:considered]]
        best = best[np.argsort(-evidence[best], kind="stable")]
        _, first = np.unique(fingerprint[best], return_index=True)
        if len(first) >= limit or considered >= len(candidates):
            distinct: Integers = best[np.sort(first)][:limit]
            return distinct
        considered *= 8  # a user who repeats one message all day


def _others(evidence: Floats, candidates: Integers, fingerprint: Integers, best: Integers, count: int) -> Integers:
    """The rows of `count` more candidates, best first; of one fingerprint at most two, with those of `best`."""
    considered = 4 * count + 16
    rows = candidates
    if considered < len(rows):
        rows = rows[np.argpartition(-evidence[rows], considered)[:considered]]
    rows = rows[np.argsort(-evidence[rows], kind="stable")]
    taken = set(best.tolist())
    of_text = Counter(fingerprint[best].tolist())
    others = []
    for row, text in zip(rows.tolist(), fingerprint[rows].tolist(), strict=True):
        if row in taken or of_text[text] > 1:
            continue
        of_text[text] += 1
        others.append(row)
    return np.array(others[:count], np.int64)
