"""BM25 and its form for weighted fields, BM25F, over arrays of postings.

BM25: Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond". BM25F: Robertson, Zaragoza &
Taylor 2004, "Simple BM25 Extension to Multiple Weighted Fields": term frequencies and lengths of the fields are added
up with the weight of each, and the sum is saturated once. A term that occurs in two fields of a passage so counts less
than twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from services.long_term_memory.retrieval.columns import Booleans, Floats, Integers

#: Terms in a line of chat.
_TYPICAL_LENGTH: Final = 8.0


def sums(group: Integers, values: Floats | Integers | Booleans, size: int) -> Floats:
    """(size,) float64, the sum of the values of each group from 0 to size - 1."""
    totals: Floats = np.bincount(group, values, size).astype(np.float64, copy=False)
    return totals


def average_length(length: Floats | Integers, prior: float) -> float:
    """The mean number of terms, as if `prior` more documents had a typical line's."""
    return float((length.sum() + prior * _TYPICAL_LENGTH) / (len(length) + prior))


def idf(documents: Integers, corpus_size: float) -> Floats:
    """Inverse document frequency of each term, (t,) float64, in log-odds; never negative.

    Args:
        documents: (t,) int64, how many documents contain the term.
        corpus_size: how many there are.
    """
    weights: Floats = np.log1p((np.maximum(corpus_size - documents, 0.0) + 0.5) / (documents + 0.5))
    return weights


def saturate(frequency: Floats, relative_length: Floats, k1: float, b: float) -> Floats:
    """BM25's saturated term frequency, (nnz,) float64, of a document so many times as long as the average."""
    saturated: Floats = frequency * (k1 + 1) / (frequency + k1 * (1 - b + b * relative_length))
    return saturated


def bm25(frequency: Floats, relative_length: Floats, term_idf: Floats, k1: float, b: float) -> Floats:
    """The BM25 of each document, (d,) float64, in log-odds.

    Args:
        frequency: (t * d,) float64, of term i in document j at i * d + j.
        relative_length: (d,) float64, length of each document over the average length.
        term_idf: (t,) float64.
    """
    found = np.flatnonzero(frequency)
    term, row = np.divmod(found, len(relative_length))
    saturated = saturate(frequency[found], relative_length[row], k1, b)
    return sums(row, term_idf[term] * saturated, len(relative_length))


def field_frequencies(
    postings: tuple[Integers, Integers, Integers],
    shape: tuple[int, int],
    own: Floats,
    neighbours: Sequence[tuple[int, Floats, Floats]],
) -> Floats:
    """Term frequencies of each turn with its neighbours as weighted fields, (t * n,) float64, as `bm25` takes them.

    Args:
        postings: terms, rows, counts, each (nnz,) int64, as `features.Features` has them.
        shape: t, n.
        own: (n,) float64, the weight of each turn in itself.
        neighbours: as `neighbours.Neighbours.shares` gives them.
    """
    terms, rows, number = postings
    margin = max((distance for distance, _, _ in neighbours), default=0)
    # Without masks, which take longer: what would go beyond the first or last row has no weight.
    key = terms * shape[1] + rows + margin
    keys, counts = [key], [number * own[rows]]
    for distance, forward, backward in neighbours:
        none = np.zeros(distance)
        keys += [key + distance, key - distance]
        counts += [number * np.append(forward, none)[rows], number * np.append(none, backward)[rows]]
    size = shape[0] * shape[1]
    return sums(np.concatenate(keys), np.concatenate(counts), size + 2 * margin)[margin : margin + size]
