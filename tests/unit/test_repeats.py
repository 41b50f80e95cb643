"""The ranking of what repeats the query, of queries with nothing to look for, and of rooms."""

from __future__ import annotations

from dataclasses import replace

import pytest
from keepsake_client.protocol import SearchData

from services.long_term_memory.retrieval.features import match
from services.long_term_memory.retrieval.query import query_features
from services.long_term_memory.retrieval.ranking import ANSWER_SCORE, DEFAULT_MIN_SCORE, rank
from services.long_term_memory.retrieval.weights import Weights
from tests.unit.test_ranking import SMALL_TALK, search
from tests.unit.turns import RELATED, UNRELATED, VERY_NEAR, Turn, columns_of

QUESTION = "como se llama mi gata"
FACT = Turn("mi gata se llama Luna", RELATED, session=1)
ASKED = Turn(QUESTION, VERY_NEAR, session=2)


def test_a_repeat_comes_after_every_answer() -> None:
    """Given a fact and the query asked before without a mark, I expect the fact, the repeat, and then what is none."""
    others = [replace(one, cosine=UNRELATED - 0.5) for one in SMALL_TALK]
    texts, ranking = search(QUESTION, ASKED, FACT, *others)

    assert texts[:2] == [FACT.text, QUESTION]
    assert ranking.score[2] < DEFAULT_MIN_SCORE < ranking.score[1] <= ranking.score[0]


def test_a_repeat_comes_before_what_hardly_answers() -> None:
    """Given an unrelated line that is returned, but scores less than an answer does, I expect the repeat before it."""
    unrelated = Turn("the tram was late", UNRELATED + 2 * Weights().cosine_deviation, session=4)
    texts, ranking = search(QUESTION, ASKED, unrelated)

    assert DEFAULT_MIN_SCORE < search(QUESTION, unrelated)[1].score[0] < ANSWER_SCORE
    assert texts == [QUESTION, unrelated.text]
    assert ranking.score[0] > 0.5


def test_a_repeat_alone_keeps_its_score() -> None:
    """Given no answer, I expect the repeat first, with a score of its own."""
    texts, ranking = search(QUESTION, ASKED, *SMALL_TALK)

    assert (texts[0], ranking.score[0] > 0.5) == (QUESTION, True)


def test_a_repeat_takes_the_last_place_of_a_full_list() -> None:
    """Given more answers than a search returns, I expect the repeat as the last that is returned."""
    facts = [replace(FACT, text=f"mi gata se llama {name}") for name in ("Luna", "Sol", "Nube", "Mar")]

    for limit in (2, 3):
        texts = search_with_limit(limit, ASKED, *facts)
        assert (len(texts), texts[-1]) == (limit, QUESTION)
    assert QUESTION not in search_with_limit(1, ASKED, *facts)


def search_with_limit(limit: int, *turns: Turn) -> list[str]:
    columns, query = columns_of(turns), query_features(QUESTION)
    ranking = rank(columns, query, match(columns, query, SearchData(query=QUESTION), 1_000.0), limit=limit)
    return [turns[row].text for row in ranking.rows]


def test_a_repeat_lifts_no_neighbour() -> None:
    """Given a line beside the repeat, I expect the score that it has without the repeat."""
    beside = Turn("hoy llueve mucho", UNRELATED, session=2)
    (_, alone), (texts, both) = search(QUESTION, beside, FACT), search(QUESTION, ASKED, beside, FACT)

    assert both.score[texts.index(beside.text)] == pytest.approx(alone.score[-1])


def test_scores_fall_in_order_with_a_repeat_among_them() -> None:
    """Given a repeat that is nearer to the query than the answers are, I expect no score above the one before it."""
    _, ranking = search(QUESTION, ASKED, FACT, replace(FACT, text="se llama Sol", cosine=UNRELATED), *SMALL_TALK)

    assert ranking.score.tolist() == sorted(ranking.score, reverse=True)


@pytest.mark.parametrize("query", ["thanks!", "早上好", "...", "https://example.org/a1"])
def test_a_query_with_nothing_to_look_for_finds_nothing(query: str) -> None:
    """Given memories that are very near to a greeting or an address, I expect scores of nothing."""
    _, ranking = search(query, Turn("thanks to Anna I have a cat", VERY_NEAR), *SMALL_TALK)

    assert ranking.score.max() < 0.001


def test_in_a_room_the_line_about_the_one_who_is_named_comes_first() -> None:
    """Given three speakers, of whom one tells about another, I expect that line before the other's own remark."""
    texts, _ = search(
        "What did Alice adopt?",
        Turn("Alice: let me think about that for a while", RELATED, session=1),
        Turn("Dave: Alice will adopt a parrot", RELATED, session=2),
        Turn("Bob: it rains", session=3),
    )

    assert texts[0] == "Dave: Alice will adopt a parrot"
