"""Variants of Han characters: one character stands for all of them."""

from services.long_term_memory.retrieval.han import _VARIANTS, fold


def test_what_a_character_becomes_is_itself_folded() -> None:
    """Given every variant, I expect its form to stay as it is: else two of one set would differ."""
    assert [form for form in _VARIANTS.values() if fold(form) != form] == []


def test_a_folded_text_is_as_long_as_it_was() -> None:
    """Given a text with variants, others and other scripts, I expect one character for each."""
    assert fold("妳說甚麼? 麼麽么 OK") == "你说什么? 么么么 OK"
