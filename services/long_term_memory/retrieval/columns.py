"""MemoryColumns: the memories of one user as columns, and the hashes that stand for texts in them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from services.long_term_memory.retrieval.utterances import Question

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class MemoryColumns:
    """Memories in the order of the conversation: sessions whole, the turns of each by time and number.

    Args:
        number: (n,) int64, the memory's key in PostgreSQL.
        session: (n,) int64, hash of the session; equal means the same session. Of the second user of a search and those
            after, combined with `session_salt`.
        timestamp: (n,) float64, seconds since 1970.
        from_ai: (n,) bool, whether the AI said it; else the user did.
        added: (n,) bool, whether it was added by request, and not said.
        asks: (n,) int64, utterances.Question.
        script: (n,) int64, utterances.Script.
        speaker: (n,) int64, who said it, as `speakers.speaker_hash` has it; 0 is none.
        fingerprint: (n,) int64, hash of `fingerprints.fingerprint` of the text: equal for two that say the same.
        length: (n,) int64, number of terms.
        terms: (length.sum(),) uint32, the hashed terms of all memories one after another, `length[i]` of memory i.
        cosine: (n,) float64, cosine similarity to the query's vector; NaN where the query was not embedded.
    """

    number: Integers
    session: Integers
    timestamp: Floats
    from_ai: Booleans
    added: Booleans
    asks: Integers
    script: Integers
    speaker: Integers
    fingerprint: Integers
    length: Integers
    terms: NDArray[np.uint32]
    cosine: Floats

    def __len__(self) -> int:
        return len(self.number)

    @classmethod
    def joined(cls, parts: Sequence[MemoryColumns]) -> MemoryColumns:
        """All memories of the parts, sessions whole."""
        together = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(MemoryColumns)}
        order = np.lexsort((together["number"], together["timestamp"], together["session"]))
        length = together["length"]
        begins = np.cumsum(length) - length
        moved = length[order]
        terms = np.repeat(begins[order] - (np.cumsum(moved) - moved), moved) + np.arange(moved.sum())
        columns = {name: column[order] for name, column in together.items() if name != "terms"}
        return cls(**columns, terms=together["terms"][terms])

    @cached_property
    def term_rows(self) -> Integers:
        """(length.sum(),) int64, the row of the memory that each of `terms` belongs to."""
        return np.repeat(np.arange(len(self)), self.length)

    @property
    def message_count(self) -> int:
        """How many of the memories are messages: here all; `ColumnsWithFacts` has facts behind them."""
        return len(self)

    @property
    def messages(self) -> slice:
        """The rows of messages, which statistics are of."""
        return slice(None)

    @property
    def without_facts(self) -> MemoryColumns:
        """The messages alone."""
        return self

    @property
    def turns(self) -> Integers:
        """(n,) int64, the sessions in which the turns before and after one are its neighbours."""
        return self.session

    @cached_property
    def statements(self) -> Booleans:
        """(n,) bool, whether the memory states something. Those that only ask are left out of statistics."""
        return self.asks < Question.ONLY

    @cached_property
    def session_index(self) -> Integers:
        """(n,) int64, the sessions numbered from 0 in their order; there is at least one memory."""
        begins = self.session[1:] != self.session[:-1]
        return np.concatenate(([0], np.cumsum(begins)))

    def where(self, kept: Booleans) -> MemoryColumns:
        """The memories of the mask `kept`, (n,) bool, in the same order."""
        columns = {f.name: getattr(self, f.name)[kept] for f in fields(MemoryColumns) if f.name != "terms"}
        return MemoryColumns(**columns, terms=self.terms[kept[self.term_rows]])


def session_salt(place: int, user: str) -> int:
    """What the sessions of a user are combined with by XOR, so that they are not those of another with the same ids.

    Args:
        place: of the user in the scope of the search; the first has 0.
        user: the encoded id.
    """
    return hashed(user, person=b"user") if place else 0


def hashed(text: str, person: bytes = b"") -> int:
    """The first 64 bits of a text's BLAKE2b, as PostgreSQL's signed bigint; 0 for the empty text.

    Args:
        person: BLAKE2's personalisation: separates texts of one kind from those of another.
    """
    if not text:
        return 0
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=person).digest()
    return int.from_bytes(digest, "big", signed=True)


def hashed_terms(terms: Sequence[str]) -> NDArray[np.uint32]:
    """The CRC-32 of each term, (n,) uint32: two terms of one user collide once in four billion pairs."""
    return np.array([zlib.crc32(term.encode("utf-8", "surrogatepass")) for term in terms], dtype="<u4")
