"""The client for threads: the asyncio client on an event loop in a background thread."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, Literal, Self, TypeVar, Unpack

from redis.asyncio import Redis

from keepsake_client.async_client import AsyncClient, ClientOptions
from keepsake_client.context import Context
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import LTMResponse, Memory, RequestType, Source

T = TypeVar("T")


class Client:
    """Client of the long-term memory for threads: the verbs of `AsyncClient`, blocking, with the same results.

    Use it as a context manager, or call `start` and `close`, once each. Any number of threads may share one client; a
    process that forks starts it after the fork. The subscription lives in a daemon thread.

    Args:
        redis: the URL to connect to, or an asyncio client of redis-py that nothing else uses.
        options: those of `AsyncClient`.
    """

    def __init__(self, redis: Redis | str, **options: Unpack[ClientOptions]) -> None:
        self._client = AsyncClient(redis, **options)
        # Guards `_loop`: once it is None, nothing is scheduled on a loop that is about to end.
        # Reentrant: a signal handler may close the client while its thread holds the lock.
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._closing = asyncio.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counts(self) -> Counter[str]:
        """`AsyncClient.counts`."""
        return self._client.counts

    def start(self) -> None:
        """Subscribe to the responses, in the background. Redis may be down: the client keeps trying."""
        with self._lock:
            if self._thread is not None:
                if self._loop is None:
                    raise Unavailable("the client is closed; a closed client is not started again")
                return
            self._pid = os.getpid()
            started = threading.Event()
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._serve, args=(self._loop, started), name="keepsake-client", daemon=True
            )
            self._thread.start()
            started.wait()

    def close(self) -> None:
        """Unsubscribe and end the thread; pending requests raise `Unavailable`."""
        with self._lock:
            if self._loop is None or self._thread is None or self._pid != os.getpid():
                return
            self._loop.call_soon_threadsafe(self._closing.set)
            self._loop = None
            self._thread.join()

    def search(
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
        """See `AsyncClient.search`. Never raises: without a response it returns none."""
        try:
            return self._wait(
                self._client.search(
                    user_id,
                    query,
                    limit=limit,
                    min_score=min_score,
                    filters=filters,
                    exclude_session=exclude_session,
                    recency_half_life_days=recency_half_life_days,
                    agent_id=agent_id,
                    all_agents=all_agents,
                    also=also,
                    speaker=speaker,
                    include_superseded=include_superseded,
                    explain=explain,
                    deadline_ms=deadline_ms,
                )
            )
        except Unavailable:  # not started, or closed meanwhile
            return []

    def context(
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
        """See `AsyncClient.context`. Never raises: without a response it is empty."""
        try:
            return self._wait(
                self._client.context(
                    user_id,
                    query,
                    session=session,
                    max_chars=max_chars,
                    max_tokens=max_tokens,
                    limit=limit,
                    min_score=min_score,
                    filters=filters,
                    agent_id=agent_id,
                    all_agents=all_agents,
                    also=also,
                    speaker=speaker,
                    deadline_ms=deadline_ms,
                )
            )
        except Unavailable:  # not started, or closed meanwhile
            return Context()

    def add(
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
        """See `AsyncClient.add`."""
        return self._wait(
            self._client.add(
                user_id,
                content,
                metadata=metadata,
                agent_id=agent_id,
                speaker=speaker,
                ttl_days=ttl_days,
                deadline_ms=deadline_ms,
            )
        )

    def profile_get(
        self,
        user_id: str,
        *,
        agent_id: str | None = None,
        history: bool = False,
        cursor: str | None = None,
        deadline_ms: int | None = None,
    ) -> LTMResponse:
        """See `AsyncClient.profile_get`."""
        return self._wait(
            self._client.profile_get(
                user_id, agent_id=agent_id, history=history, cursor=cursor, deadline_ms=deadline_ms
            )
        )

    def profile_update(
        self,
        user_id: str,
        updates: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        agent_id: str | None = None,
        deadline_ms: int | None = None,
    ) -> LTMResponse:
        """See `AsyncClient.profile_update`."""
        return self._wait(
            self._client.profile_update(
                user_id, updates, expected_version=expected_version, agent_id=agent_id, deadline_ms=deadline_ms
            )
        )

    def memory_list(
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
        """See `AsyncClient.memory_list`."""
        return self._wait(
            self._client.memory_list(
                user_id,
                filters=filters,
                agent_id=agent_id,
                all_agents=all_agents,
                order=order,
                limit=limit,
                cursor=cursor,
                deadline_ms=deadline_ms,
            )
        )

    def memory_pages(
        self,
        user_id: str,
        *,
        filters: Mapping[str, Any] | None = None,
        agent_id: str | None = None,
        all_agents: bool = False,
        order: Literal["newest", "oldest"] = "newest",
        limit: int = 100,
        deadline_ms: int | None = None,
    ) -> Iterator[list[Memory]]:
        """See `AsyncClient.memory_pages`."""
        pages = self._client.memory_pages(
            user_id,
            filters=filters,
            agent_id=agent_id,
            all_agents=all_agents,
            order=order,
            limit=limit,
            deadline_ms=deadline_ms,
        )

        async def next_page() -> list[Memory] | None:
            return await anext(pages, None)

        while (page := self._wait(next_page())) is not None:
            yield page

    def memory_get(self, user_id: str, memory_id: str, *, deadline_ms: int | None = None) -> LTMResponse:
        """See `AsyncClient.memory_get`."""
        return self._wait(self._client.memory_get(user_id, memory_id, deadline_ms=deadline_ms))

    def memory_update(
        self,
        user_id: str,
        memory_id: str,
        *,
        content: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        deadline_ms: int | None = None,
    ) -> LTMResponse:
        """See `AsyncClient.memory_update`."""
        return self._wait(
            self._client.memory_update(user_id, memory_id, content=content, metadata=metadata, deadline_ms=deadline_ms)
        )

    def memory_delete(
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
        """See `AsyncClient.memory_delete`."""
        return self._wait(
            self._client.memory_delete(
                user_id,
                ids=ids,
                filters=filters,
                agent_id=agent_id,
                all_agents=all_agents,
                dry_run=dry_run,
                deadline_ms=deadline_ms,
            )
        )

    def user_forget(self, user_id: str, *, dry_run: bool = False, deadline_ms: int | None = None) -> LTMResponse:
        """See `AsyncClient.user_forget`."""
        return self._wait(self._client.user_forget(user_id, dry_run=dry_run, deadline_ms=deadline_ms))

    def user_export(
        self, user_id: str, *, limit: int = 100, cursor: str | None = None, deadline_ms: int | None = None
    ) -> LTMResponse:
        """See `AsyncClient.user_export`."""
        return self._wait(self._client.user_export(user_id, limit=limit, cursor=cursor, deadline_ms=deadline_ms))

    def user_list(
        self, prefix: str = "", *, limit: int = 50, cursor: str | None = None, deadline_ms: int | None = None
    ) -> LTMResponse:
        """See `AsyncClient.user_list`."""
        return self._wait(self._client.user_list(prefix, limit=limit, cursor=cursor, deadline_ms=deadline_ms))

    def user_import(
        self,
        user_id: str,
        records: Sequence[Mapping[str, Any]],
        *,
        restore_deleted: bool = False,
        deadline_ms: int | None = None,
    ) -> LTMResponse:
        """See `AsyncClient.user_import`."""
        return self._wait(
            self._client.user_import(user_id, records, restore_deleted=restore_deleted, deadline_ms=deadline_ms)
        )

    def request(
        self,
        request_type: RequestType,
        user_id: str,
        data: Mapping[str, Any],
        *,
        deadline_ms: int | None = None,
        request_id: str | None = None,
    ) -> LTMResponse:
        """See `AsyncClient.request`."""
        return self._wait(
            self._client.request(request_type, user_id, data, deadline_ms=deadline_ms, request_id=request_id)
        )

    def remember(
        self,
        user_id: str,
        content: str,
        *,
        source: Source = "user",
        session: str | None = None,
        timestamp: float | str | None = None,
        meta: Mapping[str, Any] | None = None,
        message_id: str | None = None,
        task_id: str | None = None,
        require_ai_response: bool | None = None,
        agent_id: str | None = None,
        speaker: Mapping[str, str] | str | None = None,
        ttl_days: float | None = None,
    ) -> str:
        """See `AsyncClient.remember`."""
        return self._wait(
            self._client.remember(
                user_id,
                content,
                source=source,
                session=session,
                timestamp=timestamp,
                meta=meta,
                message_id=message_id,
                task_id=task_id,
                require_ai_response=require_ai_response,
                agent_id=agent_id,
                speaker=speaker,
                ttl_days=ttl_days,
            )
        )

    def _serve(self, loop: asyncio.AbstractEventLoop, started: threading.Event) -> None:
        async def until_closed() -> None:
            async with self._client:
                started.set()
                await self._closing.wait()

        # At its end the runner cancels what is still pending.
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(until_closed())

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            loop = self._loop
            if loop is None or self._pid != os.getpid():
                coroutine.close()
                raise Unavailable("the client is not started in this process, or closed")
            try:
                future = asyncio.run_coroutine_threadsafe(coroutine, loop)
            except RuntimeError:  # closed by a signal handler in this moment
                coroutine.close()
                raise Unavailable("the client is closed") from None
        try:
            return future.result()
        except CancelledError:
            raise Unavailable("the client is closed") from None
        finally:
            future.cancel()  # after an interrupt, such as Ctrl-C; otherwise it is done, and this does nothing
