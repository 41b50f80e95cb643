"""Newer of the same matter: rankings for queries of the current state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
from keepsake_client.protocol import SearchData

from services.long_term_memory.retrieval.facts import ColumnsWithFacts
from services.long_term_memory.retrieval.features import match
from services.long_term_memory.retrieval.newer import prefer_newer
from services.long_term_memory.retrieval.query import query_features
from services.long_term_memory.retrieval.ranking import Ranking
from tests.unit.test_ranking import by_row, search
from tests.unit.turns import RELATED, VERY_NEAR, Turn, columns_of


def _newer(likeness: Sequence[float], times: Sequence[float]) -> tuple[Ranking, Ranking]:
    """Rankings of memories with such cosines to the first of them and such times, before and after."""
    turns = [Turn(f"story {n}", VERY_NEAR - 0.01 * n, session=n, timestamp=moment) for n, moment in enumerate(times)]
    before = search("Which is it?", *turns)[1]
    assert before.rows.tolist() == list(range(len(times)))
    return before, newer(before, turns, likeness)


def newer(before: Ranking, turns: Sequence[Turn], likeness: Sequence[float], question: str = "Which is it?") -> Ranking:
    """The ranking of these turns with what is newer preferred."""
    columns, query = columns_of(turns), query_features(question)
    features = match(columns, query, SearchData(query=question), 1_000.0)
    return prefer_newer(before, columns, features, np.array(likeness))


def test_what_is_newer_and_of_the_matter_of_the_best_rises() -> None:
    """Given an old fact, one like it and an unlike one of later, I expect the rise of the first alone, by its place."""
    before, after = _newer([1.0, 0.9, 0.79], [0.0, 5.0, 9.0])

    assert after.rows.tolist() == [1, 0, 2]
    assert by_row(after, "utterance")[1] - by_row(before, "utterance")[1] == pytest.approx(8.0 * (1 / 2) * 1.0)
    assert by_row(after, "evidence")[2] == pytest.approx(by_row(before, "evidence")[2], abs=0.3)


def test_likeness_counts_in_deviations_from_unrelated_memories() -> None:
    """Given the median of the others and the model's eight, I expect the share of three deviations above these."""
    before, after = _newer([1.0, 0.84, 0.80, 0.78], [0.0, 5.0, 6.0, 7.0])

    unrelated = (0.80 * 3 + 0.79 * 8) / 11
    share = (0.84 - unrelated) / 0.028 / 3
    assert by_row(after, "utterance")[1] - by_row(before, "utterance")[1] == pytest.approx(8.0 * (1 / 3) * share)


def test_in_chinese_unrelated_memories_are_nearer() -> None:
    """Given two lines as near as unrelated ones are in Chinese, I expect no rise."""
    turns = [Turn("我住在上海这个城市", VERY_NEAR), Turn("自行车昨天被偷走了", RELATED, session=2, timestamp=9.0)]
    before = search("我现在住在哪里？", *turns)[1]
    after = newer(before, turns, [1.0, 0.89])
    assert after.evidence.tolist() == before.evidence.tolist()


def test_lines_in_another_script_do_not_lower_what_is_unrelated() -> None:
    """Given a line in Chinese, far from all in English, I expect the rise of the newer as without it."""
    old, new = Turn("I live in Porto", VERY_NEAR), Turn("I moved to Lyon", RELATED, session=2, timestamp=9.0)
    chinese = Turn("下了一下午的雨", session=3, timestamp=10.0)

    def rise(turns: list[Turn], likeness: list[float]) -> float:
        before = search("Where do I live now?", *turns)[1]
        after = newer(before, turns, np.array(likeness)[before.rows].tolist())
        return by_row(after, "utterance")[1] - by_row(before, "utterance")[1]

    alone = rise([old, new], [1.0, 0.83])
    assert rise([old, new, chinese], [1.0, 0.83, 0.5]) == pytest.approx(alone / 2)  # it is the newest of all


def test_what_is_older_is_not_lowered() -> None:
    """Given the best as the newest, I expect the ranking as it was."""
    before, after = _newer([1.0, 0.9, 0.9], [9.0, 5.0, 1.0])
    assert after.evidence.tolist() == before.evidence.tolist()
    assert after.score == pytest.approx(before.score)


def test_what_comes_first_now_has_the_score_of_what_came_first_before() -> None:
    """Given a newer fact that comes first, I expect the old one's score for it, and the others' to fall from there."""
    before, after = _newer([1.0, 0.9, 0.79], [0.0, 5.0, 9.0])

    assert (before.rows[0], after.rows[0]) == (0, 1)
    assert after.score[0] == pytest.approx(before.score[0])
    assert after.score[1] < before.score[0] - 0.05
    assert (np.diff(after.score) <= 0).all()


def test_one_memory_has_no_newer() -> None:
    """Given one memory or none, I expect the ranking as it was."""
    before = search("Which is it now?", Turn("story", RELATED))[1]
    assert newer(before, [Turn("story", RELATED)], [1.0]) is before


def test_a_line_that_repeats_the_query_does_not_rise() -> None:
    """Given the query's own words, newer than the fact and near it, I expect the fact to stay first."""
    question = "como se llama ahora mi gata"
    turns = [Turn("mi gata se llama Luna", RELATED), Turn(question, VERY_NEAR, session=2, timestamp=9.0)]
    before = search(question, *turns)[1]

    assert before.rows.tolist() == [0, 1]
    assert newer(before, turns, [1.0, 1.0], question).rows.tolist() == [0, 1]


def test_a_reply_stays_behind_what_it_repeats() -> None:
    """Given an old fact, one less like it and the AI's reply that repeats the latter, I expect the reply behind it."""
    turns = [
        Turn("I live in Porto", VERY_NEAR),
        Turn("we have moved to Lyon", RELATED, session=2, timestamp=8.0),
        Turn("So you have moved to Lyon", RELATED, session=2, timestamp=9.0, from_ai=True),
        *(Turn(f"story {n}", session=9 + n) for n in range(3)),
    ]
    before = search("Where do I live now?", *turns)[1]

    after = newer(before, turns, [1.0, 0.8, 1.0, 0.79, 0.79, 0.79])

    assert before.rows.tolist()[:3] == after.rows.tolist()[:3] == [0, 1, 2]
    assert by_row(after, "evidence")[2] > by_row(after, "evidence")[1]  # it would have come first of the two


def test_messages_rise_as_if_there_were_no_facts() -> None:
    """Given facts of the oldest message, each near to the best, I expect the messages to rise as without them."""
    turns = [Turn(f"story {n}", VERY_NEAR - 0.01 * n, session=n, timestamp=5.0 * n) for n in range(3)]
    before = search("Which is it?", *turns)[1]
    likeness = [1.0, 0.9, 0.79]
    messages, query = columns_of(turns), query_features("Which is it?")
    facts = [Turn(f"A fact {n}", RELATED, session=9) for n in range(4)]
    numbered = replace(columns_of(facts), number=np.arange(10, 14))
    said = np.array([(10 + n, 0) for n in range(4)], np.int64)
    columns = ColumnsWithFacts.of(messages, [numbered], said, np.zeros((0, 2), np.int64))
    parts = {
        part.name: np.append(getattr(before, part.name), np.full(4, getattr(before, part.name)[-1]))
        for part in fields(Ranking)
    }
    with_facts = Ranking(**{**parts, "rows": np.append(before.rows, [3, 4, 5, 6])})
    features = match(columns, query, SearchData(query="Which is it?"), 1_000.0)

    after = prefer_newer(with_facts, columns, features, np.array([*likeness, 0.95, 0.95, 0.95, 0.95]))

    expected = newer(before, turns, likeness)
    for row in range(3):
        assert by_row(after, "utterance")[row] == by_row(expected, "utterance")[row]
