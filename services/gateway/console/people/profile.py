"""Values of a profile with their provenance, and the patches that change them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keepsake_client.protocol import ProfileChange, clean

#: The key of a profile below which an LLM writes, a slot each.
KNOWN: Final = "known"
_MISSING: Final = object()


class NotJSON(ValueError):
    """A value that was typed is not JSON."""


class NullInside(ValueError):
    """A value that was typed has a null in an object: in a patch, it removes."""


@dataclass(frozen=True)
class ProfileValue:
    """A value of a profile: of a key or, below `known`, of a slot.

    Args:
        path: the keys that lead to it.
        stored: as the profile has it.
        change: the last change of it, where that is among those that were read.
    """

    path: tuple[str, ...]
    stored: Any
    change: ProfileChange | None

    @property
    def is_extracted(self) -> bool:
        """Whether an LLM found it in what was said."""
        return self.path[0] == KNOWN and isinstance(self.stored, dict) and "evidence" in self.stored

    @property
    def value(self) -> Any:
        """What it says; None of a slot that is no longer true."""
        return self.stored.get("value") if self.is_extracted else self.stored

    @property
    def evidence(self) -> list[str]:
        """Ids of the memories by whose words it was found."""
        found = self.stored["evidence"] if self.is_extracted else []
        return [str(memory_id) for memory_id in found] if isinstance(found, list) else []

    @property
    def said_at(self) -> float | None:
        """When it was said, in seconds since 1970, where an LLM found it."""
        said_at = self.stored.get("said_at") if self.is_extracted else None
        return said_at if isinstance(said_at, int | float) else None


def values_of(profile: Mapping[str, Any], changes: Sequence[ProfileChange]) -> list[ProfileValue]:
    """The values of a profile in its order, slots apart.

    Args:
        changes: the last ones, newest first.
    """
    return [ProfileValue(path, stored, _last_change(path, changes)) for path, stored in _entries(profile)]


def _entries(profile: Mapping[str, Any]) -> Iterable[tuple[tuple[str, ...], Any]]:
    for key, stored in profile.items():
        if key == KNOWN and isinstance(stored, dict):
            yield from (((KNOWN, slot), value) for slot, value in stored.items())
        else:
            yield (key,), stored


def _last_change(path: tuple[str, ...], changes: Sequence[ProfileChange]) -> ProfileChange | None:
    return next((change for change in changes if _at(change.patch, path) is not _MISSING), None)


def _at(values: Any, path: tuple[str, ...]) -> Any:
    """What is at a path; `_MISSING` where nothing is."""
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return _MISSING
        values = values[key]
    return values


def read_value(typed: str) -> Any:
    """The value that was typed as JSON.

    Raises:
        NotJSON, NullInside
    """
    try:
        value = clean(json.loads(typed))
    except (ValueError, RecursionError):  # NaN is none of `clean`
        raise NotJSON("not JSON") from None
    if _has_null(value):
        raise NullInside("null in an object")
    return value


def _has_null(value: Any) -> bool:
    """Whether it is null, or has one as a value of an object: in lists, patches keep them."""
    return value is None or (isinstance(value, dict) and any(map(_has_null, value.values())))


def patch_to(profile: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The JSON Merge Patch (RFC 7386) that sets what is at a path, also where objects become smaller.

    Args:
        profile: what it is applied to.
        value: None removes it.
    """
    present = _at(profile, path)
    patch = value if present is _MISSING else _difference(present, value)
    for key in reversed(path):
        patch = {key: patch}
    return dict(patch)


def _difference(before: Any, after: Any) -> Any:
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return after
    changed = {key: _difference(before.get(key), value) for key, value in after.items()}
    return {**dict.fromkeys(before.keys() - after.keys()), **changed}


def as_json(value: Any) -> str:
    """A value as a viewer reads and types it."""
    return json.dumps(value, ensure_ascii=False, indent=2)
