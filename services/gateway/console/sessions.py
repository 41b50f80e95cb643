"""Sessions: which browser has signed in, with which key."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

from cachetools import TTLCache

#: The cookie that holds the id of a session.
COOKIE: Final = "keepsake_session"
#: A session ends so long after it began, in seconds, and with the process.
LIFETIME_S: Final = 12 * 3_600
MAX_SESSIONS: Final = 1_000


class Sessions:
    """The keys of the browsers that have signed in, in memory alone, by a random id.

    Of each request the key is verified anew, so that one that is revoked ends its sessions.

    Args:
        clock: seconds; by default the monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys: TTLCache[str, str] = TTLCache(MAX_SESSIONS, LIFETIME_S, timer=clock)

    def begin(self, key: str) -> str:
        """The id of a new session of this key or token."""
        session_id = secrets.token_urlsafe(32)
        self._keys[session_id] = key
        return session_id

    def key(self, session_id: str) -> str | None:
        """The key of a session; None where there is no such session."""
        return self._keys.get(session_id)

    def end(self, session_id: str) -> None:
        """End a session."""
        self._keys.pop(session_id, None)
