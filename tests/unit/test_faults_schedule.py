"""The schedule and workload of the fault run, and its search for foreign data, without a stack."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bench.resilience.fault_schedule import HARMLESS, RUN_S, WORKERS, schedule
from bench.resilience.fault_workload import USERS, foreign_data, plan
from bench.resilience.recovery import longest_gap
from services.stack.processes import ADAPTERS, EXTRACTOR, FORK_SERVER, MEMORY, POSTGRES, REDIS
from services.stack.supervisor import CRASH_WINDOW_S, MAX_CRASHES

seeds = st.integers(0, 10_000)


@given(seeds)
def test_a_seed_decides_the_schedule(seed: int) -> None:
    """Given the same seed, I expect the same faults at the same times, and the same workload."""
    assert schedule(seed) == schedule(seed)
    assert plan(seed, 100, 10) == plan(seed, 100, 10)


def test_seeds_differ() -> None:
    """Given different seeds, I expect different orders."""
    assert len({tuple((fault.kind, fault.target) for fault in schedule(seed)) for seed in range(20)}) == 20


@given(seeds, st.floats(30, 600))
def test_every_fault_is_in_every_schedule(seed: int, seconds: float) -> None:
    """Given any seed, I expect each process killed, each server restarted, the adapters and a worker frozen, and
    all processes cut off from each server, for a while and by half-open connections."""
    faults = schedule(seed, seconds)
    done = Counter((fault.kind, fault.target) for fault in faults)

    for name in (*WORKERS, FORK_SERVER, ADAPTERS, MEMORY, REDIS, POSTGRES):
        assert done["kill", name] == 1
    for name in WORKERS:
        assert done["kill child", name] == 1
    assert done["restart", REDIS] == done["restart", POSTGRES] == done["outage", ADAPTERS] == 1
    assert done["freeze", ADAPTERS] == 1
    assert sum(done["freeze", name] for name in WORKERS) == 1
    for name in (REDIS, POSTGRES):
        assert done["cut", name] == done["half-open", name] == 1
    assert len(faults) == sum(done.values()) == 20


@given(seeds)
def test_an_extractor_is_a_target_where_there_is_one(seed: int) -> None:
    """Given extraction, I expect the extractor killed, a process of it killed, and frozen, beside all other faults."""
    with_it, without = schedule(seed, extraction=True), schedule(seed)

    of_extractor = {fault.kind for fault in with_it if fault.target == EXTRACTOR}
    assert of_extractor == {"kill", "kill child", "freeze"}
    assert len(with_it) == len(without) + 3
    assert all(fault.target != EXTRACTOR for fault in without)


@given(seeds, st.floats(30, 600))
def test_faults_do_not_overlap(seed: int, seconds: float) -> None:
    """Given any seed, I expect each fault to be over before the next, and the last within the run."""
    faults = schedule(seed, seconds)
    begins = [fault.at for fault in faults] + [seconds]

    for fault, following in zip(faults, begins[1:], strict=True):
        assert fault.at + fault.seconds + seconds / 40 < following
    assert begins[0] > 0


@given(seeds)
def test_the_supervisor_never_gives_up(seed: int) -> None:
    """Given any seed, I expect no process to be killed as often within a minute as makes `ltm up` give up."""
    faults = [fault for fault in schedule(seed) if fault.kind not in HARMLESS]

    for fault in faults:
        again = [f for f in faults if f.target == fault.target and 0 <= f.at - fault.at < CRASH_WINDOW_S]
        assert len(again) < MAX_CRASHES


def test_freezes_and_outages_have_their_length() -> None:
    """Given a run of the usual length or longer, I expect adapters stopped and servers cut off for 20 s, a worker
    stopped for 15 s."""
    for seconds in (RUN_S, 2 * RUN_S):
        lasting = {fault.seconds for fault in schedule(1, seconds) if fault.seconds}
        assert lasting == {15.0, 20.0}


def test_the_workload_has_the_given_size() -> None:
    """Given 3,000 messages, I expect 300 adds, 300 updates and 1,000 searches of 50 users, in order, no id twice."""
    operations = plan(1, 3_000, 100.0)

    assert Counter(one.kind for one in operations) == {"message": 3_000, "add": 300, "update": 300, "search": 1_000}
    assert [one.due for one in operations] == sorted(one.due for one in operations)
    assert len({one.user for one in operations}) == USERS
    assert len({one.id for one in operations}) == len({one.content for one in operations}) == len(operations)


@given(seeds)
def test_messages_come_at_a_steady_rate(seed: int) -> None:
    """Given a plan of 20 messages a second, I expect about 20 in every second."""
    by_second = Counter(int(one.due) for one in plan(seed, 600, 30.0) if one.kind == "message")

    assert all(18 <= by_second[second] <= 22 for second in range(30))


def test_foreign_data_in_a_response_is_found() -> None:
    """Given responses, I expect those to be reported that name another user or contain another user's data."""
    asked = next(one for one in plan(1, 100, 10.0) if one.kind == "search")
    response = {
        "request_id": asked.id,
        "user_id": asked.user,
        "memories": [{"content": f"x [{asked.user}:add:000001]"}],
    }
    other = "u98"

    assert foreign_data(response) is None
    assert foreign_data({**response, "user_id": other}) == f"answered to {other}"
    assert foreign_data({**response, "memories": [{"content": f"[{other}:message:000001]"}]}) is not None
    assert foreign_data({**response, "user_profile": {f"{other}:update:000001": 1}}) is not None
    assert json.loads(asked.body())["request_id"] == asked.id


def test_the_longest_gap_without_a_success() -> None:
    """Given moments of success, I expect the longest time without one, but not one that a later fault caused."""
    assert longest_gap([1.0, 2.0, 7.0, 9.0], 1.5, 8.0) == 5.0
    assert longest_gap([1.0, 2.0], 1.5, 8.0) == 0.5
    assert longest_gap([9.0], 1.0, 8.0) == 8.0
    assert longest_gap([2.0, 7.0, 7.9, 30.0], 1.0, 8.0) == 5.0
    assert longest_gap([1.0], 2.0, 8.0) == 0.0
