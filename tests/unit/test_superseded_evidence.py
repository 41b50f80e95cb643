"""Evidence of facts that have replaced others: what they take over from these, and from the messages that say them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from services.long_term_memory.retrieval.facts import ColumnsWithFacts, ahead_of_what_they_replaced
from tests.unit.turns import Turn, columns_of

#: Numbers of two messages and, behind them, of four facts: the first message says Oslo and cats, the second the rest.
BOTH, MOVED, OSLO, CATS, BERGEN, LISBON = range(6)
SAID = ((OSLO, BOTH), (CATS, BOTH), (BERGEN, MOVED), (LISBON, MOVED))


def lifted(evidence: Sequence[float], *replaced: tuple[int, int]) -> list[float]:
    """The evidence of the six, of which some facts have replaced others."""
    six = replace(columns_of([Turn("something")] * 6), number=np.arange(6))
    columns = ColumnsWithFacts.of(
        six.where(np.arange(6) < OSLO),
        [six.where(np.arange(6) >= OSLO)],
        np.array(SAID),
        np.array(replaced).reshape(-1, 2),
    )
    return [float(one) for one in ahead_of_what_they_replaced(columns, np.array(evidence))]


def test_what_replaces_a_fact_is_ahead_of_the_message_that_is_found_for_it() -> None:
    """Given a message found for the old home, I expect the new home ahead of it."""
    found = lifted([6.0, 0.0, 4.0, 1.0, 0.0, -2.0], (OSLO, LISBON))

    assert max(range(6), key=found.__getitem__) == LISBON


def test_a_message_is_found_for_the_fact_that_answers_best() -> None:
    """Given a message of a home and a cat, found for the cat, I expect the new home ahead of the old one alone."""
    found = lifted([6.0, 0.0, 1.0, 4.0, 0.0, -2.0], (OSLO, LISBON))

    assert found[OSLO] < found[LISBON] < found[CATS]


@pytest.mark.parametrize("replaced", [[(OSLO, BERGEN), (BERGEN, LISBON)], [(BERGEN, LISBON), (OSLO, BERGEN)]])
@pytest.mark.parametrize("numbered", [[OSLO, CATS, BERGEN, LISBON], [LISBON, BERGEN, CATS, OSLO]])
def test_the_end_of_a_chain_is_ahead_of_all_of_it(replaced: list[tuple[int, int]], numbered: list[int]) -> None:
    """Given Oslo, Bergen, Lisbon, stored in this order or, as by an import, the other way round: Lisbon is ahead."""
    number = dict(zip((OSLO, CATS, BERGEN, LISBON), numbered, strict=True))
    evidence = {OSLO: 4.0, CATS: 1.0, BERGEN: 0.0, LISBON: -2.0}
    by_number = {number[fact]: evidence[fact] for fact in evidence}

    found = lifted([0.0, 0.0, *(by_number[one] for one in range(2, 6))], *((number[a], number[b]) for a, b in replaced))

    assert found[number[OSLO]] < found[number[BERGEN]] < found[number[LISBON]]


def test_facts_that_have_replaced_each_other_end() -> None:
    """Given a circle, as of a record that was written by hand, I expect an answer."""
    assert len(lifted([0.0] * 6, (OSLO, LISBON), (LISBON, OSLO))) == 6
