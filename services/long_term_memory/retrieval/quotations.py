"""Quotations: a reply of the AI that repeats what the user has said never comes before the user's own words."""

from __future__ import annotations

from typing import Final

import numpy as np

from services.long_term_memory.retrieval.columns import Floats, Integers, MemoryColumns

#: A reply repeats a line where it holds this share of the line's distinct terms, of which there are two or more: "your
#: cat is called Mochi" repeats "my cat is called Mochi". Chinese has pairs of characters that differ with the pronoun.
REPEATED_SHARE: Final = 0.75
MIN_TERMS: Final = 2
#: Memories among the best in which both are looked for, beside the limit of a search.
LOOKED_AT: Final = 10


def behind_what_they_repeat(columns: MemoryColumns, evidence: Floats, candidates: Integers, limit: int) -> Floats:
    """The evidence, (n,) float64, with replies of the AI just behind the best line of the user that they repeat.

    Args:
        candidates: the rows that may be shown.
        limit: how many are shown.
    """
    best = candidates
    if limit + LOOKED_AT < len(best):
        best = best[np.argpartition(-evidence[best], limit + LOOKED_AT)[: limit + LOOKED_AT]]
    replies = best[columns.from_ai[best]]
    told = best[~columns.from_ai[best] & columns.statements[best]]
    if not len(replies) or not len(told):
        return evidence
    ends = np.cumsum(columns.length)
    terms = {row: set(columns.terms[ends[row] - columns.length[row] : ends[row]].tolist()) for row in best.tolist()}
    lines = [(row, terms[row]) for row in told[np.argsort(-evidence[told])].tolist() if len(terms[row]) >= MIN_TERMS]
    behind = evidence.copy()
    for reply in replies.tolist():
        for row, line in lines:
            if len(line & terms[reply]) >= REPEATED_SHARE * len(line):
                behind[reply] = min(evidence[reply], np.nextafter(evidence[row], -np.inf))
                break
    return behind
