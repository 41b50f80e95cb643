"""Candidates: which memories of a very long conversation are read, with a reader in place of PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import pytest
from keepsake_client.protocol import SearchData

from services.long_term_memory.postgres.reader import SAMPLE, ColumnReader, Place, Window
from services.long_term_memory.retrieval.candidates import (
    _BEGINNING,
    _END,
    CandidateReader,
    _best_segments,
    _bounds,
)
from services.long_term_memory.retrieval.columns import MemoryColumns
from services.long_term_memory.retrieval.ranking import Weights
from tests.unit.turns import VERY_NEAR, Turn, columns_of

SIZE = 700
NOW = 10_000.0
EVERYTHING = Window()
SEARCH = SearchData(query="Where is the harpsichord?")


def conversation(size: int) -> MemoryColumns:
    """Sessions of 25 turns, a second apart, about one thing each."""
    turns = [Turn(f"topic {n // 25} turn {n}", session=n // 25, timestamp=float(n)) for n in range(size)]
    return columns_of(turns)


@dataclass
class FakeReader:
    """Reads columns in memory as ColumnReader reads them in PostgreSQL, and records what it read."""

    columns: MemoryColumns
    reads: list[tuple[str, int]] = field(default_factory=list)

    def read(
        self,
        user_id: str,
        vector: object,
        window: Window = EVERYTHING,
        *,
        limit: int | None = None,
        sample: bool = False,
    ) -> MemoryColumns:
        """Those in the window, the first `limit` of them, or every SAMPLEth."""
        kept = np.ones(len(self.columns), np.bool_)
        if window.since is not None:
            kept &= self.columns.timestamp >= window.since
        if sample:
            kept &= self.columns.number % SAMPLE == 0
        kept &= np.cumsum(kept) <= (len(kept) if limit is None else limit)
        found = self.columns.where(kept)
        self.reads.append(("sample" if sample else "all", len(found)))
        return found

    def read_segments(
        self, user_id: str, vector: object, bounds: Sequence[tuple[Place, Place]], window: Window = EVERYTHING
    ) -> MemoryColumns:
        """Those within the bounds."""
        places = list(zip(self.columns.session, self.columns.timestamp, self.columns.number, strict=True))
        found = self.columns.where(np.array([any(first <= p < end for first, end in bounds) for p in places]))
        self.reads.append(("segments", len(found)))
        return found


def candidates(
    columns: MemoryColumns, limit: int, part_size: int = 10_000, max_remembered: int = 10
) -> tuple[FakeReader, CandidateReader]:
    reader = FakeReader(columns)
    return reader, CandidateReader(cast(ColumnReader, reader), Weights(), limit, part_size, max_remembered)


def read(reader: CandidateReader, search: SearchData = SEARCH, user_id: str = "u1") -> list[int]:
    """The numbers of the candidates."""
    return list(reader.read(user_id, None, search, NOW).number.tolist())


@pytest.mark.parametrize(("limit", "reads"), [(SIZE, ["all"]), (SIZE - 1, ["all", "sample", "segments"])])
def test_a_user_at_the_limit_is_read_whole_and_one_over_it_in_segments(limit: int, reads: list[str]) -> None:
    """Given as many memories as the limit, I expect all of them; given one more, a sample and segments."""
    fake, reader = candidates(conversation(SIZE), limit)

    read(reader)

    assert [how for how, _ in fake.reads] == reads
    assert fake.reads[0] == ("all", SIZE)


def test_a_user_over_the_limit_is_not_read_whole_again() -> None:
    """Given a second search, I expect no attempt to read all."""
    fake, reader = candidates(conversation(SIZE), 350)
    read(reader)
    fake.reads.clear()

    read(reader)

    assert [how for how, _ in fake.reads] == ["sample", "segments"]


def test_half_of_the_limit_is_read_in_segments() -> None:
    """Given a limit of 350, I expect 25 segments of 7 memories."""
    fake, reader = candidates(conversation(SIZE), 350)

    assert len(read(reader)) == pytest.approx(25 * SAMPLE, abs=SAMPLE)
    assert [how for how, _ in fake.reads] == ["all", "sample", "segments"]


def test_the_segments_beside_the_best_and_the_newest_are_read() -> None:
    """Given one memory of the sample that is about the query, I expect its neighbours, and the newest two segments."""
    columns = conversation(SIZE)
    cosine = columns.cosine.copy()
    cosine[210] = VERY_NEAR
    _, reader = candidates(replace(columns, cosine=cosine), 350)

    found = set(read(reader))

    assert set(range(203, 217)) <= found
    assert set(range(SIZE - 2 * SAMPLE, SIZE)) <= found
    assert len(found) < SIZE / 2


def test_a_filter_that_leaves_no_more_than_the_limit_is_exact() -> None:
    """Given a time that 300 memories are after, I expect all of those, once the user is known to have many."""
    fake, reader = candidates(conversation(SIZE), 350)
    since = SEARCH.model_copy(update={"filters": SEARCH.filters.model_copy(update={"since": SIZE - 300.0})})

    assert read(reader, since) == list(range(SIZE - 300, SIZE))
    assert [how for how, _ in fake.reads] == ["all", "sample", "all"]
    assert reader._exceeding == {"u1"}  # a window says nothing of the whole


def test_a_filter_that_leaves_more_than_the_sample_suggests_is_read_in_segments() -> None:
    """Given 353 memories after a time, of which the sample has 50 for 350, I expect segments, not the first 351."""
    fake, reader = candidates(conversation(SIZE), 350)
    since = SEARCH.model_copy(update={"filters": SEARCH.filters.model_copy(update={"since": SIZE - 353.0})})

    assert max(read(reader, since)) == SIZE - 1
    assert [how for how, _ in fake.reads] == ["all", "sample", "all", "segments"]


@pytest.mark.parametrize(
    ("limit", "part_size", "first"), [(350, 10_000, "sample"), (10_000, 100, "segments")], ids=["over", "in parts"]
)
def test_what_is_remembered_of_users_is_bounded(limit: int, part_size: int, first: str) -> None:
    """Given room for two users, I expect both remembered, and the first forgotten once there is a third."""
    fake, reader = candidates(conversation(SIZE), limit, part_size, max_remembered=2)

    def reads(user_id: str) -> str:
        fake.reads.clear()
        read(reader, user_id=user_id)
        return fake.reads[0][0]

    assert [reads(user) for user in ("u1", "u2", "u1", "u2")] == ["all", "all", first, first]
    assert [reads(user) for user in ("u3", "u1")] == ["all", "all"]


def test_a_conversation_lies_between_its_beginning_and_its_end() -> None:
    """Given the least and the greatest keys that PostgreSQL can hold, I expect them within the bounds."""
    least, greatest = -(2**63), 2**63 - 1

    assert (least, -1e300, 1) >= _BEGINNING
    assert (greatest, 1e300, greatest) < _END


def test_a_user_whose_memories_were_deleted_is_read_whole_again() -> None:
    """Given deletes down to the limit, I expect the sample to show it, and one read from then on."""
    fake, reader = candidates(conversation(SIZE), 350)
    read(reader)
    fake.columns = fake.columns.where(fake.columns.number < 350)
    read(reader)
    fake.reads.clear()

    assert len(read(reader)) == 350
    assert fake.reads == [("all", 350)]


@pytest.mark.parametrize(("size", "again"), [(199, "all"), (200, "segments")])
def test_two_parts_are_read_at_once(size: int, again: str) -> None:
    """Given parts of 100, I expect a conversation of two of them to be read in segments the next time, and whole."""
    fake, reader = candidates(conversation(size), 10_000, part_size=100)

    assert read(reader) == read(reader) == list(range(size))
    assert fake.reads == [("all", size), (again, size)]


def test_the_best_segments_are_those_on_both_sides_of_the_best() -> None:
    """Given evidence for memory 2 of 5, I expect the segments before and after it, in order."""
    sample = columns_of([Turn(str(n), timestamp=float(n)) for n in range(5)])

    assert _best_segments(sample, np.array([0.0, 1.0, 5.0, 2.0, 0.0]), 3).tolist() == [2, 3, 4]
    assert _best_segments(sample, np.array([9.0, 1.0, 0.0, 0.0, 0.0]), 2).tolist() == [0, 1]


def test_a_tenth_of_the_segments_are_the_newest() -> None:
    """Given twenty segments of which the first ones are the best, I expect the two newest read."""
    sample = columns_of([Turn(str(n), timestamp=float(n)) for n in range(40)])
    evidence = np.arange(40.0, 0.0, -1.0)

    assert _best_segments(sample, evidence, 20).tolist() == [*range(18), 39, 40]


def test_consecutive_segments_are_one() -> None:
    """Given segments 0, 1 and 3 of a sample of three, I expect all but the one from memory 1 to memory 2."""
    sample = columns_of([Turn(str(n), session=n, timestamp=float(n)) for n in range(3)])
    places = [(n, float(n), n) for n in range(3)]

    assert _bounds(sample, np.array([0, 1, 3])) == [(_BEGINNING, places[1]), (places[2], _END)]
    assert _bounds(sample, np.array([2])) == [(places[1], places[2])]
