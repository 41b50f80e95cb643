"""Person: what is remembered of a user, as a viewer may see and change it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final, Literal

from keepsake_client.errors import RequestFailed, RequestTimeout
from keepsake_client.protocol import MAX_LIMIT, LTMResponse, Memory, UserSummary, clean, encode_user_id
from keepsake_client.verbs import FORGET_TIMEOUT_MS

from services.gateway.access import Right
from services.gateway.app import Gateway
from services.gateway.console.people.asked import Asked
from services.gateway.console.viewer import Viewer
from services.gateway.memories import memory_of
from services.gateway.transfer import PAGE_TIMEOUT_MS, imported

#: Memories on a page, and of a search.
PAGE: Final = 50
FOUND: Final = 20
#: How long a viewer waits for what is shown.
READ_TIMEOUT_MS: Final = 10_000


@dataclass(frozen=True)
class Preview:
    """What goes when a user is forgotten.

    Args:
        memories: how many, facts included.
        summary: of the user, as a list of users has it.
        profile_keys: of the user's own profile.
    """

    memories: int
    summary: UserSummary
    profile_keys: int


class Person:
    """What is remembered of a user, read and changed by the wire.

    Each method checks first what the key permits, and raises `NotPermitted`, `Unauthorized`, and what `AsyncClient`
    raises. Each change is logged with the name of the key.

    Args:
        asked: who, and which of the memories.
    """

    def __init__(self, gateway: Gateway, viewer: Viewer, asked: Asked) -> None:
        self.gateway = gateway
        self.viewer = viewer
        self.asked = asked
        self.user_id = asked.user_id
        self._ltm = gateway.ltm

    async def summary(self) -> UserSummary:
        """Counts, last time and characters; nothing of a user of whom nothing is kept."""
        return await self._listed() or UserSummary(user_id=self.user_id)

    async def is_kept(self) -> bool:
        """Whether anything is kept of the user."""
        return await self._listed() is not None

    async def _listed(self) -> UserSummary | None:
        """The user as a list of users has it; None of one of whom nothing is kept."""
        self.viewer.permit(Right.READ, self.user_id)
        prefix, limit, cursor = self.user_id, 1, None  # its own id comes before those that begin with it
        if clean(self.user_id) != self.user_id:
            # A prefix is cleaned on the wire, and then begins another id. A cursor is not: what is behind it begins
            # with all but the last character, and is rarely much.
            prefix, limit = "".join(takewhile(lambda char: clean(char) == char, self.user_id)), MAX_LIMIT
            cursor = encode_user_id(self.user_id[:-1]) or None
        response = await self._ltm.user_list(prefix, limit=limit, cursor=cursor, deadline_ms=READ_TIMEOUT_MS)
        return next((user for user in response.users or [] if user.user_id == self.user_id), None)

    async def page(
        self, kind: Literal["message", "fact", "superseded"] = "message", cursor: str | None = None
    ) -> LTMResponse:
        """A page of memories, newest first."""
        self._permit(Right.READ)
        filters = {**self.asked.conditions(self.viewer.zone), "kind": kind}
        return await self._ltm.memory_list(
            self.user_id,
            filters=filters,
            limit=PAGE,
            cursor=cursor,
            deadline_ms=READ_TIMEOUT_MS,
            **self.asked.scope.data,
        )

    async def search(self) -> LTMResponse:
        """What the memory finds for the query, best first, with the parts of the scores."""
        self._permit(Right.READ)
        self._permit(Right.SEARCH)
        filters = {name: value for name, value in self.asked.conditions(self.viewer.zone).items() if name != "contains"}
        data = {
            "query": self.asked.query,
            "limit": FOUND,
            "filters": filters,
            "explain": True,
            "include_superseded": True,
            **{name: value for name, value in self.asked.scope.data.items() if value},
        }
        return await self._ltm.request("search", self.user_id, data, deadline_ms=READ_TIMEOUT_MS)

    async def memory(self, memory_id: str) -> LTMResponse:
        """One memory, with its history."""
        caller = self._permit(Right.READ)
        return await memory_of(self.gateway, caller, self.user_id, memory_id, READ_TIMEOUT_MS)

    async def memories(self, memory_ids: list[str]) -> list[Memory]:
        """Those memories of these that there are, and that the key is for."""
        found: list[Memory] = []
        for memory_id in memory_ids:
            try:
                found += (await self.memory(memory_id)).memories
            except RequestFailed as error:
                if error.code != "not_found":
                    raise
        return found

    async def correct(self, memory_id: str, content: str) -> Memory:
        """Correct the content of a memory; it is returned as it is now."""
        caller = self._permit(Right.WRITE)
        if caller.agent is not None:
            await memory_of(self.gateway, caller, self.user_id, memory_id, READ_TIMEOUT_MS)
        update = self._ltm.memory_update(self.user_id, memory_id, content=content, deadline_ms=FORGET_TIMEOUT_MS)
        response = await self._changed("memory_update", update, memory_id=memory_id)
        return response.memories[0]

    async def delete(self, memory_id: str) -> int:
        """Delete a memory; returns how many there were."""
        caller = self._permit(Right.DELETE)
        deletion = self._ltm.memory_delete(
            self.user_id, ids=[memory_id], agent_id=caller.agent, deadline_ms=FORGET_TIMEOUT_MS
        )
        return (await self._changed("memory_delete", deletion, memory_id=memory_id)).count or 0

    async def delete_matching(self, *, dry_run: bool) -> int:
        """Delete the memories that meet the filters, or count them; returns how many."""
        self._permit(Right.DELETE)
        filters = self.asked.conditions(self.viewer.zone)
        deletion = self._ltm.memory_delete(
            self.user_id, filters=filters, dry_run=dry_run, deadline_ms=FORGET_TIMEOUT_MS, **self.asked.scope.data
        )
        if dry_run:
            return (await deletion).count or 0
        return (await self._changed("memory_delete", deletion, filters=sorted(filters))).count or 0

    async def profile(self, cursor: str | None = None) -> LTMResponse:
        """The profile, the user's own or the character's, with a page of its changes, newest first."""
        self._permit(Right.READ)
        agent_id = self.asked.scope.agent_id
        return await self._ltm.profile_get(
            self.user_id, agent_id=agent_id, history=True, cursor=cursor, deadline_ms=READ_TIMEOUT_MS
        )

    async def patch_profile(self, patch: Mapping[str, Any], version: int) -> None:
        """Apply a JSON Merge Patch to this version of the profile."""
        self._permit(Right.WRITE)
        agent_id = self.asked.scope.agent_id
        update = self._ltm.profile_update(
            self.user_id, patch, expected_version=version, agent_id=agent_id, deadline_ms=READ_TIMEOUT_MS
        )
        await self._changed("profile_update", update, agent_id=agent_id)

    async def preview_forget(self) -> Preview:
        """What goes when the user is forgotten."""
        self.viewer.permit(Right.FORGET, self.user_id)
        response = await self._ltm.user_forget(self.user_id, dry_run=True)
        profile = await self._ltm.profile_get(self.user_id, deadline_ms=READ_TIMEOUT_MS)
        return Preview(response.count or 0, await self.summary(), len(profile.user_profile))

    async def forget(self) -> int:
        """Delete everything of the user; returns how many memories there were."""
        self.viewer.permit(Right.FORGET, self.user_id)
        return (await self._changed("user_forget", self._ltm.user_forget(self.user_id))).count or 0

    async def store(self, parts: AsyncIterator[bytes], *, restore_deleted: bool) -> AsyncGenerator[dict[str, int]]:
        """Import a file; yields the counts by then. An import that is not read to its end stops."""
        self.viewer.permit(Right.IMPORT, self.user_id)
        tally: dict[str, int] = {}
        try:
            async for tally in imported(
                self.gateway, self.user_id, parts, restore_deleted=restore_deleted, deadline_ms=PAGE_TIMEOUT_MS
            ):
                yield tally
        finally:
            self.viewer.changed("user_import", user_id=self.user_id, **tally)

    async def _changed(self, what: str, change: Awaitable[LTMResponse], **ids: Any) -> LTMResponse:
        """The response to a change, which is logged: also where none came in time, as it may be made all the same."""
        try:
            response = await change
        except RequestTimeout as error:
            self.viewer.changed(what, user_id=self.user_id, **ids, outcome=error.code)
            raise
        figures = {"count": response.count, "version": response.profile_version}
        known = {name: figure for name, figure in figures.items() if figure is not None}
        self.viewer.changed(what, user_id=self.user_id, **ids, **known)
        return response

    def _permit(self, right: Right) -> Any:
        return self.viewer.permit(right, self.user_id, self.asked.scope.agent_id)
