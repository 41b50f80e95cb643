"""Speakers: who said a memory, who is named in a query, who is meant by a filter, and who asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keepsake_client.protocol import SearchData, Speaker
from numpy.testing import assert_array_equal

from services.long_term_memory.postgres.rows import analyse
from services.long_term_memory.retrieval.columns import hashed
from services.long_term_memory.retrieval.features import Features, match
from services.long_term_memory.retrieval.query import query_features
from services.long_term_memory.retrieval.ranking import Ranking, rank
from services.long_term_memory.retrieval.speakers import said_by, said_by_person, speaker_hash
from services.long_term_memory.retrieval.weights import Weights
from tests.unit.turns import RELATED, VERY_NEAR, Turn, columns_of

ANNA, OTHER_ANNA, BEN = (Speaker(id=i, name=name) for i, name in (("1", "Anna"), ("2", "Anna"), ("3", "Ben")))
ANNA_BY_NAME, ANNA_BY_ID = Speaker(name="Anna"), Speaker(id="1")
ALL = [ANNA, OTHER_ANNA, BEN, ANNA_BY_NAME, ANNA_BY_ID, None]

speakers = st.sampled_from(["Anna", "Ben", "Ｃarla", "小明", "d"]) | st.text(min_size=1, max_size=8)


def numbers(*said: Speaker | None) -> Any:
    return np.array([speaker_hash(one.model_dump(exclude_none=True) if one else None) for one in said], np.int64)


def features_of(question: str, *turns: Turn, **more: Any) -> Features:
    return match(columns_of(turns), query_features(question), SearchData(query=question, **more), 0.0)


def ranked(question: str, *turns: Turn, **more: Any) -> Ranking:
    return rank(columns_of(turns), query_features(question), features_of(question, *turns, **more))


def first(question: str, *turns: Turn, **more: Any) -> str:
    return turns[int(ranked(question, *turns, **more).rows[0])].text


def test_a_name_before_a_colon_is_the_speaker_of_that_name() -> None:
    """Given a name before a colon and the same name as a field, I expect one number, that of earlier versions."""
    assert speaker_hash(None, "anna") == speaker_hash({"name": " ＡNNA "}) == hashed("anna")
    assert speaker_hash(None) == speaker_hash({"name": ""}) == 0
    assert len(set(numbers(*ALL).tolist())) == len(ALL)


@pytest.mark.parametrize(
    ("speaker", "same", "person"),
    [
        (ANNA, [ANNA, ANNA_BY_ID], [ANNA, ANNA_BY_NAME, ANNA_BY_ID]),
        (ANNA_BY_ID, [ANNA, ANNA_BY_ID], [ANNA, ANNA_BY_ID]),
        (ANNA_BY_NAME, [ANNA, OTHER_ANNA, ANNA_BY_NAME], [ANNA, OTHER_ANNA, ANNA_BY_NAME]),
        (Speaker(name="Carla"), [], []),
        (Speaker(id="Anna"), [], []),
    ],
)
def test_a_speaker_is_recognised_by_id_and_else_by_name(
    speaker: Speaker, same: list[Speaker], person: list[Speaker]
) -> None:
    """Given a filter, I expect its id alone to count, without one the name; a person is also who has only the name."""
    assert said_by(numbers(*ALL), speaker).tolist() == [one in same for one in ALL]
    assert said_by_person(numbers(*ALL), speaker).tolist() == [one in person for one in ALL]


def test_a_filter_of_a_speaker_leaves_what_was_said_by_that_one() -> None:
    """Given a filter, I expect the lines of the speaker who is a field, and of one whom the text alone names."""
    turns = Turn("tea", speaker=ANNA), Turn("Anna: tea"), Turn("tea", speaker=BEN), Turn("tea")

    assert features_of("tea?", *turns, filters={"speaker": "anna"}).eligible.tolist() == [True, True, False, False]
    assert features_of("tea?", *turns, filters={"speaker": {"id": "1"}}).eligible.tolist() == [
        True,
        False,
        False,
        False,
    ]


def test_who_is_named_is_found_by_name_whatever_the_id() -> None:
    """Given a query that names Anna, I expect both of that name and no other, and the line of either before Ben's."""
    turns = (
        Turn("I have bought a boat", RELATED, session=1, speaker=BEN),
        Turn("I have bought a bike", RELATED, session=2, speaker=OTHER_ANNA),
        Turn("it rains", session=3, speaker=ANNA_BY_ID),
        Turn("it pours", session=4),
    )

    assert features_of("What did Anna buy?", *turns).speakers.tolist() == numbers(OTHER_ANNA).tolist()
    assert first("What did Anna buy?", *turns) == "I have bought a bike"


def test_two_of_one_name_are_two_speakers() -> None:
    """Given turns of two who share a name, I expect the second to be another speaker's, as by names that differ."""
    question, fact = "Where is the key?", Turn("it is under the mat", VERY_NEAR, speaker=ANNA)
    by_one, by_another, by_ben = (
        ranked(question, fact, Turn("the key, yes", speaker=one)).evidence[0] for one in (ANNA, OTHER_ANNA, BEN)
    )

    assert by_one < by_another == by_ben


NEARER = RELATED + Weights().cosine_deviation
ROOM = (
    Turn("my birthday is in May", NEARER, session=1, speaker=BEN),
    Turn("my birthday is in June", RELATED, session=2, speaker=ANNA),
    Turn("Carla: mine is in August", RELATED, session=3),
    Turn("I remember all birthdays", NEARER, session=4, from_ai=True),
    Turn("it rains", session=5),
)


@pytest.mark.parametrize("asker", ["Anna", "ＡNNA", {"id": "1"}, {"id": "1", "name": "A."}])
def test_my_birthday_is_the_askers(asker: Any) -> None:
    """Given that Anna asks, by name or id, I expect her own line first, though another is nearer to the question."""
    assert first("When is my birthday?", *ROOM) == "my birthday is in May"
    assert first("When is my birthday?", *ROOM, speaker=asker) == "my birthday is in June"


def test_another_of_the_same_name_asks_for_other_memories() -> None:
    """Given an asker whose name another has with an id, I expect nothing of theirs to be the asker's own."""
    of_others = features_of("When is my birthday?", *ROOM, speaker={"id": "9", "name": "Ben"}).of_others

    assert of_others is not None
    assert of_others.tolist() == [True, True, True, True, False]


def test_an_asker_whom_the_text_alone_names_is_recognised() -> None:
    """Given an asker with an id, and a line before which the text has that name, I expect it to be the asker's."""
    of_others = features_of("When is my birthday?", *ROOM, speaker={"id": "7", "name": "Carla"}).of_others

    assert of_others is not None
    assert of_others.tolist() == [True, True, False, True, False]


def test_what_another_says_of_the_asker_is_of_the_asker() -> None:
    """Given a room of three, I expect a line that names the asker not to count as another's own."""
    turns = (*ROOM, Turn("Anna moves to Porto", speaker=BEN))

    of_others = features_of("where do I move?", *turns, speaker="Anna").of_others

    assert of_others is not None
    assert of_others.tolist() == [True, False, True, True, False, False]


def test_who_asks_does_not_matter_where_another_is_named() -> None:
    """Given a query that names Ben, I expect the ranking that it has without an asker."""
    question = "When is Ben's birthday?"

    assert features_of(question, *ROOM, speaker="Anna").of_others is None
    assert_array_equal(ranked(question, *ROOM, speaker="Anna").score, ranked(question, *ROOM).score)


@pytest.mark.parametrize("turns", [[], [Turn("tea"), Turn("ok", from_ai=True)], [Turn("Anna: tea"), Turn("tea")]])
def test_who_asks_does_not_matter_where_nobody_else_is_known(turns: list[Turn]) -> None:
    """Given memories without speakers, or with the asker's alone, I expect the scores that there are without it."""
    asked, unasked = ranked("do I like tea?", *turns, speaker="Anna"), ranked("do I like tea?", *turns)

    assert_array_equal(asked.rows, unasked.rows)
    assert_array_equal(asked.score, unasked.score)


@given(st.lists(st.tuples(speakers, st.sampled_from(["tea", "I like tea", "Anna likes tea", "no"])), max_size=8))
def test_without_fields_speakers_are_those_of_earlier_versions(lines: list[tuple[str, str]]) -> None:
    """Given lines that begin with names, I expect the features by whole hashes, as before there were ids."""
    turns = [Turn(f"{name}: {text}") for name, text in lines]
    columns, query = columns_of(turns), query_features("Does Anna or 小明 or Ben like tea?")

    features = features_of("Does Anna or 小明 or Ben like tea?", *turns)

    assert_array_equal(features.speakers, np.intersect1d(np.unique(columns.speaker), query.names))
    assert features.of_others is None
    assert features.eligible.all()


@pytest.mark.parametrize("speaker", [{"name": "Anna"}, {"id": "7", "name": "Anna"}])
def test_a_speaker_is_found_by_the_words_of_the_name(speaker: dict[str, str]) -> None:
    """Given a speaker beside a text, I expect the terms that the text has with the name before it."""
    terms, _ = analyse("I am a nurse", from_ai=False, added=False, speaker=speaker)

    assert terms == analyse("Anna: I am a nurse", from_ai=False, added=False)[0]
    assert analyse("I am a nurse", from_ai=False, added=False, speaker={"id": "7"})[0] != terms
