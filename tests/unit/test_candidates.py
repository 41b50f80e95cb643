"""Candidates: which memories of a very long conversation are read, with a reader in place of PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, tzinfo
from typing import Any, cast
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from keepsake_client.protocol import SearchData, SearchFilters

from services.long_term_memory.postgres.reader import SAMPLE, ColumnReader, Place, Window
from services.long_term_memory.postgres.scope import Owner, Scope
from services.long_term_memory.retrieval.candidates import (
    _BEGINNING,
    _END,
    CandidateReader,
    _best_segments,
    _bounds,
)
from services.long_term_memory.retrieval.columns import Booleans, MemoryColumns, hashed, hashed_terms
from services.long_term_memory.retrieval.weights import Weights
from tests.unit.turns import VERY_NEAR, Turn, columns_of

SIZE = 700
NOW = 10_000.0
EVERYTHING = Window()
SEARCH = SearchData(query="Where is the harpsichord?")
VECTOR = (0.6, 0.8)
SESSIONS = sorted((f"session {n}" for n in range(SIZE // 25)), key=hashed)


def conversation(size: int) -> MemoryColumns:
    """Sessions of 25 turns, a second apart, about one thing each."""
    return columns_of(
        [Turn(f"topic {n // 25} turn {n}", session=hashed(SESSIONS[n // 25]), timestamp=float(n)) for n in range(size)]
    )


def with_cosine(columns: MemoryColumns, row: int, cosine: float) -> MemoryColumns:
    """The columns with another cosine of one memory."""
    return replace(columns, cosine=np.where(np.arange(len(columns)) == row, cosine, columns.cosine))


def filtered(**filters: Any) -> SearchData:
    """The search with filters."""
    return SEARCH.model_copy(update={"filters": SearchFilters(**filters)})


@dataclass
class FakeReader:
    """Reads columns in memory as ColumnReader reads them in PostgreSQL, and records what it read.

    Args:
        reads: of each read, how, and the number of memories.
        asked: of each read, the user and the vector.
        segment_sizes: of the last read in segments, the number of memories in each.
    """

    columns: MemoryColumns
    reads: list[tuple[str, int]] = field(default_factory=list)
    asked: list[tuple[str, object]] = field(default_factory=list)
    segment_sizes: list[int] = field(default_factory=list)

    def read(
        self,
        owner: Owner,
        vector: object,
        window: Window = EVERYTHING,
        *,
        limit: int | None = None,
        sample: bool = False,
    ) -> MemoryColumns:
        """Those in the window, the first `limit` of them, or every SAMPLEth."""
        kept = self._within(window)
        if sample:
            kept &= self.columns.number % SAMPLE == 0
        kept &= np.cumsum(kept) <= (len(kept) if limit is None else limit)
        return self._read("sample" if sample else "all", owner, vector, kept)

    def read_segments(
        self, owner: Owner, vector: object, bounds: Sequence[tuple[Place, Place]], window: Window = EVERYTHING
    ) -> MemoryColumns:
        """Those in the window and within the bounds."""
        places = list(zip(self.columns.session, self.columns.timestamp, self.columns.number, strict=True))
        segments = np.array([[first <= place < end for place in places] for first, end in bounds])
        self.segment_sizes = segments.sum(axis=1).tolist()
        return self._read("segments", owner, vector, segments.any(axis=0) & self._within(window))

    def _within(self, window: Window) -> Booleans:
        kept = np.ones(len(self.columns), np.bool_)
        if window.session_id is not None:
            kept &= self.columns.session == hashed(window.session_id)
        if window.since is not None:
            kept &= self.columns.timestamp >= window.since
        if window.until is not None:
            kept &= self.columns.timestamp <= window.until
        return kept

    def _read(self, how: str, owner: Owner, vector: object, kept: Booleans) -> MemoryColumns:
        found = self.columns.where(kept)
        self.reads.append((how, len(found)))
        self.asked.append((owner.user, vector))
        return found


def candidates(
    columns: MemoryColumns,
    limit: int,
    part_size: int = 10_000,
    max_remembered: int = 10,
    weights: Weights | None = None,
) -> tuple[FakeReader, CandidateReader]:
    reader = FakeReader(columns)
    return reader, CandidateReader(cast(ColumnReader, reader), weights or Weights(), limit, part_size, max_remembered)


def read(reader: CandidateReader, search: SearchData = SEARCH, user_id: str = "u1") -> list[int]:
    """The numbers of the candidates."""
    return list(reader.read(Scope((user_id,)), VECTOR, search, NOW).number.tolist())


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
    _, reader = candidates(with_cosine(conversation(SIZE), 210, VERY_NEAR), 350)

    found = set(read(reader))

    assert set(range(203, 217)) <= found
    assert set(range(SIZE - 2 * SAMPLE, SIZE)) <= found
    assert len(found) < SIZE / 2


@pytest.mark.parametrize(
    "search",
    [filtered(source="ai"), SEARCH.model_copy(update={"exclude_session": SESSIONS[210 // 25]})],
    ids=["source", "excluded session"],
)
def test_a_memory_that_fails_the_filters_still_shows_where_to_read(search: SearchData) -> None:
    """Given that the one memory of the sample about the query fails a filter, I expect its neighbours read."""
    _, reader = candidates(with_cosine(conversation(SIZE), 210, VERY_NEAR), 350)

    assert set(range(203, 217)) <= set(read(reader, search))


def test_the_sample_is_ranked_with_the_weights_of_the_service() -> None:
    """Given weights of meaning that are negative, I expect the segments beside the nearest memory left out."""
    against = replace(Weights(), meaning=-1.0, session_meaning=0.0)
    _, reader = candidates(with_cosine(conversation(SIZE), 210, VERY_NEAR), 350, weights=against)

    assert not set(range(203, 217)) & set(read(reader))


def test_a_half_life_counts_when_segments_are_chosen() -> None:
    """Given a half-life of nine seconds, I expect the newest 25 segments: 24 between the sample, and the last one."""
    _, reader = candidates(conversation(SIZE), 350)
    aging = SEARCH.model_copy(update={"recency_half_life_days": 1e-4})

    assert read(reader, aging) == list(range(SIZE - 25 * SAMPLE, SIZE))


def test_memories_without_evidence_do_not_choose_segments() -> None:
    """Given a query that was not embedded, I expect the segments beside a memory with its word before all others."""
    columns = conversation(SIZE)
    word = columns.terms.copy()
    word[np.flatnonzero(columns.term_rows == 210)[0]] = hashed_terms(["harpsichord"])[0]
    _, reader = candidates(replace(columns, terms=word, cosine=np.full(SIZE, np.nan)), 350)

    assert set(range(203, 217)) <= set(read(reader))


def test_at_least_one_segment_is_read() -> None:
    """Given a limit below two segments, I expect one, the first of those that are equally good."""
    _, reader = candidates(with_cosine(conversation(SIZE), 210, VERY_NEAR), SAMPLE)

    assert read(reader) == list(range(203, 210))


@pytest.mark.parametrize(
    ("limit", "part_size", "search"),
    [
        (10_000, 100, SEARCH),
        (350, 10_000, SEARCH),
        (350, 10_000, filtered(since=SIZE - 300.0)),
    ],
    ids=["in parts", "over the limit", "in a window"],
)
def test_every_read_is_of_the_user_and_the_querys_vector(limit: int, part_size: int, search: SearchData) -> None:
    """Given two searches, I expect all that is read to be of that user, with cosines to that vector."""
    fake, reader = candidates(conversation(SIZE), limit, part_size)

    read(reader, search)
    read(reader, search)

    assert len(fake.asked) > 1
    assert set(fake.asked) == {("u1", VECTOR)}


@pytest.mark.parametrize(
    ("search", "numbers"),
    [
        (filtered(since=SIZE - 300.0), range(SIZE - 300, SIZE)),
        (filtered(until=299.0), range(300)),
        (filtered(session_id=SESSIONS[8]), range(200, 225)),
    ],
    ids=["since", "until", "session"],
)
def test_a_filter_that_leaves_no_more_than_the_limit_is_exact(search: SearchData, numbers: range) -> None:
    """Given a window of 300 memories or fewer, I expect all of those, once the user is known to have many."""
    fake, reader = candidates(conversation(SIZE), 350)

    assert read(reader, search) == list(numbers)
    assert [how for how, _ in fake.reads] == ["all", "sample", "all"]
    assert reader._exceeding == {Owner("u1"): 350}  # a window says nothing of the whole


def test_a_filter_that_leaves_more_than_the_sample_suggests_is_read_in_segments() -> None:
    """Given 353 memories after a time, of which the sample has 50 for 350, I expect segments of those after it."""
    fake, reader = candidates(conversation(SIZE), 350)

    found = read(reader, filtered(since=SIZE - 353.0))

    assert min(found) >= SIZE - 353
    assert max(found) == SIZE - 1
    assert [how for how, _ in fake.reads] == ["all", "sample", "all", "segments"]


def test_one_more_than_the_limit_is_read_to_see_that_it_is_exceeded() -> None:
    """Given twice as many memories as the limit of 350, I expect 351 of them read whole, in a window too."""
    fake, reader = candidates(conversation(SIZE), 350)

    read(reader, filtered(since=SIZE - 353.0))

    assert [size for how, size in fake.reads if how == "all"] == [351, 351]


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


def test_parts_are_read_of_the_part_size_and_the_rest() -> None:
    """Given parts of 100, I expect a conversation of 250 to be read as 100, 100 and 50."""
    fake, reader = candidates(conversation(250), 10_000, part_size=100)

    read(reader)
    read(reader)

    assert fake.segment_sizes == [100, 100, 50]


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


def test_of_equally_good_segments_the_first_are_read() -> None:
    """Given few values of evidence and time among 300, I expect the first two of the newest, and the first others."""
    sample = columns_of([Turn(str(n), timestamp=float(n % 3)) for n in range(300)])  # 2, 5, ... are the newest
    evidence = np.where(np.arange(300) % 6 == 0, 1.0, 0.0)  # 0, 6, ... are the best

    best = [segment for n in range(0, 60, 6) for segment in (n, n + 1)]  # segment n ends, n + 1 begins with memory n
    assert _best_segments(sample, evidence, 20).tolist() == sorted({3, 6, *best[:19]})


def test_consecutive_segments_are_one() -> None:
    """Given segments 0, 1 and 3 of a sample of three, I expect all but the one from memory 1 to memory 2."""
    sample = columns_of([Turn(str(n), session=n, timestamp=float(n)) for n in range(3)])
    places = [(n, float(n), n) for n in range(3)]

    assert _bounds(sample, np.array([0, 1, 3])) == [(_BEGINNING, places[1]), (places[2], _END)]
    assert _bounds(sample, np.array([2])) == [(places[1], places[2])]


def test_the_sample_is_ranked_with_the_times_that_the_query_asks_about() -> None:
    """Given a memory of the users' yesterday, I expect its segment to be read and not one of another zone's."""
    asked_at = datetime(2024, 5, 15, 23, tzinfo=UTC).timestamp()  # the 16th in Shanghai
    columns = replace(conversation(SIZE), timestamp=np.arange(SIZE) / 1e6)
    yesterday = SAMPLE * 40
    columns.timestamp[yesterday] = asked_at - 20 * 3_600
    search = SearchData(query="What did I do yesterday?")

    def evidence(zone: tzinfo) -> float:
        reader = CandidateReader(cast(ColumnReader, FakeReader(columns)), Weights(), SIZE // 2, zone=zone)
        return float(reader._evidence(columns, search, asked_at)[yesterday])

    assert evidence(ZoneInfo("Asia/Shanghai")) > evidence(UTC)
