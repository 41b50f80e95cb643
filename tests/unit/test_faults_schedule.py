"""What the fault run does to the stack and sends to it, before anything is started."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bench.resilience.faultlib import longest_gap
from bench.resilience.faultplan import SECONDS, WORKERS, schedule
from bench.resilience.faults import USERS, plan, somebody_elses
from services.stack.processes import ADAPTERS, MEMORY, POSTGRES, REDIS
from services.stack.supervisor import CRASH_WINDOW_S, MAX_CRASHES

seeds = st.integers(0, 10_000)


@given(seeds)
def test_a_seed_decides_the_schedule(seed: int) -> None:
    """Given the same seed, I expect the same faults at the same times, and the same load."""
    assert schedule(seed) == schedule(seed)
    assert plan(seed, 100, 10) == plan(seed, 100, 10)


def test_seeds_differ() -> None:
    """Given other seeds, I expect other orders."""
    assert len({tuple((fault.kind, fault.target) for fault in schedule(seed)) for seed in range(20)}) == 20


@given(seeds, st.floats(30, 600))
def test_every_fault_is_in_every_schedule(seed: int, seconds: float) -> None:
    """Given any seed, I expect each process killed, each server restarted, the adapters and a worker stopped."""
    faults = schedule(seed, seconds)
    done = Counter((fault.kind, fault.target) for fault in faults)

    for name in (*WORKERS, ADAPTERS, MEMORY, REDIS, POSTGRES):
        assert done["kill", name] == 1
    for name in WORKERS:
        assert done["kill child", name] == 1
    assert done["restart", REDIS] == done["restart", POSTGRES] == done["away", ADAPTERS] == 1
    assert done["freeze", ADAPTERS] == 1
    assert sum(done["freeze", name] for name in WORKERS) == 1
    assert len(faults) == sum(done.values()) == 15


@given(seeds, st.floats(30, 600))
def test_faults_do_not_overlap(seed: int, seconds: float) -> None:
    """Given any seed, I expect each fault to be over before the next, and the last within the run."""
    faults = schedule(seed, seconds)
    begins = [fault.at for fault in faults] + [seconds]

    for fault, following in zip(faults, begins[1:], strict=True):
        assert fault.at + fault.seconds + seconds / 40 < following
    assert begins[0] > 0


@given(seeds)
def test_the_supervisor_is_left_its_patience(seed: int) -> None:
    """Given any seed, I expect nobody to be killed as often within a minute as makes `ltm up` give up."""
    faults = [fault for fault in schedule(seed) if fault.kind != "freeze"]

    for fault in faults:
        again = [f for f in faults if f.target == fault.target and 0 <= f.at - fault.at < CRASH_WINDOW_S]
        assert len(again) < MAX_CRASHES


def test_stops_last_as_long_as_they_should() -> None:
    """Given a run of the usual length or longer, I expect the adapters stopped for 20 s and a worker for 15 s."""
    for seconds in (SECONDS, 2 * SECONDS):
        lasting = {fault.seconds for fault in schedule(1, seconds) if fault.seconds}
        assert lasting == {15.0, 20.0}


def test_the_load_is_as_asked() -> None:
    """Given 3,000 messages, I expect 300 adds, 300 updates and 1,000 searches of 50 users, in order, each its own."""
    said = plan(1, 3_000, 100.0)

    assert Counter(one.what for one in said) == {"message": 3_000, "add": 300, "update": 300, "search": 1_000}
    assert [one.due for one in said] == sorted(one.due for one in said)
    assert len({one.user for one in said}) == USERS
    assert len({one.id for one in said}) == len({one.content for one in said}) == len(said)


@given(seeds)
def test_messages_come_at_a_steady_rate(seed: int) -> None:
    """Given a plan of 20 messages a second, I expect about 20 in every second."""
    by_second = Counter(int(one.due) for one in plan(seed, 600, 30.0) if one.what == "message")

    assert all(18 <= by_second[second] <= 22 for second in range(30))


def test_what_belongs_to_others_is_seen() -> None:
    """Given responses, I expect those to be told that name another user or hold what another user said."""
    asked = next(one for one in plan(1, 100, 10.0) if one.what == "search")
    response = {
        "request_id": asked.id,
        "user_id": asked.user,
        "memories": [{"content": f"x [{asked.user}:add:000001]"}],
    }
    stranger = "u98"

    assert somebody_elses(response) is None
    assert somebody_elses({**response, "user_id": stranger}) == f"answered to {stranger}"
    assert somebody_elses({**response, "memories": [{"content": f"[{stranger}:message:000001]"}]}) is not None
    assert somebody_elses({**response, "user_profile": {f"{stranger}:update:000001": 1}}) is not None
    assert json.loads(asked.body())["request_id"] == asked.id


def test_gaps() -> None:
    """Given moments of success, I expect the longest time without one, and none that a later fault made."""
    assert longest_gap([1.0, 2.0, 7.0, 9.0], 1.5, 8.0) == 5.0
    assert longest_gap([1.0, 2.0], 1.5, 8.0) == 0.5
    assert longest_gap([9.0], 1.0, 8.0) == 8.0
    assert longest_gap([2.0, 7.0, 7.9, 30.0], 1.0, 8.0) == 5.0
    assert longest_gap([1.0], 2.0, 8.0) == 0.0
