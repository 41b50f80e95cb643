"""Fairness between users: the round-robin queue, without Redis."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adapters.fair_queue import FairQueue

users = st.sampled_from("abcde")
#: A user whose next item is put, or None for a pop.
steps = st.lists(users | st.none(), max_size=200)


def drained(queue: FairQueue[tuple[str, int]]) -> list[tuple[str, int]]:
    return [queue.pop() for _ in range(len(queue))]


@given(steps)
def test_nothing_is_lost_and_each_users_order_is_kept(played: list[str | None]) -> None:
    """Given any puts and pops, I expect every item out once, and those of one user in the order they came in."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    put: list[tuple[str, int]] = []
    out: list[tuple[str, int]] = []
    for number, user in enumerate(played):
        if user is not None:
            queue.put(user, (user, number))
            put.append((user, number))
        elif queue:
            out.append(queue.peek())
            assert queue.pop() == out[-1]
    out += drained(queue)

    assert sorted(out) == sorted(put)
    for user in "abcde":
        assert [item for item in out if item[0] == user] == [item for item in put if item[0] == user]


@given(st.lists(users, min_size=1, max_size=200))
def test_no_user_has_two_items_out_before_another_has_one(put: list[str]) -> None:
    """Given items of several users, I expect rounds in which each user who still has one yields one."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for number, user in enumerate(put):
        queue.put(user, (user, number))

    out = [user for user, _ in drained(queue)]

    while out:
        waiting = set(out)
        assert set(out[: len(waiting)]) == waiting
        out = out[len(waiting) :]


def test_a_newcomer_waits_for_one_item_of_each_other() -> None:
    """Given a user with 2,000 items, some of them out already, I expect a newcomer's item to be the next but one."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for number in range(2_000):
        queue.put("loud", ("loud", number))
    for _ in range(64):
        queue.pop()
    queue.put("quiet", ("quiet", 0))

    assert "quiet" in [queue.pop()[0] for _ in range(2)]


def test_a_cleared_queue_is_empty() -> None:
    """Given a queue that was cleared, I expect it empty and usable."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    queue.put("a", ("a", 1))
    queue.clear()
    assert not queue
    queue.put("a", ("a", 2))
    assert queue.pop() == ("a", 2)
    queue.put("b", ("b", 3))
    assert (queue.peek(), drained(queue)) == (("b", 3), [("b", 3)])
