"""Columns, features of a query, and features of a query and the memories of one user."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
from keepsake_client.protocol import SearchData

from services.long_term_memory.retrieval.columns import MemoryColumns, hashed, hashed_terms
from services.long_term_memory.retrieval.features import UNSOUGHT, Features, match, possible_echoes
from services.long_term_memory.retrieval.query import query_features
from services.long_term_memory.retrieval.utterances import Question, Script
from tests.unit.turns import Turn, columns_of

NOW = 1_000_000.0
DAY = 86_400.0


def features_of(question: str, *turns: Turn, **more: Any) -> Features:
    return match(columns_of(turns), query_features(question), SearchData(query=question, **more), NOW)


# Columns


def test_hashes_are_those_that_are_stored() -> None:
    """Given texts, I expect the hashes that stored memories have: others would find none of them."""
    assert hashed("") == 0
    assert hashed("tea") == -5_015_453_343_862_700_912
    assert hashed("tea", person=b"day") not in {0, hashed("tea")}
    assert hashed_terms(["tea", ""]).tolist() == [2_391_201_714, 0]
    assert hashed_terms(["tea"]).dtype == np.dtype("<u4")  # of which columns are packed


def test_every_text_has_a_hash() -> None:
    """Given half of a surrogate pair, which a client may cut off, I expect hashes of it like those of other texts."""
    assert hashed("tea\ud83d") not in {0, hashed("tea")}
    assert hashed_terms(["tea\ud83d"]).tolist() != hashed_terms(["tea"]).tolist()


CONVERSATION = columns_of(
    [
        Turn("I like tea", session=7),
        Turn("Do you like coffee?", session=7),
        Turn("green tea", session=7),
        Turn("We went home, and you?", session=3),
        Turn("rain", session=3),
    ]
)


def test_terms_belong_to_rows() -> None:
    """Given the lengths of memories, I expect each term's row."""
    assert CONVERSATION.length.tolist() == [2, 2, 2, 2, 1]
    assert CONVERSATION.term_rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]


def test_sessions_are_numbered_in_their_order() -> None:
    """Given the hashes 7 and 3, I expect 0 and 1."""
    assert CONVERSATION.session_index.tolist() == [0, 0, 0, 1, 1]


def test_statements_are_all_but_what_only_asks() -> None:
    """Given a question, and a statement with a question, I expect the latter to be a statement."""
    assert CONVERSATION.asks.tolist() == [0, Question.ONLY, 0, Question.AT_THE_END, 0]
    assert CONVERSATION.statements.tolist() == [True, False, True, True, True]


def test_a_part_of_the_columns_has_its_own_terms() -> None:
    """Given a mask, I expect those memories with their terms, as if the others had never been stored."""
    kept = np.array([True, False, False, True, True])

    part = CONVERSATION.where(kept)

    assert isinstance(part, MemoryColumns)
    assert part.number.tolist() == [0, 3, 4]
    assert part.terms.tolist() == CONVERSATION.terms[[0, 1, 6, 7, 8]].tolist()
    assert part.session_index.tolist() == [0, 1, 1]


# The query


def test_a_query_has_each_term_once_with_its_weight() -> None:
    """Given a repeated word and a Chinese one, I expect each once, and a half of the weight where terms overlap."""
    query = query_features("tea, tea and 茶")

    assert query.terms.tolist() == hashed_terms(["tea", "茶"]).tolist()
    assert query.term_weight.tolist() == [1.0, 0.5]


def test_a_query_has_the_features_of_an_utterance() -> None:
    """Given a question of the present in Chinese, I expect it to be known as one."""
    query = query_features("我现在住在哪里?")

    assert (query.script, query.asks, query.asks_current_state) == (Script.HAN, Question.ONLY, True)
    assert (query.stated, query.asked) == (hashed("我现在住在哪里"), hashed("我现在住在哪里?"))


def test_names_are_phrases_of_up_to_three_words() -> None:
    """Given a possessive and a name of four words, I expect phrases of one to three words without the possessive."""
    names = set(query_features("What is Ａnna's Mary Lou's cat called?").names.tolist())  # a full-width A

    assert {hashed("anna"), hashed("mary lou"), hashed("anna mary lou"), hashed("called")} <= names
    assert hashed("anna mary lou cat") not in names
    assert hashed("anna's") not in names


def test_a_possessive_ends_a_word() -> None:
    """Given a typographic apostrophe, and a name with one before an s, I expect no part of a name lost."""
    names = set(query_features("Did O'Sullivan meet Anna’s boss?").names.tolist())

    assert {hashed("sullivan"), hashed("anna"), hashed("meet anna boss")} <= names


def test_a_query_without_words_names_no_speaker() -> None:
    """Given punctuation, I expect no names, of the type of the hashes that they are compared with."""
    names = query_features("???").names

    assert (len(names), names.dtype) == (0, np.dtype(np.int64))


# The query and the memories


def test_postings_count_terms_by_row() -> None:
    """Given words that occur in several memories, I expect term, row and count of each pair."""
    features = features_of("green tea", Turn("tea, tea"), Turn("rain"), Turn("green tea"))

    postings = zip(features.terms.tolist(), features.rows.tolist(), features.counts.tolist(), strict=True)
    assert list(postings) == [(0, 2, 1), (1, 0, 2), (1, 2, 1)]


def test_a_query_without_known_words_has_no_postings() -> None:
    """Given punctuation, and a word that does not occur, I expect no postings."""
    for question in ("???", "harpsichord"):
        features = features_of(question, Turn("tea"))
        assert (len(features.terms), len(features.rows), len(features.counts)) == (0, 0, 0)


def test_the_speakers_are_those_that_the_query_names() -> None:
    """Given two speakers of whom one is named, I expect that one."""
    features = features_of("What did Anna Lee buy?", Turn("Anna Lee: a boat"), Turn("Ben: no"), Turn("tea"))

    assert features.speakers.tolist() == [hashed("anna lee")]


@pytest.mark.parametrize(
    ("turn", "echo"),
    [
        (Turn("my dog is Rex!", timestamp=NOW), True),
        (Turn("my dog is Rex", timestamp=NOW - 5), True),
        (Turn("my dog is Rex", timestamp=NOW + 5), True),  # clocks differ
        (Turn("my dog is Rex", timestamp=NOW - 5.01), False),
        (Turn("my dog is Rex", timestamp=NOW + 5.01), False),
        (Turn("my dog is Rex", timestamp=NOW, from_ai=True), False),
        (Turn("my dog is Rex", timestamp=NOW, added=True), False),
        (Turn("my dog is Max", timestamp=NOW), False),
    ],
)
def test_a_statement_is_an_echo_where_the_user_makes_it_now(turn: Turn, echo: bool) -> None:
    """Given a statement as a query, I expect its own message left out, but not the AI's, nor an older one."""
    assert features_of("my dog is Rex", turn).echoes.tolist() == [echo]


def test_a_question_is_an_echo_at_any_time() -> None:
    """Given a question that was asked before, by either side, I expect an echo."""
    turns = Turn("where is it?", timestamp=1.0), Turn("Where is it", timestamp=2.0, from_ai=True)
    added = Turn("Where is it?", timestamp=3.0, added=True)

    assert features_of("Where is it?", *turns, added).echoes.tolist() == [True, True, False]


def test_a_statement_is_no_echo_of_the_question_in_its_words() -> None:
    """Given a statement and the question in its words, both of an earlier day, I expect the question alone."""
    turns = Turn("I live in Porto", timestamp=1.0), Turn("I live in Porto?", timestamp=2.0)

    features = features_of("I live in Porto?", *turns)

    assert (features.echoes.tolist(), features.repeats.tolist()) == ([False, True], [False, False])


def test_what_was_just_said_is_an_echo_with_and_without_its_mark() -> None:
    """Given the query's own message, indexed with another final mark, I expect an echo."""
    assert features_of("my dog is Rex?", Turn("my dog is Rex", timestamp=NOW)).echoes.tolist() == [True]


@pytest.mark.parametrize(
    ("turn", "repeats"),
    [
        (Turn("como se llama mi gata"), True),
        (Turn("Como se llama mi gata..."), True),
        (Turn("como se llama mi gata", from_ai=True), False),
        (Turn("como se llama mi gata", added=True), False),
        (Turn("mi gata se llama Luna"), False),  # it adds a name
        (Turn("se llama mi gata como"), True),  # the same words, in another order
        (Turn("gata"), False),  # too little of the query
    ],
)
def test_a_line_that_adds_nothing_to_the_query_repeats_it(turn: Turn, repeats: bool) -> None:
    """Given a query without a mark, I expect those lines of the user that hold nothing but its words."""
    assert features_of("como se llama mi gata", turn).repeats.tolist() == [repeats]


def test_a_text_without_words_repeats_nothing() -> None:
    """Given an empty query, I expect no repeats and no echoes, whatever fingerprints memories have."""
    features = match(
        replace(columns_of([Turn("tea")]), fingerprint=np.zeros(1, np.int64)),
        query_features(""),
        SearchData(query="x"),
        NOW,
    )

    assert (features.echoes.tolist(), features.repeats.tolist()) == ([False], [False])


def test_in_a_room_who_is_named_is_mentioned() -> None:
    """Given three speakers, I expect the lines that name the one of the query; given two, none."""
    room = [Turn("Alice: maybe later then"), Turn("Dave: Alice moves to Porto"), Turn("Bob: it rains")]

    assert features_of("where does Alice move?", *room).mentions.tolist() == [True, True, False]
    assert features_of("where does Alice move?", *room[:2]).mentions.tolist() == [False, False]


@pytest.mark.parametrize(
    ("query", "unsought"),
    [
        ("where is the cat?", [0.0, 0.0, 0.0]),
        ("thanks!", [UNSOUGHT] * 3),
        ("...", [UNSOUGHT] * 3),
        ("om_x91aa0000f", [UNSOUGHT, 0.0, UNSOUGHT]),
        ("👍", [UNSOUGHT, UNSOUGHT, 0.0]),
    ],
)
def test_a_query_with_nothing_to_look_for_takes_evidence_away(query: str, unsought: list[float]) -> None:
    """Given greetings, marks, an id and an emoji, I expect every memory to lose, but those that hold the latter two."""
    turns = Turn("thanks to Anna I have a cat"), Turn("the ticket is om_x91aa0000f"), Turn("that gets a 👍")

    assert features_of(query, *turns).unsought.tolist() == unsought


def test_messages_in_the_words_of_a_query_may_have_arrived_just_now() -> None:
    """Given messages in the query's words, I expect those of the user that are dated within a day, and are no echoes by
    their date, to be looked up, the newest ten alone."""
    others = (
        Turn("my dog is Rex", timestamp=NOW - 3),
        Turn("my dog is Rex", timestamp=NOW - 60, from_ai=True),
        Turn("my dog is Rex", timestamp=NOW - 60, added=True),
        Turn("my dog is Max", timestamp=NOW - 60),
        Turn("my dog is Rex", timestamp=NOW - 2 * 86_400),
    )
    turns = (*others, *(Turn("My dog is Rex!", timestamp=NOW - 3_600 * hours) for hours in range(-6, 6) if hours))

    columns, query = columns_of(turns), query_features("my dog is Rex")
    features = match(columns, query, SearchData(query="my dog is Rex"), NOW)

    assert possible_echoes(columns, query, features, NOW).tolist() == list(range(6, 16))


TURNS = (
    Turn("one", timestamp=10.0),
    Turn("two", timestamp=20.0, from_ai=True),
    Turn("three", timestamp=30.0),
)


@pytest.mark.parametrize(
    ("more", "eligible"),
    [
        ({}, [True, True, True]),
        ({"filters": {"source": "ai"}}, [False, True, False]),
        ({"filters": {"source": "user"}}, [True, False, True]),
        ({"filters": {"since": 20.0}}, [False, True, True]),
        ({"filters": {"until": 20.0}}, [True, True, False]),
        ({"filters": {"since": 20.0, "source": "user"}}, [False, False, True]),
        ({"filters": {"session_id": "s"}}, [False, False, False]),
        ({"exclude_session": "s"}, [True, True, True]),
    ],
)
def test_filters_say_what_is_eligible(more: dict[str, Any], eligible: list[bool]) -> None:
    """Given filters, I expect the memories that pass all of them; bounds of time are inclusive."""
    assert features_of("x", *TURNS, **more).eligible.tolist() == eligible


def test_a_memory_is_eligible_where_it_passes_every_filter() -> None:
    """Given all filters, I expect each to leave out the one memory that fails it alone."""
    s, t = hashed("s"), hashed("t")
    passes = Turn("one", session=s, from_ai=True, timestamp=20.0)
    fails = {
        "session_id": replace(passes, session=t),
        "source": replace(passes, from_ai=False),
        "since": replace(passes, timestamp=9.0),
        "until": replace(passes, timestamp=31.0),
    }
    filters = {"session_id": "s", "source": "ai", "since": 10.0, "until": 30.0}

    def eligible(**more: Any) -> list[bool]:
        return list(features_of("x", passes, *fails.values(), **more).eligible.tolist())

    assert eligible(filters=filters, exclude_session="u") == [True, False, False, False, False]
    assert eligible(filters=filters, exclude_session="s") == [False] * 5


def test_a_session_is_eligible_by_its_hash() -> None:
    """Given a session's id, I expect its memories, or all others where it is excluded."""
    turns = Turn("one", session=hashed("s")), Turn("two", session=hashed("t"))

    assert features_of("x", *turns, filters={"session_id": "s"}).eligible.tolist() == [True, False]
    assert features_of("x", *turns, exclude_session="s").eligible.tolist() == [False, True]


def test_a_half_life_halves_the_odds() -> None:
    """Given a half-life of two days, I expect log(2) less for each two days of age, and nothing less of the future."""
    turns = [Turn(text, timestamp=NOW - days * DAY) for text, days in (("a", 0), ("b", 2), ("c", 4), ("d", -2))]

    recency = features_of("x", *turns, recency_half_life_days=2).recency

    assert recency == pytest.approx([0, -log(2), -2 * log(2), 0])
    assert features_of("x", *turns).recency.tolist() == [0.0] * 4


def test_features_of_a_part_are_renumbered() -> None:
    """Given a mask, I expect the postings of those rows under their new numbers, and all else of those rows."""
    turns = Turn("tea", timestamp=NOW - DAY), Turn("green tea", timestamp=NOW - 2 * DAY), Turn("tea tea", timestamp=NOW)
    features = features_of("green tea", *turns, recency_half_life_days=1, filters={"until": NOW - DAY})

    part = features.where(np.array([False, True, True]))

    postings = zip(part.terms.tolist(), part.rows.tolist(), part.counts.tolist(), strict=True)
    assert list(postings) == [(0, 0, 1), (1, 0, 1), (1, 1, 2)]
    assert part.eligible.tolist() == [True, False]
    assert part.recency == pytest.approx([-2 * log(2), 0])
    assert part.echoes.tolist() == [False, False]


# The time that a query asks about


def test_a_query_of_a_time_has_how_much_each_memory_is_of_it() -> None:
    """Given a query of yesterday, I expect what was said then to be of it, and nothing where no time is asked about."""
    turns = [Turn("tea", timestamp=NOW - days * DAY) for days in (3, 1, 0)]
    columns = columns_of(turns)

    def then(question: str) -> Any:
        return match(columns, query_features(question, NOW), SearchData(query=question), NOW).then

    assert then("what did I drink?") is None
    shares = then("what did I drink yesterday?")
    assert shares[:2].tolist() == [0.0, 1.0]
    assert 0 < shares[2] < 1
