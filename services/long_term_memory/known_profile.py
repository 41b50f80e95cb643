"""Slots of the profile that extraction fills, under `known`; what a service wrote itself wins.

Of several claims of a slot the latest holds, in whatever order they are written. One that says that a value is no
longer true stays in the profile without it, so that an older value does not come back.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from keepsake_client.protocol import json_number
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from services.long_term_memory.extraction.batch import SlotValue
from services.long_term_memory.known_slots import EXTRACTION, KNOWN, Claim, slots_of, values_of, without_evidence
from services.long_term_memory.postgres.deletions import DIGEST, lock_user
from services.long_term_memory.postgres.portable_facts import uuids
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.profile_service import MAX_PROFILE_BYTES, locked_profile, write_profile

# Locked, so that a deletion of one of them waits, and then finds what it is the evidence of. What arrived before the
# user was forgotten is about to be deleted.
_EVIDENCE = (
    "SELECT id::text FROM memories m WHERE id = ANY(%s::uuid[]) AND NOT EXISTS (SELECT FROM deletions"  # noqa: S608 - constants
    f" WHERE user_digest = {DIGEST.format('%s')} AND everything AND deleted_at >= coalesce(m.arrived_at, '-infinity'))"
    " ORDER BY number FOR KEY SHARE OF m"
)
_OF_OWNERS = (
    "SELECT user_id, agent_id FROM profiles p"
    " WHERE (user_id, agent_id) IN (SELECT user_id, agent_id FROM users WHERE number = ANY(%s))"
    " AND (profile ? 'known' OR EXISTS (SELECT FROM profile_history h"
    " WHERE (h.user_id, h.agent_id) = (p.user_id, p.agent_id) AND evidence IS NOT NULL))"
    " ORDER BY user_id, agent_id"
)
_CLAIMS = (
    "SELECT version, patch, source FROM profile_history WHERE (user_id, agent_id) = (%s, %s) AND patch ? 'known'"
    " ORDER BY version DESC"
)
_OF_EVIDENCE = (
    "SELECT version, patch, evidence::text[] FROM profile_history"
    " WHERE (user_id, agent_id) = (%s, %s) AND evidence && %s::uuid[]"
)


@dataclass(frozen=True, slots=True)
class NewSlot:
    """A slot as extraction found it.

    Args:
        value: None removes it.
        evidence: ids of the memories of the messages that say it.
        said_at: of the last of them, in seconds since 1970.
    """

    slot: str
    value: SlotValue | None
    evidence: Sequence[str]
    said_at: float


@dataclass(slots=True)
class SlotOutcome:
    """Numbers of slots by what became of them.

    Args:
        written: they are in the profile.
        older: what is there was said later, or is the same.
        of_service: a service wrote what is there.
        too_large: the profile would be over `MAX_PROFILE_BYTES`.
        deleted: the messages that say it were deleted meanwhile.
    """

    written: int = 0
    older: int = 0
    of_service: int = 0
    too_large: int = 0
    deleted: int = 0


def write_slots(connection: Connection[TupleRow], owner: Owner, slots: Sequence[NewSlot]) -> SlotOutcome:
    """Write slots into the owner's profile, in the transaction of the connection, as one version with its history."""
    outcome = SlotOutcome()
    if not slots:
        return outcome
    with connection.transaction():
        lock_user(connection, owner.user)
        ids = sorted({one for slot in slots for one in slot.evidence})
        there = {one for (one,) in connection.execute(_EVIDENCE, (ids, owner.user)).fetchall()}
        claims: list[tuple[str, Claim]] = []
        for slot in slots:
            if evidence := tuple(sorted(there.intersection(slot.evidence))):
                claims.append((slot.slot, Claim(slot.value, evidence, json_number(slot.said_at))))
            else:
                outcome.deleted += 1
        if claims:
            profile = locked_profile(connection, owner).values
            _write(connection, owner, profile, _winners(profile, claims, outcome))
    return outcome


def read_slots(connection: Connection[TupleRow], owner: Owner) -> dict[str, SlotValue]:
    """The values of the `known` slots of the owner's profile, those that a service wrote included."""
    row = connection.execute(
        "SELECT profile FROM profiles WHERE user_id = %s AND agent_id = %s AND profile ? 'known'", owner
    ).fetchone()
    return values_of(row[0]) if row else {}


def owners_with_slots(connection: Connection[TupleRow], owner_numbers: Sequence[int]) -> list[Owner]:
    """Those of some owners, by their numbers, whose profile has slots, or had."""
    return [Owner(*row) for row in connection.execute(_OF_OWNERS, (list(owner_numbers),)).fetchall()]


def remove_evidence(connection: Connection[TupleRow], owner: Owner, ids: Collection[str]) -> None:
    """Remove from the owner's profile and its history what only messages say that are deleted.

    Of a slot that has lost its claim, the latest of the earlier ones holds again, unless a service has changed the slot
    since.

    Args:
        ids: of the messages; those that an import was given may be any text.
    """
    profile = locked_profile(connection, owner).values
    for version, patch, evidence in connection.execute(_OF_EVIDENCE, (*owner, uuids(ids))).fetchall():
        left = {**patch, KNOWN: without_evidence(slots_of(patch), ids)}
        connection.execute(
            "UPDATE profile_history SET patch = %s, evidence = %s::uuid[]"
            " WHERE (user_id, agent_id, version) = (%s, %s, %s)",
            (Jsonb(left if left[KNOWN] else {}), [one for one in evidence if one not in ids], *owner, version),
        )
    slots = slots_of(profile)
    kept = without_evidence(slots, ids)
    if kept == slots:
        return
    earlier = _earlier_claims(connection, owner, slots.keys() - kept.keys())
    changes: dict[str, Any] = dict.fromkeys(slots.keys() - kept.keys())
    changes |= {name: claim.patch for name, claim in earlier.items()}
    changes |= {name: slot for name, slot in kept.items() if slot != slots[name]}
    _write(connection, owner, profile, changes)


def _winners(profile: dict[str, Any], claims: Sequence[tuple[str, Claim]], outcome: SlotOutcome) -> dict[str, Any]:
    """The patch of the slots by the claims that hold against what is in the profile, as far as they fit into it."""
    slots = dict(slots_of(profile))
    changes: dict[str, Any] = {}
    for name, claim in claims:
        stored = slots.get(name)
        present = Claim.of(stored)
        if (stored is not None and present is None) or not isinstance(profile.get(KNOWN, {}), dict):
            outcome.of_service += 1
        elif present is not None and claim.order <= present.order:
            outcome.older += 1
        elif _size({**profile, KNOWN: {**slots, name: claim.stored}}) > MAX_PROFILE_BYTES:
            outcome.too_large += 1
        else:
            slots[name] = claim.stored
            changes[name] = claim.patch
            outcome.written += 1
    return changes


def _write(connection: Connection[TupleRow], owner: Owner, profile: dict[str, Any], changes: dict[str, Any]) -> None:
    """Write changes of slots as a new version of the profile, which is locked."""
    if not changes:
        return
    slots = dict(slots_of(profile))
    for name, change in changes.items():
        slots.pop(name, None)
        if change is not None:
            slots[name] = {key: value for key, value in change.items() if value is not None}
    others = {name: value for name, value in profile.items() if name != KNOWN}
    evidence = sorted({one for change in changes.values() if change is not None for one in change["evidence"]})
    write_profile(
        connection,
        owner,
        {**others, KNOWN: slots} if slots else others,
        {KNOWN: changes if slots else None},
        source=EXTRACTION,
        evidence=evidence or None,
    )


def _earlier_claims(connection: Connection[TupleRow], owner: Owner, names: Collection[str]) -> dict[str, Claim]:
    """The latest claims of slots that are in the history, of each since a service has changed it."""
    found: dict[str, Claim] = {}
    open_names = set(names)
    for _, patch, source in connection.execute(_CLAIMS, owner).fetchall():
        if source != EXTRACTION:
            open_names -= slots_of(patch).keys() if slots_of(patch) else open_names
        for name in open_names & slots_of(patch).keys():
            claim = Claim.of(slots_of(patch)[name])
            if claim is not None and (name not in found or claim.order > found[name].order):
                found[name] = claim
    return found


def _size(profile: dict[str, Any]) -> int:
    return len(json.dumps(profile).encode())
