"""Failures of a tool call in one line for a model: the code, what is wrong, and what to do now."""

from __future__ import annotations

from typing import Final

from keepsake_client.errors import KeepsakeError

MAX_CHARS: Final = 500
#: Of reads. These errors speak of servers and addresses, which are none of a model's business.
_READ: Final = {
    "timeout": "the memory did not answer within {deadline_ms} ms: go on without it",
    "unavailable": "the memory cannot be reached just now: go on without it",
}
_NOT_CONFIRMED: Final = "; it may still be done, so look with search_memories or get_profile before you repeat it"
_WRITE: Final = {
    "timeout": "the memory did not confirm this within {deadline_ms} ms" + _NOT_CONFIRMED,
    "unavailable": "the memory cannot be reached just now" + _NOT_CONFIRMED,
}
_ANY: Final = {
    "not_found": "the user has no memory of this id: take one from search_memories or list_memories",
    "conflict": "the profile has changed since that version: call get_profile, then repeat with its version",
    "disabled": "the long-term memory is off: go on without it",
    "internal": "the memory failed at this, and its log says why: go on without it",
}


def in_words(error: KeepsakeError, *, writes: bool, deadline_ms: int) -> str:
    """The line for an error.

    Args:
        writes: whether the tool changes anything.
        deadline_ms: of the call.
    """
    code = "timeout" if error.code == "expired" else error.code
    words = {**(_WRITE if writes else _READ), **_ANY}.get(code)
    if words is None:  # of the request: its words name fields, and quote no contents
        words = " ".join(str(error).removeprefix(f"{code}: ").split())[:MAX_CHARS]
    return f"{code}: {words.format(deadline_ms=deadline_ms) if code == 'timeout' else words}"
