"""What is the same text and what is not, through the real search: nothing is hidden, nothing is shown twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keepsake_client.protocol import SearchData

from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.retrieval.content import Content
from services.long_term_memory.retrieval.content import content as content_of
from services.long_term_memory.retrieval.fingerprints import fingerprints
from services.long_term_memory.retrieval.utterances import Question, asks
from tests.integration.test_search import CHATTER, DAY, NOW, found, say

#: Facts, and questions for them as a chat writes them, without a mark; the rules were chosen on the first part.
ASKED_AGAIN = json.loads((Path(__file__).parents[1] / "data" / "forms" / "asked-again.json").read_text("utf-8"))
FORMS = [
    pytest.param(form["fact"], form["question"], id=f"{form['language']}: {form['question']}")
    for part in ("chosen", "kept_back")
    for form in ASKED_AGAIN[part]
]


# A fact asked back


@pytest.mark.parametrize(("fact", "question"), FORMS)
def test_a_fact_that_is_asked_back_with_a_question_mark_is_first(
    keepsake: MemoryService, fact: str, question: str
) -> None:
    """Given a fact among other lines, I expect a search for it with a question mark to find it first."""
    say(keepsake, fact, *CHATTER, timestamp=NOW - 5 * DAY)

    assert found(keepsake, f"{fact}?")[0] == fact


def test_a_statement_is_not_hidden_by_the_question_in_its_words(keepsake: MemoryService) -> None:
    """Given a fact that was asked back before, I expect it, and not that question."""
    say(keepsake, "我对虾过敏", *CHATTER, timestamp=NOW - 5 * DAY)
    say(keepsake, "我对虾过敏？", timestamp=NOW - DAY)

    assert (found(keepsake, "我对虾过敏？")[0], found(keepsake, "我对什么过敏？")[0]) == ("我对虾过敏", "我对虾过敏")
    assert "我对虾过敏？" not in found(keepsake, "我对虾过敏？", min_score=0)


# A question asked again


@pytest.mark.parametrize(("fact", "question"), FORMS)
def test_a_question_that_was_asked_before_without_a_mark_comes_after_its_answer(
    keepsake: MemoryService, fact: str, question: str
) -> None:
    """Given a question of three earlier days, which the AI could not answer, I expect the fact first."""
    say(keepsake, fact, *CHATTER, timestamp=NOW - 10 * DAY)
    for days in (5, 3, 1):
        say(keepsake, question, timestamp=NOW - days * DAY)
        say(keepsake, "I'm not sure, sorry!", source="ai", timestamp=NOW - days * DAY + 5)

    assert found(keepsake, question)[0] == fact


def test_a_repeated_question_lifts_nothing(keepsake: MemoryService) -> None:
    """Given a question asked before, I expect the line beside it to score as if that had not been asked."""
    question, beside = "como se llama mi gata", "hoy llueve mucho"
    say(keepsake, "mi gata se llama Luna", *CHATTER, timestamp=NOW - 10 * DAY)
    say(keepsake, beside, timestamp=NOW - DAY)
    before = _scores(keepsake, question)[beside]

    say(keepsake, question, timestamp=NOW - DAY - 5)

    assert _scores(keepsake, question)[beside] == pytest.approx(before, abs=0.001)


def _scores(service: MemoryService, query: str) -> dict[str, float]:
    search = SearchData(query=query, min_score=0, limit=100)
    return {memory.content: memory.score or 0.0 for memory in service.search("u1", search, now=NOW)}


@pytest.mark.parametrize(("_", "question"), FORMS[:4])
def test_a_repeat_is_shown_where_there_is_nothing_else(keepsake: MemoryService, _: str, question: str) -> None:
    """Given a line without a question mark and unrelated ones, I expect a search in its words to find it."""
    say(keepsake, question, timestamp=NOW - DAY)

    assert found(keepsake, question) == [question]


# Two texts


PAIRS = [
    ("I write C", "I write C++"),
    ("I write C++", "I write C#"),
    ("paid 3.5", "paid 35"),
    ("balance -50", "balance 50"),
    ("1/12", "11/2"),
    ("5%", "$5"),
    ("😀", "😭"),
    ("मुझे दाल पसंद है", "मुझे दिल पसंद है"),
    ("ฉันกลัวหมู", "ฉันกลัวหมี"),
    ("ငါ့နာမည် မိုး", "ငါ့နာမည် မေး"),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_texts_that_differ_in_a_sign_are_both_shown(keepsake: MemoryService, one: str, other: str) -> None:
    """Given two memories that differ in a sign, a digit, a vowel sign or an emoji, I expect both, whatever is asked."""
    say(keepsake, one, other, timestamp=NOW - DAY)

    for query in (one, other, "what was it?"):
        assert set(found(keepsake, query, min_score=0)) == {one, other}


# What is stored is found by its own words


def is_question(text: str) -> bool:
    """Whether a text is an asking, of which it is said above that it does not come back."""
    return fingerprints(text).marked or (asks(text) is not Question.NOTHING and content_of(text) is Content.WORDS)


CONTENTS = st.text(
    st.characters(categories=["L", "M", "N", "P", "S", "Zs"], exclude_characters="\0"), min_size=1, max_size=40
).filter(lambda text: any(char.isalpha() for char in text) and not is_question(text))


@given(content=CONTENTS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_stored_is_found_by_its_own_words(keepsake: MemoryService, content: str) -> None:
    """Given any text with a letter that is no question, I expect its own words to find it on a later day."""
    user_id = f"u {content!r}"
    say(keepsake, content, *CHATTER, user_id=user_id, timestamp=NOW - DAY)

    assert content in found(keepsake, content, user_id=user_id, min_score=0)


# One term

VARIANTS = [
    ("我今天穿著紅裙子", "穿着红裙子", "穿著紅裙子"),
    ("他老家在乾安县", "乾安县", "乾安縣"),
    ("妳喜歡甚麼都告訴我", "你喜欢什么", "妳喜歡甚麼"),
    ("牠怕打雷", "它怕打雷吗", "牠怕打雷嗎"),
]


@pytest.mark.parametrize(("content", "simplified", "traditional"), VARIANTS)
def test_traditional_and_simplified_forms_are_one_word(
    keepsake: MemoryService, monkeypatch: pytest.MonkeyPatch, content: str, simplified: str, traditional: str
) -> None:
    """Given no time to embed the query, I expect its words in either form to find the memory just as well."""
    say(keepsake, content, timestamp=NOW - DAY)
    monkeypatch.setattr(keepsake._query_cache, "get", lambda *_: None)

    assert _scores(keepsake, simplified) == _scores(keepsake, traditional) != {}
