"""Explanation of a search: the best memories that it ranked, returned or not, and why each is where it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from keepsake_client.context import shorten
from keepsake_client.turns import CANDIDATES, Candidate, Cut, Verdict

from services.long_term_memory.memory_fields import score_parts
from services.long_term_memory.postgres.store import Brief
from services.long_term_memory.retrieval.columns import MemoryColumns
from services.long_term_memory.retrieval.facts import ColumnsWithFacts
from services.long_term_memory.retrieval.features import Features
from services.long_term_memory.retrieval.ranking import Ranking
from services.long_term_memory.retrieval.results import Attached

#: The most characters of a candidate's content.
CONTENT_CHARS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Explained:
    """The explanation of a search.

    Args:
        candidates: the best memories, best first.
        cut: where the results end.
    """

    candidates: list[Candidate]
    cut: Cut


def best_of(ranking: Ranking, others: Ranking) -> Ranking:
    """The best `CANDIDATES` of a ranking and of the memories that are not among it, best first."""
    both = ranking.joined(others)
    return both.at(np.argsort(-both.score, kind="stable")[:CANDIDATES])


def explained(
    best: Ranking,
    ranking: Ranking,
    columns: MemoryColumns,
    features: Features,
    results: tuple[Ranking, Attached],
    stored: Mapping[int, Brief],
    cut: Cut,
) -> Explained:
    """The explanation of a search, without candidates that were deleted meanwhile.

    Args:
        best: as `best_of` gives them.
        ranking: what the results were taken from.
        features: those that they were ranked by.
        results: as `results.results` gives them.
        stored: what is stored of each memory, by number.
    """
    numbers = columns.number[best.rows].tolist()
    became = _verdicts(best, ranking, columns, results, cut.min_score)
    recency = features.recency[best.rows].tolist()
    return Explained(
        [
            _candidate(stored[number], best, place, became[place], recency[place])
            for place, number in enumerate(numbers)
            if number in stored
        ],
        cut,
    )


def cut_of(features: Features, *, min_score: float, limit: int, partial: bool) -> Cut:
    """Where the results of a search end."""
    echoes = int(np.count_nonzero(features.echoes))
    ranked = int(np.count_nonzero(features.eligible & ~features.echoes))
    return Cut.model_construct(
        min_score=min_score,
        limit=limit,
        ranked=ranked,
        filtered=len(features.eligible) - ranked - echoes,
        echoes=echoes,
        partial=partial,
    )


def _candidate(stored: Brief, best: Ranking, place: int, verdict: Verdict, recency: float) -> Candidate:
    parts = score_parts(best, place)
    # Not validated: every search makes twenty.
    return Candidate.model_construct(
        id=stored.id,
        content=shorten(stored.content, CONTENT_CHARS),
        score=round(float(best.score[place]), 4),
        parts={**parts, "utterance": round(parts["utterance"] - recency, 3), "recency": round(recency, 3)},
        verdict=verdict,
        source=stored.source,
        timestamp=stored.timestamp,
        kind="fact" if stored.is_fact else "message",
        session_id=stored.session_id,
        message_id=stored.message_id,
    )


def _verdicts(
    best: Ranking, ranking: Ranking, columns: MemoryColumns, results: tuple[Ranking, Attached], min_score: float
) -> list[Verdict]:
    """What became of each of the best memories, in their order."""
    shown, attached = results
    returned, ranked = set(shown.rows.tolist()), set(ranking.rows.tolist())
    with_message = {row for facts in attached.values() for row, _ in facts}
    said_by_fact: set[int] = set()
    if isinstance(columns, ColumnsWithFacts):
        said_by_fact.update(columns.said_rows[np.isin(columns.said_rows[:, 0], shown.rows), 1].tolist())
    texts = set(columns.fingerprint[ranking.rows].tolist())

    def verdict(row: int, score: float, text: int) -> Verdict:
        if row in returned:
            return "returned"
        if row not in ranked and text in texts:
            return "same_text"
        texts.add(text)
        if score < min_score:
            return "below_min_score"
        if row in with_message:
            return "with_message"
        return "said_by_fact" if row in said_by_fact else "over_limit"

    fingerprints = columns.fingerprint[best.rows].tolist()
    return [verdict(*each) for each in zip(best.rows.tolist(), best.score.tolist(), fingerprints, strict=True)]
