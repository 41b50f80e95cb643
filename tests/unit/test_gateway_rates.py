"""Rate limits of the gateway: a token bucket for each key."""

from __future__ import annotations

import pytest

from services.gateway.access import ALL_RIGHTS, OPEN, Caller
from services.gateway.problems import headers_of
from services.gateway.rates import RateLimited, RateLimiter
from tests.unit.test_token_buckets import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> RateLimiter:
    return RateLimiter(clock)


def bearer(name: str, rate: float) -> Caller:
    return Caller(name, ALL_RIGHTS, rate=rate)


def taken(limiter: RateLimiter, caller: Caller, tries: int) -> int:
    """How many of so many requests are let through."""
    count = 0
    for _ in range(tries):
        try:
            limiter.take(caller)
        except RateLimited:
            continue
        count += 1
    return count


def test_a_burst_is_two_seconds_worth(limiter: RateLimiter, clock: Clock) -> None:
    """Given 5 requests a second, I expect 10 at once, then 5 for each second that passes."""
    bot = bearer("bot", 5)

    assert taken(limiter, bot, 50) == 10
    clock.now += 1
    assert taken(limiter, bot, 50) == 5
    clock.now += 3_600
    assert taken(limiter, bot, 50) == 10


def test_the_error_says_when_to_try_again(limiter: RateLimiter) -> None:
    """Given a request a minute and a second one at once, I expect the seconds to wait, as a header in whole ones."""
    slow = bearer("slow", 1 / 60)
    limiter.take(slow)
    with pytest.raises(RateLimited) as refused:
        limiter.take(slow)

    assert refused.value.code == "rate_limited"
    assert refused.value.retry_after_s == pytest.approx(60)
    assert headers_of(refused.value) == {"Retry-After": "60"}


def test_waiting_that_long_is_enough(limiter: RateLimiter, clock: Clock) -> None:
    """Given a caller that waits as long as it was told, I expect its request let through."""
    bot = bearer("bot", 3)
    assert taken(limiter, bot, 6) == 6
    with pytest.raises(RateLimited) as refused:
        limiter.take(bot)

    clock.now += refused.value.retry_after_s + 1e-6
    limiter.take(bot)


def test_each_key_has_its_own(limiter: RateLimiter) -> None:
    """Given one key over its rate, I expect another one untouched."""
    assert taken(limiter, bearer("one", 1), 50) == 2
    assert taken(limiter, bearer("two", 1), 50) == 2


@pytest.mark.parametrize("caller", [OPEN, bearer("bot", 0)])
def test_some_have_no_limit(limiter: RateLimiter, caller: Caller) -> None:
    """Given the caller of an open gateway, or a key with rate 0, I expect any number of requests."""
    assert taken(limiter, caller, 10_000) == 10_000
