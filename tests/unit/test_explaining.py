"""The explanation of a search: it changes nothing, and says of each candidate what became of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keepsake_client.protocol import SearchData
from keepsake_client.turns import CANDIDATES

from services.long_term_memory.explaining import Explained, best_of, cut_of, explained
from services.long_term_memory.postgres.store import Brief
from services.long_term_memory.retrieval.columns import MemoryColumns
from services.long_term_memory.retrieval.facts import ColumnsWithFacts, with_facts
from services.long_term_memory.retrieval.features import match
from services.long_term_memory.retrieval.query import query_features
from services.long_term_memory.retrieval.ranking import rank, rank_with_others
from services.long_term_memory.retrieval.results import depth_for, results
from tests.unit.turns import RELATED, UNRELATED, VERY_NEAR, Turn, columns_of

QUESTION = "What is my cat called?"


def explain(columns: MemoryColumns, texts: list[str], **more: Any) -> Explained:
    """The explanation of a search of these memories, as the memory service makes it."""
    search, query = SearchData(query=QUESTION, **{"min_score": 0, **more}), query_features(QUESTION)
    features = with_facts(columns, match(columns, query, search, 1_000.0), include_superseded=False)
    ranking, others = rank_with_others(columns, query, features, limit=depth_for(columns, search.limit))
    least = search.min_score or 0.0
    found = results(ranking.where(ranking.score >= least), columns, search.limit)
    stored = {
        number: Brief(str(number), text, "user", 0.0, None, None, is_fact=False)
        for number, text in zip(columns.number.tolist(), texts, strict=True)
        if text != "deleted meanwhile"
    }
    cut = cut_of(features, min_score=least, limit=search.limit, partial=False)
    return explained(best_of(ranking, others(CANDIDATES)), ranking, columns, features, found, stored, cut)


def verdicts(found: Explained) -> dict[str, str]:
    return {candidate.content or "": candidate.verdict for candidate in found.candidates}


def of(*turns: Turn, **more: Any) -> Explained:
    return explain(columns_of(turns), [turn.text for turn in turns], **more)


NEAR, LESS, FAR = (
    Turn("My cat is called Mochi", VERY_NEAR, session=1),
    Turn("We once had a dog", RELATED, session=2),
    Turn("The train was late", UNRELATED, session=3),
)


def test_what_comes_behind_the_limit_is_over_it() -> None:
    """Given a limit of one, I expect the best returned, and the others behind it, best first."""
    found = of(NEAR, LESS, FAR, limit=1)

    assert verdicts(found) == {NEAR.text: "returned", LESS.text: "over_limit", FAR.text: "over_limit"}
    assert [candidate.content for candidate in found.candidates] == [NEAR.text, LESS.text, FAR.text]


def test_what_scores_too_little_is_below_min_score() -> None:
    """Given a least score between two memories, I expect what is under it named so."""
    scores = [candidate.score for candidate in of(NEAR, LESS, FAR).candidates]

    found = of(NEAR, LESS, FAR, min_score=(scores[0] + scores[1]) / 2)

    assert verdicts(found) == {NEAR.text: "returned", LESS.text: "below_min_score", FAR.text: "below_min_score"}
    assert (found.cut.min_score, found.cut.limit) == ((scores[0] + scores[1]) / 2, 5)


def test_the_same_text_is_named_once() -> None:
    """Given a text said three times, I expect one returned, one of the same text, and no third."""
    found = of(NEAR, replace(NEAR, session=4), replace(NEAR, session=5, text="my cat is called mochi!"), LESS)

    assert sorted(c.verdict for c in found.candidates) == ["returned", "returned", "same_text"]


def test_what_is_filtered_out_or_the_query_itself_is_counted() -> None:
    """Given an echo and a memory that the filters leave out, I expect neither ranked, and both counted."""
    found = of(NEAR, Turn(QUESTION, VERY_NEAR, session=4), replace(LESS, from_ai=True), filters={"source": "user"})

    assert verdicts(found) == {NEAR.text: "returned"}
    assert (found.cut.ranked, found.cut.filtered, found.cut.echoes) == (1, 1, 1)


def test_a_memory_that_is_deleted_meanwhile_is_no_candidate() -> None:
    """Given a memory that is gone when it is loaded, I expect the others."""
    found = of(NEAR, Turn("deleted meanwhile", RELATED, session=2), FAR)

    assert verdicts(found) == {NEAR.text: "returned", FAR.text: "returned"}


def test_recency_is_a_part_of_its_own() -> None:
    """Given a half-life, I expect what age takes away beside the utterance; without one, none, and the same rest."""
    aged = replace(NEAR, timestamp=1_000.0 - 10 * 86_400)

    with_it, without = (of(aged, **more).candidates[0].parts for more in ({"recency_half_life_days": 5}, {}))

    assert list(without) == ["meaning", "words", "session", "utterance", "recency"]
    assert with_it["recency"] == pytest.approx(-2 * np.log(2), abs=0.001)
    assert without["recency"] == 0
    assert {**with_it, "recency": 0} == pytest.approx(without, abs=0.002)


@pytest.mark.parametrize(
    ("cosines", "verdict_of_fact", "verdict_of_message"),
    [
        ((VERY_NEAR + 0.05, UNRELATED), "returned", "said_by_fact"),
        ((UNRELATED, VERY_NEAR + 0.05), "with_message", "returned"),
    ],
    ids=["the fact is better", "the message is better"],
)
def test_a_fact_and_its_message_are_one_result(
    cosines: tuple[float, float], verdict_of_fact: str, verdict_of_message: str
) -> None:
    """Given a fact and the message that says it, I expect the better returned, and the other explained by it."""
    fact, message = Turn("The cat is called Mochi", cosines[0]), Turn("I named my cat Mochi", cosines[1])
    facts = replace(columns_of([fact]), number=np.array([10]))
    said = np.array([(10, 0)], np.int64)
    columns = ColumnsWithFacts.of(columns_of([message, LESS]), [facts], said, np.zeros((0, 2), np.int64))

    found = explain(columns, [message.text, LESS.text, fact.text])

    assert verdicts(found) == {
        message.text: verdict_of_message,
        fact.text: verdict_of_fact,
        LESS.text: "returned",
    }


WORDS = st.sampled_from(["cat", "called", "Mochi", "my", "is", "What", "train", "late", "?"])
TURNS = st.builds(
    Turn,
    st.lists(WORDS, min_size=1, max_size=5).map(" ".join),
    st.floats(UNRELATED - 0.05, VERY_NEAR + 0.05),
    st.integers(1, 3),
    st.booleans(),
)


@given(st.lists(TURNS, min_size=1, max_size=60), st.integers(1, 30), st.sampled_from([QUESTION, "my cat is Mochi"]))
def test_an_explanation_changes_no_ranking(turns: list[Turn], limit: int, question: str) -> None:
    """Given any memories, I expect the ranking as without an explanation, and behind it others, each memory once."""
    columns, query = columns_of(turns), query_features(question)
    features = match(columns, query, SearchData(query=question), 1_000.0)

    alone = rank(columns, query, features, limit=limit)
    ranking, others_of = rank_with_others(columns, query, features, limit=limit)
    others = others_of(CANDIDATES)

    for part in ("rows", "score", "meaning", "words", "session", "utterance"):
        assert getattr(ranking, part).tolist() == getattr(alone, part).tolist()
    rows = [*ranking.rows.tolist(), *others.rows.tolist()]
    assert len(rows) == len(set(rows))
    best = best_of(ranking, others)
    assert (np.diff(best.score) <= 0).all()
    assert len(best) <= CANDIDATES
