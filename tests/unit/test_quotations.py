"""Replies of the AI that repeat the user's words: they never come before these."""

from __future__ import annotations

import numpy as np

from services.long_term_memory.retrieval.quotations import LOOKED_AT, behind_what_they_repeat
from tests.unit.turns import Turn, columns_of

FACT = Turn("My cat is called Mochi")


def order(*turns: Turn, evidence: list[float], limit: int = 5) -> list[int]:
    """The rows by their evidence, best first."""
    columns = columns_of(turns)
    found = behind_what_they_repeat(columns, np.array(evidence), np.arange(len(columns)), limit)
    return list(np.argsort(-found, kind="stable"))


def test_a_reply_that_quotes_a_line_comes_behind_it() -> None:
    """Given a quotation with more evidence than the line, I expect the line first and the quotation next."""
    quotation = Turn('Here is what I remember: "My cat is called Mochi"', from_ai=True)

    assert order(quotation, Turn("it rained"), FACT, evidence=[9.0, 1.0, 4.0]) == [2, 0, 1]


def test_a_reply_in_other_words_comes_behind_the_line_too() -> None:
    """Given a reply that says the same of "you", in two languages, I expect the user's line first."""
    assert order(Turn("Your cat's called Mochi, right?", from_ai=True), FACT, evidence=[9.0, 4.0]) == [1, 0]
    assert order(Turn("你说过你的猫叫豆豆", from_ai=True), Turn("我的猫叫豆豆"), evidence=[9.0, 4.0]) == [1, 0]


def test_a_reply_comes_behind_the_best_of_what_it_quotes() -> None:
    """Given a reply that quotes two lines, I expect it between them."""
    both = Turn("My cat is called Mochi. My sister lives in Lisbon.", from_ai=True)

    assert order(both, FACT, Turn("My sister lives in Lisbon"), evidence=[9.0, 4.0, 2.0]) == [1, 0, 2]


def test_a_reply_with_an_answer_of_its_own_stays() -> None:
    """Given a reply that tells what no line does, I expect it first; so too behind a question or a single word."""
    answer = Turn("Your parcel arrives on Tuesday, March 5", from_ai=True)

    asked = Turn("When does my parcel arrive?"), Turn("parcel")
    assert order(answer, *asked, FACT, evidence=[9.0, 4.0, 3.0, 2.0])[0] == 0


def test_a_reply_with_less_than_three_quarters_of_a_line_stays() -> None:
    """Given a reply with two of a line's three terms, I expect it first: it tells something else."""
    reply = Turn("The vet called about your cat: the vaccination is on Monday", from_ai=True)

    assert order(reply, FACT, evidence=[9.0, 4.0]) == [0, 1]


def test_what_another_reply_says_is_no_line_of_the_user() -> None:
    """Given two replies in the same words, I expect their order to stay."""
    replies = [Turn("Your cat is called Mochi", from_ai=True), Turn("Yes, your cat is called Mochi", from_ai=True)]

    assert order(*replies, evidence=[1.0, 9.0]) == [1, 0]


def test_lines_are_looked_for_among_the_best() -> None:
    """Given a line that far more memories precede than are looked at, I expect the reply to stay."""
    others = [Turn("it rained")] * (LOOKED_AT + 1)
    reply = Turn("Your cat is called Mochi", from_ai=True)

    assert order(reply, *others, FACT, evidence=[9.0, *[5.0] * len(others), 1.0], limit=1)[0] == 0
