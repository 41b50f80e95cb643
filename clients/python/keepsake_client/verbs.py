"""The verbs of the asyncio client: a method for each type of request."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from keepsake_client.context import Context
from keepsake_client.errors import Disabled, KeepsakeError
from keepsake_client.protocol import ContextParts, LTMResponse, Memory, RequestType

#: How long a `user_forget` is waited for that has no deadline.
FORGET_TIMEOUT_MS = 60_000
#: Who asks for a list of users: every request names a user, and this one is about none.
OPERATOR = "operator"

log = logging.getLogger(__name__)


class Verbs(ABC):
    """A method for each type of request, on what sends one."""

    @abstractmethod
    async def request(
        self,
        request_type: RequestType,
        user_id: str,
        data: Mapping[str, Any],
        *,
        deadline_ms: int | None = None,
        request_id: str | None = None,
    ) -> LTMResponse:
        """Send one request and return its response; see `AsyncClient.request`."""

    async def search(
        self,
        user_id: str,
        query: str,
        *,
        limit: int = 5,
        min_score: float | None = None,
        filters: Mapping[str, Any] | None = None,
        exclude_session: str | None = None,
        recency_half_life_days: float | None = None,
        agent_id: str | None = None,
        all_agents: bool = False,
        also: Sequence[str] = (),
        speaker: Mapping[str, str] | str | None = None,
        include_superseded: bool = False,
        explain: bool = False,
        deadline_ms: int | None = None,
    ) -> list[Memory]:
        """The user's memories that match the query, best first. Never raises: without a response it returns none.

        The cause is logged without contents, and counted in `counts`. `request` raises instead, and returns the whole
        response.

        Args:
            limit: the most memories to return, 1 to 100.
            min_score: the least score of a memory, 0 to 1.
            filters: conditions that a memory must meet: `session_id`, `source`, `since`, `until`, `speaker`.
            exclude_session: no memory of this session is returned.
            recency_half_life_days: the age in days at which a memory counts half.
            agent_id: the character whose memories are searched besides the shared ones.
            all_agents: searches those of all characters.
            also: up to 8 further users, whose memories are ranked as one with the user's.
            speaker: who asks, a name or a mapping with `id`, `name` or both: in a room, "my birthday" is the asker's.
            include_superseded: facts that others have replaced are found too, each with `superseded_by` in `metadata`.
            explain: adds the parts of each score to `metadata["score_parts"]`.
            deadline_ms: how long to wait. It is sent along, so that an expired search is not executed.
        """
        options = {
            "min_score": min_score,
            "filters": filters,
            "exclude_session": exclude_session,
            "recency_half_life_days": recency_half_life_days,
            "agent_id": agent_id,
            "all_agents": all_agents or None,
            "also": list(also) or None,
            "speaker": speaker,
            "include_superseded": include_superseded or None,
            "explain": explain or None,
        }
        data = {"query": query, "limit": limit, **_given(**options)}
        response = await self._answered("search", user_id, data, deadline_ms)
        return [] if response is None else response.memories

    async def context(
        self,
        user_id: str,
        query: str,
        *,
        session: str | None = None,
        max_chars: int | None = None,
        max_tokens: int | None = None,
        limit: int = 5,
        min_score: float | None = None,
        filters: Mapping[str, Any] | None = None,
        agent_id: str | None = None,
        all_agents: bool = False,
        also: Sequence[str] = (),
        speaker: Mapping[str, str] | str | None = None,
        deadline_ms: int | None = None,
    ) -> Context:
        """What is remembered of the user, as one block for a prompt: profile, matching memories, the last sessions.

        Never raises: without a response it is empty. The cause is logged without contents, and counted in `counts`.

        Args:
            session: the one that goes on, which the recap leaves out.
            max_chars: of the text; 4,000 where it is missing and there is no `max_tokens`, 32,768 at most.
            max_tokens: of the text, counted roughly: a quarter of one for a character of ASCII, one for any other.
            limit, min_score, filters, agent_id, all_agents, also, speaker, deadline_ms: as in `search`.
        """
        options = {
            "session_id": session,
            "max_chars": max_chars,
            "max_tokens": max_tokens,
            "min_score": min_score,
            "filters": filters,
            "agent_id": agent_id,
            "all_agents": all_agents or None,
            "also": list(also) or None,
            "speaker": speaker,
        }
        data = {"query": query, "limit": limit, **_given(**options)}
        if (response := await self._answered("context", user_id, data, deadline_ms)) is None:
            return Context()
        parts = response.context_parts or ContextParts()
        return Context(response.context or "", parts, response.memories, bool(response.partial))

    async def _answered(
        self, request_type: RequestType, user_id: str, data: Mapping[str, Any], deadline_ms: int | None
    ) -> LTMResponse | None:
        """The response to one request; None without one, which is logged."""
        try:
            return await self.request(request_type, user_id, data, deadline_ms=deadline_ms)
        except Disabled:
            return None
        except KeepsakeError as error:
            # Not its message: the reason in a response may quote contents.
            log.warning("ltm %s failed: %r", request_type, error.code, extra={"user_id": user_id})
            return None

    async def add(
        self,
        user_id: str,
        content: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        agent_id: str | None = None,
        speaker: Mapping[str, str] | str | None = None,
        ttl_days: float | None = None,
        deadline_ms: int | None = None,
    ) -> LTMResponse:
        """Store `content` as one memory, verbatim; the response contains it.

        Args:
            agent_id: the character that it belongs to; shared by all where it is missing.
            speaker: who of several people said it, as in a search.
            ttl_days: it is deleted after so many days.

        Raises:
            RequestTimeout, RequestFailed, Unavailable, InvalidMessage, Disabled
        """
        given = _given(agent_id=agent_id, speaker=speaker, ttl_days=ttl_days)
        data = {"content": content, "metadata": metadata or {}, **given}
        return await self.request("add", user_id, data, deadline_ms=deadline_ms)

    async def profile_get(
        self,
        user_id: str,
        *,
        agent_id: str | None = None,
        history: bool = False,
        cursor: str | None = None,
        deadline_ms: int | None = None,
    ) -> LTMResponse:
        """The user's profile, as `user_profile` and `profile_version` of the response.

        Args:
            agent_id: the character that keeps it; the user's own where it is missing.
            history: adds its changes, newest first, as `profile_history` and, where more follow, `next_cursor`.
            cursor: the `next_cursor` of the page before.

        Raises:
            RequestTimeout, RequestFailed, Unavailable, InvalidMessage, Disabled
        """
        data = _given(agent_id=agent_id, history=history or None, cursor=cursor)
        return await self.request("profile_get", user_id, data, deadline_ms=deadline_ms)

    async def profile_update(
        self,
        user_id: str,
        updates: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        agent_id: str | None = None,
        deadline_ms: int | None = None,
    ) -> LTMResponse:
        """Apply a JSON Merge Patch (RFC 7386) to the profile; the response contains the result.

        Args:
            updates: the patch; null removes a key.
            expected_version: apply it to this version only; `RequestFailed` with code `conflict` otherwise.
            agent_id: the character that keeps it; the user's own where it is missing.

        Raises:
            RequestTimeout, RequestFailed, Unavailable, InvalidMessage, Disabled
        """
        data = {"updates": updates, **_given(expected_version=expected_version, agent_id=agent_id)}
        return await self.request("profile_update", user_id, data, deadline_ms=deadline_ms)

    async def memory_list(
        self,
        user_id: str,
        *,
        filters: Mapping[str, Any] | None = None,
        agent_id: str | None = None,
        all_agents: bool = False,
        order: Literal["newest", "oldest"] = "newest",
        limit: int = 50,
        cursor: str | None = None,
        deadline_ms: int | None = None,
    ) -> LTMResponse:
        """A page of the user's memories in the order of time: `memories` and, where more follow, `next_cursor`.

        Args:
            filters: conditions that a memory must meet: those of a search; `contains`, a text in any case; and
                `kind`, `"message"`, `"fact"` or `"superseded"`.
            agent_id: the memories of this character, beside the shared ones.
            all_agents: those of all characters.
            limit: the most memories on the page, 1 to 100.
            cursor: the `next_cursor` of the page before.

        Raises:
            RequestTimeout, RequestFailed, Unavailable, InvalidMessage, Disabled
        """
        options = {"filters": filters, "agent_id": agent_id, "all_agents": all_agents or None, "cursor": cursor}
        data = {"order": order, "limit": limit, **_given(**options)}
        return await self.request("memory_list", user_id, data, deadline_ms=deadline_ms)

    async def memory_pages(
        self,
        user_id: str,
        *,
        filters: Mapping[str, Any] | None = None,
        agent_id: str | None = None,
        all_agents: bool = False,
        order: Literal["newest", "oldest"] = "newest",
        limit: int = 100,
        deadline_ms: int | None = None,
    ) -> AsyncIterator[list[Memory]]:
        """All of the user's memories, page by page, with the arguments of `memory_list`.

        Args:
            deadline_ms: how long to wait for each page.

        Raises:
            RequestTimeout, RequestFailed, Unavailable, InvalidMessage, Disabled
        """
        cursor: str | None = None
        while True:
            page = await self.memory_list(
                user_id,
                filters=filters,
                agent_id=agent_id,
                all_agents=all_agents,
                order=order,
                limit=limit,
                cursor=cursor,
                deadline_ms=deadline_ms,
            )
            yield page.memories
            if (cursor := page.next_cursor) is None:
                return

    async def memory_get(self, user_id: str, memory_id: str, *, deadline_ms: int | None = None) -> LTMResponse:
        """One memory, the only one of `memories`, and its `history`; `RequestFailed` with code `not_found` otherwise.

        Raises:
            RequestTimeout, RequestFailed, Unavailable, InvalidMessage, Disabled
        """
        return await self.request("memory_get", user_id, {"id": memory_id}, deadline_ms=deadline_ms)

    async def memory_update(
        self,
        user_id: str,
        memory_id: str,
        *,
        content: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        deadline_ms: int | None = None,
    ) -> LTMResponse:
        """Correct a memory; the response contains it as it is now.

        Args:
            content: the corrected text.
            metadata: a JSON Merge Patch (RFC 7386) of the metadata; null removes a key.

        Raises:
            RequestTimeout, RequestFailed, Unavailable, InvalidMessage, Disabled
        """
        data = {"id": memory_id, **_given(content=content, metadata=metadata)}
        return await self.request("memory_update", user_id, data, deadline_ms=deadline_ms)

    async def memory_delete(
        self,
        user_id: str,
        *,
        ids: Sequence[str] | None = None,
        filters: Mapping[str, Any] | None = None,
        agent_id: str | None = None,
        all_agents: bool = False,
        dry_run: bool = False,
        deadline_ms: int | None = None,
    ) -> LTMResponse:
        """Delete memories, by ids or by the filters of `memory_list`; `count` of the response is their number.

        Args:
            dry_run: count them, and delete nothing.
            deadline_ms: how long to wait; a deletion of many memories goes on after a `RequestTimeout`.

        Raises:
            RequestTimeout, RequestFailed, Unavailable, InvalidMessage, Disabled
        """
        options = {
            "ids": None if ids is None else list(ids),
            "filters": filters,
            "agent_id": agent_id,
            "all_agents": all_agents or None,
            "dry_run": dry_run or None,
        }
        return await self.request("memory_delete", user_id, _given(**options), deadline_ms=deadline_ms)

    async def user_forget(self, user_id: str, *, dry_run: bool = False, deadline_ms: int | None = None) -> LTMResponse:
        """Delete everything of the user, everywhere; `count` of the response is the number of memories.

        Repeating a call that raised is idempotent.

        Args:
            dry_run: count the memories, and delete nothing.
            deadline_ms: how long to wait; a minute where it is missing. 50,000 memories take some seconds.

        Raises:
            RequestTimeout, RequestFailed, Unavailable, InvalidMessage, Disabled
        """
        data = {"dry_run": True} if dry_run else {}
        deadline_ms = FORGET_TIMEOUT_MS if deadline_ms is None else deadline_ms
        return await self.request("user_forget", user_id, data, deadline_ms=deadline_ms)

    async def user_export(
        self, user_id: str, *, limit: int = 100, cursor: str | None = None, deadline_ms: int | None = None
    ) -> LTMResponse:
        """A page of all that is kept of the user, as `records`; `next_cursor` is None on the last one.

        Args:
            limit: the most memories on a page, 1 to 100.
            cursor: the `next_cursor` of the page before.

        Raises:
            RequestTimeout, RequestFailed, Unavailable, InvalidMessage, Disabled
        """
        begin = {} if cursor is None else {"cursor": cursor}
        return await self.request("user_export", user_id, {"limit": limit, **begin}, deadline_ms=deadline_ms)

    async def user_import(
        self,
        user_id: str,
        records: Sequence[Mapping[str, Any]],
        *,
        restore_deleted: bool = False,
        deadline_ms: int | None = None,
    ) -> LTMResponse:
        """Store up to 64 records of `user_export`; idempotent. The response has `count`, `known` and `deleted`.

        Args:
            restore_deleted: stores what was deleted, too.

        Raises:
            RequestTimeout, RequestFailed, Unavailable, InvalidMessage, Disabled
        """
        restoring = {"restore_deleted": True} if restore_deleted else {}
        data = {"records": [dict(record) for record in records], **restoring}
        return await self.request("user_import", user_id, data, deadline_ms=deadline_ms)

    async def user_list(
        self, prefix: str = "", *, limit: int = 50, cursor: str | None = None, deadline_ms: int | None = None
    ) -> LTMResponse:
        """A page of the users whose ids begin with `prefix`, by id: `users` and, where more follow, `next_cursor`.

        Args:
            limit: the most users on the page, 1 to 100.
            cursor: the `next_cursor` of the page before.

        Raises:
            RequestTimeout, RequestFailed, Unavailable, InvalidMessage, Disabled
        """
        data = {"prefix": prefix, "limit": limit, **_given(cursor=cursor)}
        return await self.request("user_list", OPERATOR, data, deadline_ms=deadline_ms)


def _given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}
