"""Neighbours: which turns support each other, in a conversation and in a stream of notes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from services.long_term_memory.retrieval.neighbours import Neighbours, passages
from tests.unit.turns import Turn, columns_of

KERNEL = (0.3, 0.2)


def shares_of(turns: Sequence[Turn], boost: float = 0.4) -> dict[tuple[int, int], float]:
    """What each turn has in each other, by their places: of the first in the second."""
    found = {}
    for d, forward, backward in Neighbours.of(columns_of(turns), 0.5).shares(KERNEL, boost):
        for row, (onward, back) in enumerate(zip(forward.tolist(), backward.tolist(), strict=True)):
            found[row, row + d], found[row + d, row] = onward, back
    return {pair: round(share, 6) for pair, share in found.items() if share}


def own_of(turns: Sequence[Turn]) -> list[float]:
    """The weight of each turn in itself."""
    own: list[float] = Neighbours.of(columns_of(turns), 0.5).own(KERNEL).round(6).tolist()
    return own


def test_in_an_exchange_turns_one_and_two_away_support_each_other() -> None:
    """Given Anna, Ben, Anna in one session, I expect the kernel's weights, and nothing of the next session."""
    turns = [Turn("Anna: tea"), Turn("Ben: bread"), Turn("Anna: milk"), Turn("Ben: rain", session=2)]

    assert shares_of(turns) == {(0, 1): 0.3, (1, 0): 0.3, (1, 2): 0.3, (2, 1): 0.3, (0, 2): 0.2, (2, 0): 0.2}


def test_where_one_speaker_goes_on_turns_support_each_other_less() -> None:
    """Given two turns of one speaker, I expect half of the kernel's weights between them, and across them."""
    turns = [Turn("Anna: tea"), Turn("Anna: bread"), Turn("Ben: milk")]

    assert shares_of(turns) == {(0, 1): 0.15, (1, 0): 0.15, (1, 2): 0.3, (2, 1): 0.3, (0, 2): 0.1, (2, 0): 0.1}


def test_a_note_among_the_messages_of_others_stands_alone() -> None:
    """Given a line without a name between two with names, I expect that it takes and gives nothing."""
    turns = [Turn("Anna: tea"), Turn("bread"), Turn("Ben: milk")]

    assert shares_of(turns) == {(0, 2): 0.2, (2, 0): 0.2}
    assert own_of(turns)[1] == 2.0


def test_an_answer_takes_more_of_the_question_before_it() -> None:
    """Given a turn that asks and the user's turn after it, I expect the boost there, and none back."""
    turns = [Turn("Which tea?", from_ai=True), Turn("green")]

    assert shares_of(turns) == {(0, 1): 0.7}  # what only asks takes nothing


def test_the_ai_takes_nothing_of_what_the_user_states() -> None:
    """Given a fact and the AI's reply, I expect that the fact takes of the reply, and the reply nothing of the fact."""
    stated = [Turn("I drink green tea"), Turn("Green tea, how nice", from_ai=True)]
    stated_and_asked = [Turn("I drink green tea. What else is there?"), Turn("Black tea", from_ai=True)]

    assert shares_of(stated) == {(1, 0): 0.3}
    assert shares_of(stated_and_asked) == {(1, 0): 0.3}


def test_the_ai_takes_of_a_question_that_it_answers() -> None:
    """Given a user who only asks and the AI's reply, I expect that the reply takes of the question, with the boost."""
    assert shares_of([Turn("Which tea is there?"), Turn("Green tea", from_ai=True)]) == {(0, 1): 0.7}


def test_a_turn_counts_of_itself_what_its_session_lacks() -> None:
    """Given a session of three turns and a lone note, I expect the weights of the neighbours that each lacks."""
    turns = [Turn("tea"), Turn("bread"), Turn("milk"), Turn("rain", session=2)]

    assert own_of(turns) == [1.5, 1.4, 1.5, 2.0]


def test_a_turn_that_only_asks_counts_once() -> None:
    """Given a lone question, I expect no more than the weight of one turn."""
    assert own_of([Turn("Where is it?")]) == [1.0]


def test_a_passage_adds_up_a_turn_and_its_neighbours() -> None:
    """Given weights of turns in themselves and in each other, I expect values added up by them."""
    shares = [(1, np.array([0.5, 0.0]), np.array([0.1, 0.0])), (2, np.array([0.25]), np.array([0.0]))]

    found = passages(np.array([4.0, 10.0, 20.0]), np.array([1.0, 2.0, 1.0]), shares)

    assert found.tolist() == [4 + 1, 20 + 2, 20 + 1]


def test_a_kernel_has_a_weight_for_each_distance() -> None:
    """Given a kernel of one weight, I expect an error rather than no neighbours two turns away."""
    with pytest.raises(ValueError, match="zip"):
        Neighbours.of(columns_of([Turn("tea")]), 0.5).shares((0.5,), 0.4)  # type: ignore[arg-type]
