"""Slots of a profile, under `known`, as JSON: those that extraction wrote are told by their evidence, all else is a
service's."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeGuard

from services.long_term_memory.extraction.batch import SlotValue

#: The key of a profile under which extraction writes.
KNOWN: Final = "known"
#: Who wrote a version of a profile, as its history has it.
EXTRACTION: Final = "extraction"
#: The ids of the messages that the slots of a row of `profiles` come from, as `said.id`; a service's may be any text.
EVIDENCE_OF_SLOTS: Final = "jsonb_path_query(profile, '$.known.*.evidence[*] ? (@.type() == \"string\")') AS said (id)"
_NOT_OF_SERVICE: Final = {"evidence", "said_at"}
_SHAPE: Final = {"value", *_NOT_OF_SERVICE}


@dataclass(frozen=True, slots=True)
class Claim:
    """A value of a slot, with its evidence.

    Args:
        value: None where it is no longer true.
        evidence: ids of the memories of the messages that say it, sorted.
        said_at: of the last of them, in seconds since 1970.
    """

    value: SlotValue | None
    evidence: tuple[str, ...]
    said_at: float

    @classmethod
    def of(cls, slot: Any) -> Claim | None:
        """The claim that a slot of a profile, or of a patch, is; None where a service wrote it."""
        if not isinstance(slot, dict) or not _NOT_OF_SERVICE <= slot.keys() <= _SHAPE:
            return None
        value, evidence, said_at = slot.get("value"), slot["evidence"], slot["said_at"]
        if not (value is None or _is_value(value)) or not _is_texts(evidence):
            return None
        if isinstance(said_at, bool) or not isinstance(said_at, int | float):
            return None
        return cls(value, tuple(evidence), said_at)

    @property
    def order(self) -> tuple[float, str, tuple[str, ...]]:
        """Of two claims, the one of the higher order holds: the later; at the same time either, but always the same."""
        return self.said_at, json.dumps(self.value, sort_keys=True), self.evidence

    @property
    def patch(self) -> dict[str, Any]:
        """The JSON Merge Patch that makes it the slot, whatever claim was there."""
        return {"value": self.value, "evidence": list(self.evidence), "said_at": self.said_at}

    @property
    def stored(self) -> dict[str, Any]:
        """The slot in the profile, without a value where that is no longer true."""
        return {name: value for name, value in self.patch.items() if value is not None}


def slots_of(profile: Any) -> dict[str, Any]:
    """The slots of a profile, or of a patch of one; none where a service has put something else in their place."""
    known = profile.get(KNOWN) if isinstance(profile, dict) else None
    return known if isinstance(known, dict) else {}


def values_of(profile: Any) -> dict[str, SlotValue]:
    """The values of the slots of a profile, whether extraction or a service wrote them."""
    slots = {name: slot.get("value") if isinstance(slot, dict) else slot for name, slot in slots_of(profile).items()}
    return {name: value for name, value in slots.items() if _is_value(value)}


def owned_by_service(before: Any, patch: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """A profile after a service's patch, in which the slots that were changed are the service's: without evidence.

    What is sent back as it was read is no change. Of a slot that extraction wrote, nothing is left but what was sent.
    """
    old, new = slots_of(before), slots_of(after)
    owned = {
        name: {key: value for key, value in new[name].items() if key in sent and key not in _NOT_OF_SERVICE}
        for name, sent in slots_of(patch).items()
        if isinstance(sent, dict) and old.get(name) != new[name] and (Claim.of(old.get(name)) or Claim.of(new[name]))
    }
    return {**after, KNOWN: {**new, **owned}} if owned else after


def without_evidence(slots: dict[str, Any], ids: Collection[str]) -> dict[str, Any]:
    """Slots without messages that are deleted, and without the claims that nothing else says."""
    left = {}
    for name, slot in slots.items():
        claim = Claim.of(slot)
        if claim is None:
            left[name] = slot
        elif evidence := tuple(one for one in claim.evidence if one not in ids):
            kept = slot if len(evidence) == len(claim.evidence) else replace(claim, evidence=evidence).patch
            left[name] = {key: value for key, value in kept.items() if key in slot}
    return left


def evidence_of(profile: Any) -> set[str]:
    """The ids of the messages that say what is in the slots of a profile, or of a patch of one."""
    return {one for claim in _claims(slots_of(profile).values()) for one in claim.evidence}


def _claims(slots: Iterable[Any]) -> Iterable[Claim]:
    return filter(None, map(Claim.of, slots))


def _is_value(value: Any) -> TypeGuard[SlotValue]:
    return isinstance(value, str) or _is_texts(value)


def _is_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
