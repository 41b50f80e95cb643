"""Fingerprints: two texts that say the same are one, and two that differ in anything that carries meaning are two."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.long_term_memory.retrieval.fingerprints import fingerprint, fingerprints

SAME = [
    ("I love tea!!", "i love  TEA"),
    ("i LIKE green tea...", "I like green tea"),
    ("Ｇreen tea", "green tea"),
    ("ｶﾞｰﾃﾞﾝ", "ガーデン"),
    ("我对虾过敏。", "我对虾过敏"),
    ("我 喜欢 绿茶", "我喜欢绿茶"),
    ("मुझे दाल पसंद है।", "मुझे दाल पसंद है"),
    ("¡Vivo en Oporto!", "vivo en Oporto"),
    ("ما اسم قطتي؟", "ما اسم قطتي ؟"),
    ("Πού μένω;", "πού μένω?"),  # a Greek question mark is a semicolon
    ("Where is it?!", "where is it ？"),
    ("I don’t know", "I don't know"),
    ("caf\u00e9", "cafe\u0301"),
    ("❤️", "❤"),  # one heart, with and without the selector of its form
    ("Московская УЛИЦА", "московская улица"),
    ("don't\u200b go", "don't go"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_two_spellings_of_a_text_are_one(one: str, other: str) -> None:
    assert fingerprint(one) == fingerprint(other)


TWO = [
    ("I write C", "I write C++"),
    ("I write C++", "I write C#"),
    ("paid 3.5", "paid 35"),
    ("balance -50", "balance 50"),
    ("1/12", "11/2"),
    ("5%", "$5"),
    ("10²", "102"),
    ("½ cup", "12 cup"),
    ("😀", "😭"),
    ("👍", "👍👎"),
    ("👨‍👩‍👧", "👨👩👧"),
    ("मुझे दाल पसंद है", "मुझे दिल पसंद है"),
    ("ฉันกลัวหมู", "ฉันกลัวหมี"),
    ("ငါ့နာမည် မိုး", "ငါ့နာမည် မေး"),
    ("ខ្ញុំខ្លាចខ្លា", "ខ្ញុំខ្លាចខ្លី"),
    ("in Maßen", "in Massen"),
    ("résumé", "resume"),
    ("می‌روم", "میروم"),
    ("kısa", "kisa"),
    ("no where", "nowhere"),
    (":)", ":("),
    ("A+", "A-"),
    ("I live in Porto", "I live in Porto?"),
    ("...", "!!!"),
]


@pytest.mark.parametrize(("one", "other"), TWO)
def test_two_texts_that_differ_in_what_they_say_are_two(one: str, other: str) -> None:
    assert fingerprint(one) != fingerprint(other)


#: Letters, vowel signs, digits and other numbers, signs and emoji of all scripts.
MEANT = st.characters(categories=["L", "M", "N", "S"])
TEXTS = st.text(max_size=20)


#: Choose between two forms of one character.
SELECTORS = "\ufe0e\ufe0f"


def folded(text: str) -> str:
    """The text as Unicode folds width and case."""
    return unicodedata.normalize("NFKC", text).lower()


@given(TEXTS, MEANT, MEANT, TEXTS)
def test_a_character_makes_a_difference(before: str, one: str, other: str, after: str) -> None:
    """Given two texts that differ in one letter, vowel sign, digit, sign or emoji, I expect two."""
    this, that = f"{before}{one}{after}", f"{before}{other}{after}"
    assume(folded(this) != folded(that) and not {one, other} & set(SELECTORS))

    assert fingerprint(this) != fingerprint(that)


@given(TEXTS, MEANT)
def test_a_character_more_makes_a_difference(text: str, more: str) -> None:
    """Given a text, and the same with one letter, vowel sign, digit, sign or emoji more, I expect two."""
    assume(more not in SELECTORS)

    assert fingerprint(text) != fingerprint(text + more)


@given(st.text())
def test_a_fingerprint_is_its_own(text: str) -> None:
    """Given any text, I expect the same of its fingerprint, and of it with white space around."""
    assert fingerprint(fingerprint(text)) == fingerprint(text)
    assert fingerprint(f" {text}\n") == fingerprint(text)


def test_a_statement_and_the_question_in_its_words_know_each_other() -> None:
    """Given a statement, and the same with a question mark, I expect both to name the other's fingerprint."""
    told, asked = fingerprints("I live in Porto."), fingerprints("i live in Porto ?")

    assert (told.stated, told.asked) == (asked.stated, asked.asked)
    assert (told.own, asked.own) == (told.stated, told.asked)
    assert (told.marked, asked.marked) == (False, True)


@pytest.mark.parametrize("text", ["", " ", "\ufeff"])
def test_an_empty_text_has_no_fingerprint(text: str) -> None:
    assert fingerprint(text) == ""
