"""Sessions: which browser has signed in, with which key, and who a request to the console comes from."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

from cachetools import TTLCache
from starlette.requests import HTTPConnection, Request
from starlette.types import Scope

from services.gateway.access import Caller
from services.gateway.app import Authenticator

#: The cookie that holds the id of a session.
COOKIE: Final = "keepsake_session"
#: A session ends so long after it began, in seconds, and with the process.
LIFETIME_S: Final = 12 * 3_600
MAX_SESSIONS: Final = 1_000
_CREDENTIALS: Final = (b"authorization", b"x-api-key")


class Sessions:
    """The keys of the browsers that have signed in, in memory alone, by a random id.

    With each request and each message of a WebSocket the key is verified anew, so that one that is revoked ends its
    sessions. Beyond `MAX_SESSIONS`, the one that was not used for longest ends.

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


class SessionCallers:
    """Finds the caller of a request, or of a WebSocket, by its session.

    The key of the session is put into the header in which other clients send theirs, so that one authenticator serves
    all doors. A key that the request brings itself is ignored.

    Args:
        authenticator: of the gateway.
        sessions: of the browsers that have signed in.
    """

    def __init__(self, authenticator: Authenticator, sessions: Sessions) -> None:
        self._authenticator = authenticator
        self._sessions = sessions

    def caller(self, scope: Scope) -> Caller:
        """The caller, who is counted once against the rate of the key.

        Raises:
            KeepsakeError: there is none, or it has made too many requests.
        """
        return self._authenticator.caller(self._request(scope))

    def identify(self, scope: Scope) -> Caller:
        """The caller, who is not counted.

        Raises:
            KeepsakeError: there is none.
        """
        return self._authenticator.identify(self._request(scope))

    def _request(self, scope: Scope) -> Request:
        return request_with_key(scope, self._sessions.key(session_of(scope)))


def session_of(scope: Scope) -> str:
    """The id in the cookie of the session; "" without one."""
    return HTTPConnection(scope).cookies.get(COOKIE, "")


def request_with_key(scope: Scope, key: str | None) -> Request:
    """A request for an authenticator, of the headers and the peer of `scope`, with this key in place of any other."""
    headers = [(name, value) for name, value in scope["headers"] if name not in _CREDENTIALS]
    if key is not None:
        headers.append((b"authorization", b"Bearer " + key.encode("utf-8", "replace")))
    return Request({"type": "http", "headers": headers, "client": scope.get("client"), "state": {}})
