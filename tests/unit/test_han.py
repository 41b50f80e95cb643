"""Variants of Han characters: one character stands for all of them."""

from bench.retrieval.han import variants
from services.long_term_memory.retrieval.han import VARIANTS, fold


def test_the_table_is_that_of_opencc() -> None:
    """Given OpenCC's data and our additions, I expect the file as it is; otherwise: python -m bench.retrieval.han."""
    assert VARIANTS.read_text("utf-8") == variants()


def test_what_a_character_becomes_is_itself_folded() -> None:
    """Given every variant, I expect its form to stay as it is: else two of one set would differ."""
    forms = VARIANTS.read_text("utf-8")[1::2]

    assert fold(forms) == forms


def test_a_folded_text_is_as_long_as_it_was() -> None:
    """Given a text with variants, others and other scripts, I expect one character for each."""
    assert fold("妳說甚麼? 麼麽么 OK") == "你说什么? 么么么 OK"
