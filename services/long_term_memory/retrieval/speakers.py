"""Speakers: who of several people said a memory, as one number, and how it is compared with a name or a person.

The number is 32 bits of the hash of the name, and above these 32 of that of the id or, without an id, of the name's own
hash. So a name before a colon, which is all that most texts have, is the same number as a speaker with that name alone.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from keepsake_client.protocol import Speaker

from services.long_term_memory.retrieval.columns import Booleans, Integers, hashed
from services.long_term_memory.retrieval.utterances import fold_name

_LOW: Final = 0xFFFF_FFFF


def speaker_hash(speaker: dict[str, str] | None, before_colon: str = "") -> int:
    """The number of a speaker; 0 for none.

    Args:
        speaker: with an `id`, a `name` or both; None where only the text may tell.
        before_colon: the name that the text begins with, where `speaker` is None.
    """
    name = hashed(fold_name(speaker.get("name", "")) if speaker else before_colon)
    key = hashed(speaker["id"], person=b"speaker") if speaker and "id" in speaker else name
    return (key & ~_LOW) | (name & _LOW)


def name_parts(speakers: Integers) -> Integers:
    """The part of each of these numbers that is the name's, (n,) int64; also of hashes of names."""
    return speakers & _LOW


def named(speakers: Integers, names: Integers) -> Booleans:
    """Whether each speaker has one of these names, whatever the id; (n,) bool.

    Args:
        names: (p,) int64, hashes of names.
    """
    has_one: Booleans = (speakers != 0) & np.isin(name_parts(speakers), name_parts(names))
    return has_one


def said_by(speakers: Integers, speaker: Speaker) -> Booleans:
    """Whether each is this speaker: by id where `speaker` has one, else by name; (n,) bool."""
    if speaker.id is None:
        return named(speakers, np.array([hashed(fold_name(speaker.name or ""))], np.int64))
    same: Booleans = (speakers & ~_LOW) == (hashed(speaker.id, person=b"speaker") & ~_LOW)
    return same


def said_by_person(speakers: Integers, person: Speaker) -> Booleans:
    """Whether each is this person: `said_by`, and of one with an id also what has only the name; (n,) bool."""
    same = said_by(speakers, person)
    if person.id is not None and person.name is not None:
        same = same | (speakers == hashed(fold_name(person.name)))
    return same
