"""Failures of a tool call in one line for a model: the code, what is wrong, and what to do now."""

from __future__ import annotations

from typing import Final

from keepsake_client.errors import KeepsakeError

from services.gateway.access import NotPermitted
from services.gateway.mcp_server.tools import Tool

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
    "worker_outdated": "the memory is being upgraded and cannot do this yet: go on without it",
    "internal": "the memory failed at this, and its log says why: go on without it",
}


def in_words(error: KeepsakeError, tool: Tool) -> str:
    """The line for an error of a call of the tool."""
    code = "timeout" if error.code == "expired" else error.code
    words = {**(_WRITE if tool.writes else _READ), **_ANY}.get(code)
    if isinstance(error, NotPermitted):
        words = f"this needs the right {tool.right}: give it by --may, of `ltm mcp` or of the key"
    elif words is None:  # of the request: its words name fields, and quote no contents
        words = " ".join(str(error).removeprefix(f"{code}: ").split())[:MAX_CHARS]
    elif code == "timeout":
        words = words.format(deadline_ms=tool.deadline_ms)
    return f"{code}: {words}"
