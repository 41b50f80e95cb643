"""A search that is short of time does without its embedding, and not for longer than it must."""

from __future__ import annotations

from services.long_term_memory.deadlines import LatencyEstimate, QueryVectors


class Embedder:
    """Embeds anything, and counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def embed(self, query: str) -> list[float]:
        """A vector of one number."""
        self.calls.append(query)
        return [float(len(query))]


def vectors_that_took(seconds: float, embedder: Embedder, kept: int = 8) -> QueryVectors:
    """Query vectors whose embedder has been slow lately."""
    vectors = QueryVectors(embedder.embed, kept)
    vectors._pace.seconds = seconds
    return vectors


def test_a_query_asked_again_is_not_embedded_again() -> None:
    """Given a query asked twice, I expect one embedding and the same vector."""
    embedder = Embedder()
    vectors = QueryVectors(embedder.embed, 8)

    first, second = vectors.get("tea?", 1.0), vectors.get("tea?", 1.0)

    assert embedder.calls == ["tea?"]
    assert first is second


def test_the_oldest_query_is_forgotten_first() -> None:
    """Given room for two, I expect the one asked longest ago to be embedded anew."""
    embedder = Embedder()
    vectors = QueryVectors(embedder.embed, 2)
    for query in ("a", "b", "a", "c", "a", "b"):
        vectors.get(query, 1.0)

    assert embedder.calls == ["a", "b", "c", "b"]


def test_there_is_no_vector_when_there_is_no_time() -> None:
    """Given an embedder that takes a second and half of one left, I expect none, and no try."""
    embedder = Embedder()

    assert vectors_that_took(1.0, embedder).get("tea?", 0.5) is None
    assert embedder.calls == []


def test_a_known_query_needs_no_time() -> None:
    """Given a vector that is there already, I expect it even when no time is left."""
    embedder = Embedder()
    vectors = QueryVectors(embedder.embed, 8)
    vectors.get("tea?", 1.0)
    vectors._pace.seconds = 10.0

    assert vectors.get("tea?", 0.0) is not None


def test_a_slow_spell_is_not_remembered_for_ever() -> None:
    """Given an embedder that was slow once and is never tried since, I expect it to be tried again before long."""
    embedder = Embedder()
    vectors = vectors_that_took(2.0, embedder)

    answers = [vectors.get(f"question {number}", 0.3) for number in range(20)]

    assert any(answer is not None for answer in answers)


def test_an_average_follows_what_is_measured() -> None:
    """Given the same measurement again and again, I expect the estimate to come to it."""
    pace = LatencyEstimate()
    for _ in range(40):
        pace.took(0.5)

    assert abs(pace.seconds - 0.5) < 0.01
