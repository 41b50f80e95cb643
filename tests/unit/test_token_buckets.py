"""Token buckets: a rate, a burst, and a bound on how many are remembered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from services.runtime.token_buckets import MAX_BUCKETS, TokenBuckets


class Clock:
    """Seconds, to be set by a test."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_memory_of_buckets_is_bounded() -> None:
    """Given more users than buckets, as with tokens of a public page, I expect the oldest bucket forgotten."""
    buckets = TokenBuckets(Clock())
    for number in range(MAX_BUCKETS + 1):
        buckets.take(f"token:{number}", 0.1)

    assert len(buckets._buckets) == MAX_BUCKETS
    assert buckets.take(f"token:{MAX_BUCKETS}", 0.1) > 0
    assert buckets.take("token:0", 0.1) == 0


def test_threads_share_a_bucket() -> None:
    """Given many threads at one bucket of a hundred tokens, I expect a hundred taken, each once."""
    buckets = TokenBuckets(Clock())
    with ThreadPoolExecutor(16) as threads:
        waits = list(threads.map(lambda _: buckets.take("one", 50), range(2_000)))

    assert waits.count(0.0) == 100
