"""UserMatcher: recognises the messages of one user on lists, streams and queues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keepsake_client.fields import readable_id
from keepsake_client.requests import peek_id

from services.runtime.id_matcher import IdMatcher, decoded


class UserMatcher:
    """Whether something is of one user.

    Args:
        anonymous_user: the user of messages without a user_id.
        hashed: what traces and turns may write in place of a user id.
    """

    def __init__(self, user_id: str, anonymous_user: str, hashed: Callable[[str], str] = str) -> None:
        self.user_id = user_id
        self._anonymous = user_id == anonymous_user
        self._ids = IdMatcher({user_id})
        self._in_traces = (user_id, hashed(user_id))

    def event(self, raw: bytes) -> dict[str, Any] | None:
        """The event or request in `raw`, if it is one of the user."""
        # JSON may escape any character of an id.
        if not (self._anonymous or b"\\" in raw or self._ids.may_be_in(raw)):
            return None
        item = decoded(raw)
        return item if item is not None and self._owns(item.get("user_id")) else None

    def actor_message(self, raw: bytes) -> dict[str, Any] | None:
        """The actor message in `raw`, if its event or request is one of the user."""
        body = decoded(raw)
        return body if body is not None and (of := subject(body)) and self._owns(of.get("user_id")) else None

    def record(self, item: dict[str, Any]) -> bool:
        """Whether a trace or turn record is of the user, or of a search that asked for the user's memories as well."""
        options = item.get("options")
        also = options.get("also") if isinstance(options, dict) else None
        users = [item.get("user"), *(also if isinstance(also, list) else ())]
        return any(user in self._in_traces for user in users)

    def rejected(self, fields: dict[bytes, bytes]) -> bool:
        """Whether a rejected message is of the user; one that does not say whose it is, whether it names the user."""
        if stated := fields.get(b"user_id"):
            return stated == self.user_id.encode("utf-8", "surrogatepass")
        raw = fields.get(b"message", b"")
        if (item := decoded(raw)) is not None:
            return self._owns(item.get("user_id"))
        if (peeked := peek_id(raw, b"user_id")) is not None:
            return peeked == self.user_id
        return self._ids.is_word_of(raw)

    def _owns(self, value: Any) -> bool:
        if value is None or (isinstance(value, str) and not value.strip()):
            return self._anonymous
        return bool(readable_id(value) == self.user_id)


def subject(body: dict[str, Any]) -> dict[str, Any]:
    """The event or request of an actor message."""
    kwargs = body.get("kwargs")
    found = (kwargs.get("update") or kwargs.get("request")) if isinstance(kwargs, dict) else None
    return found if isinstance(found, dict) else {}
