"""Newer of the same matter: what a query of the current state ("where do I live now?") prefers.

The old fact is often worded like the question, and the news is not: "I live in Porto", "I have moved to Lyon". So the
matter is that of the best memory, by the cosine of two memories, and not that of the query.
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from services.long_term_memory.retrieval.columns import Floats, MemoryColumns
from services.long_term_memory.retrieval.features import Features
from services.long_term_memory.retrieval.quotations import behind_what_they_repeat
from services.long_term_memory.retrieval.ranking import Ranking, falling_scores
from services.long_term_memory.retrieval.weights import Weights


def prefer_newer(
    ranking: Ranking, columns: MemoryColumns, features: Features, likeness: Floats, weights: Weights | None = None
) -> Ranking:
    """The ranking for a query of the current state: what is newer than the best, and of its matter, rises.

    By places in the order of time, not differences of time: the minutes of a chat and the years between two of them
    weigh the same. What comes first then has the score of what came first before, and the others' fall from there.
    What repeats the query does not rise: it is no answer.

    Args:
        columns: those that were ranked.
        features: those that they were ranked by.
        likeness: (k,) float64, the cosine of each ranked memory to the first.
    """
    weights = weights or Weights()
    if len(ranking) < 2:
        return ranking
    first = ranking.rows[0]
    script = columns.script[ranking.rows]
    others = likeness[1:][(script[1:] == script[0]) & (ranking.rows[1:] < columns.message_count)]
    median = float(np.median(others)) if len(others) else 0.0
    expected = weights.unrelated_memories[script[0]]
    unrelated = (median * len(others) + expected * weights.prior) / (len(others) + weights.prior)
    same = np.clip((likeness - unrelated) / weights.cosine_deviation / weights.same_matter, 0.0, 1.0)
    place = _places(columns)
    rise = weights.newest * np.maximum(place[ranking.rows] - place[first], 0.0) * same
    rise[features.repeats[ranking.rows]] = 0.0
    evidence = np.full(len(columns), -np.inf)
    evidence[ranking.rows] = np.minimum.accumulate(ranking.evidence) + rise
    evidence = behind_what_they_repeat(columns, evidence, ranking.rows, len(ranking))[ranking.rows]
    order = np.argsort(-evidence, kind="stable")
    best = np.log(ranking.score[:1] / (1.0 - ranking.score[:1]))
    risen = replace(ranking, utterance=ranking.utterance + rise)
    ordered = Ranking(**{part.name: getattr(risen, part.name)[order] for part in fields(Ranking)})
    return replace(ordered, score=falling_scores(best, evidence[order], weights))


def _places(columns: MemoryColumns) -> Floats:
    """(n,) float64, the place of each memory in the order of the times of the messages, from 0 to 1.

    A fact has that of the last message of its time, and none of its own: with facts beside them messages are as far
    from each other as without.
    """
    count = columns.message_count
    order = np.argsort(columns.timestamp[:count], kind="stable")
    place = np.empty(len(columns))
    place[order] = np.arange(count)
    place[count:] = np.searchsorted(columns.timestamp[order], columns.timestamp[count:], side="right") - 1.0
    return np.maximum(place, 0.0) / max(count - 1, 1)
