"""BM25 and BM25F against values worked out by hand from the papers' formulas."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from services.long_term_memory.retrieval import bm25f

K1, B = 0.7, 0.4


def test_idf_is_the_log_odds_of_the_documents_without_the_term() -> None:
    """Given terms in 0, 1 and all 5 of 5 documents, I expect log(1 + (N - n + 0.5) / (n + 0.5))."""
    found = bm25f.idf(np.array([0, 1, 5]), 5.0)

    assert found == pytest.approx([log(1 + 5.5 / 0.5), log(1 + 4.5 / 1.5), log(1 + 0.5 / 5.5)])


def test_idf_is_never_negative() -> None:
    """Given a term in more documents than are counted, I expect the idf of one in all of them at the least."""
    assert bm25f.idf(np.array([9]), 5.0) == pytest.approx([log(1 + 0.5 / 9.5)])


@pytest.mark.parametrize("relative_length", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("frequency", [0.3, 1.0, 4.0])
def test_saturation_is_that_of_bm25(frequency: float, relative_length: float) -> None:
    """Given a frequency and a length, I expect f (k1 + 1) / (f + k1 (1 - b + b l))."""
    expected = frequency * 1.7 / (frequency + 0.7 * (0.6 + 0.4 * relative_length))

    found = bm25f.saturate(np.array([frequency]), np.array([relative_length]), K1, B)

    assert found == pytest.approx([expected])


def test_an_average_length_starts_from_a_typical_line() -> None:
    """Given no documents, I expect 8 terms; given two of 2 and a prior of 2, the mean of 2, 2, 8 and 8."""
    assert bm25f.average_length(np.zeros(0), 8.0) == 8.0
    assert bm25f.average_length(np.array([2, 2]), 2.0) == 5.0


def test_bm25_adds_up_the_terms_of_each_document() -> None:
    """Given two terms and three documents, I expect idf times saturation, summed by document."""
    frequency = np.array([1.0, 0.0, 2.0, 1.0, 1.0, 0.0])  # of term 0 in documents 0 to 2, then of term 1
    length, idf = np.array([1.0, 2.0, 0.5]), np.array([2.0, 3.0])

    found = bm25f.bm25(frequency, length, idf, K1, B)

    def of(f: float, relative_length: float) -> float:
        return float(bm25f.saturate(np.array([f]), np.array([relative_length]), K1, B)[0])

    assert found == pytest.approx([2 * of(1, 1) + 3 * of(1, 1), 3 * of(1, 2), 2 * of(2, 0.5)])


#: Three turns: row 0 gives row 1 a half and row 2 a quarter, row 1 gives row 0 a tenth, row 2 nothing.
NEIGHBOURS = [
    (1, np.array([0.5, 0.0]), np.array([0.1, 0.0])),
    (2, np.array([0.25]), np.array([0.0])),
]


def test_a_turns_frequencies_include_its_neighbours_by_weight() -> None:
    """Given term 0 twice in row 0 and term 1 once in row 1, I expect frequencies added up by those weights."""
    postings = np.array([0, 1]), np.array([0, 1]), np.array([2, 1])

    found = bm25f.field_frequencies(postings, (2, 3), np.array([1.5, 2.0, 1.0]), NEIGHBOURS)

    assert found.reshape(2, 3).tolist() == [[3.0, 1.0, 0.5], [0.1, 2.0, 0.0]]
