"""The deadline budget of a search, and the query cache, which skips an embedding that there is no time for."""

from __future__ import annotations

import pytest

from services.long_term_memory.deadlines import Deadline, LatencyEstimate
from services.long_term_memory.embeddings.query_cache import QueryCache
from services.runtime.errors import Expired


class Embedder:
    """Embeds anything, and counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def embed(self, query: str) -> list[float]:
        """A vector of one number."""
        self.calls.append(query)
        return [float(len(query))]


def cache_of_slow(embedder: Embedder, seconds: float) -> QueryCache:
    """A cache whose embedder has taken so many seconds lately."""
    cache = QueryCache(embedder.embed, 8)
    cache.latency.seconds = seconds
    return cache


def test_a_query_asked_again_is_not_embedded_again() -> None:
    """Given a query asked twice, I expect one embedding and the same vector."""
    embedder = Embedder()
    cache = QueryCache(embedder.embed, 8)

    first, second = cache.get("tea?", 1.0), cache.get("tea?", 1.0)

    assert embedder.calls == ["tea?"]
    assert first is second


def test_the_least_recently_used_query_is_evicted_first() -> None:
    """Given room for two, I expect the one asked longest ago to be embedded anew."""
    embedder = Embedder()
    cache = QueryCache(embedder.embed, 2)
    for query in ("a", "b", "a", "c", "a", "b"):
        cache.get(query, 1.0)

    assert embedder.calls == ["a", "b", "c", "b"]


def test_there_is_no_vector_when_there_is_no_time() -> None:
    """Given an embedder that takes a second and half of one left, I expect none, and no try."""
    embedder = Embedder()

    assert cache_of_slow(embedder, 1.0).get("tea?", 0.5) is None
    assert embedder.calls == []


def test_a_known_query_needs_no_time() -> None:
    """Given a vector that is there already, I expect it even when no time is left."""
    embedder = Embedder()
    cache = QueryCache(embedder.embed, 8)
    cache.get("tea?", 1.0)
    cache.latency.seconds = 10.0

    assert cache.get("tea?", 0.0) is not None


def test_a_high_estimate_decays_while_it_makes_searches_skip() -> None:
    """Given an embedder that was slow once and is never tried since, I expect it to be tried again before long."""
    embedder = Embedder()
    cache = cache_of_slow(embedder, 2.0)

    answers = [cache.get(f"question {number}", 0.3) for number in range(20)]

    assert any(answer is not None for answer in answers)


def test_an_average_follows_what_is_measured() -> None:
    """Given the same measurement again and again, I expect the estimate to come to it."""
    latency = LatencyEstimate()
    for _ in range(40):
        latency.record(0.5)

    assert abs(latency.seconds - 0.5) < 0.01


def test_one_measurement_counts_a_fifth() -> None:
    """Given a single slow embedding, I expect a fifth of the way to it: an outlier must not skip the next ones."""
    latency = LatencyEstimate()
    latency.record(1.0)
    latency.record(2.0)

    assert latency.seconds == pytest.approx(0.2 + 0.2 * 1.8)


@pytest.mark.parametrize(("left_s", "embedded"), [(0.249, False), (0.25, True)])
def test_an_embedding_is_skipped_where_less_than_two_and_a_half_estimates_are_left(
    left_s: float, embedded: bool
) -> None:
    """Given an embedder that takes 0.1 s, I expect 0.25 s to be the least that is enough."""
    assert (cache_of_slow(Embedder(), 0.1).get("tea?", left_s) is not None) is embedded


def test_a_deadline_leaves_the_time_until_it() -> None:
    """Given a deadline in half a second, I expect that left; without one, any time."""
    assert Deadline(100.5, lambda: 100.0).left_s("was embedded") == 0.5
    assert Deadline(None, lambda: 100.0).left_s("was embedded") == float("inf")


@pytest.mark.parametrize("late_s", [0.0, 0.25])
def test_a_deadline_that_has_come_is_an_error_that_says_at_which_stage(late_s: float) -> None:
    """Given a deadline of now or before, I expect `Expired`, with the stage and by how much."""
    with pytest.raises(Expired, match=f"the search was embedded {late_s * 1000:.0f} ms after its deadline"):
        Deadline(100.0, lambda: 100.0 + late_s).left_s("was embedded")
