"""LiveFeed: a reader of the streams of traces and turns, one for all viewers of the live page."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import structlog
from cachetools import LRUCache, TTLCache
from keepsake_client.cancellation import cancel_all
from keepsake_client.protocol import TRACE_FIELD, TRACES_STREAM, TraceRecord
from keepsake_client.turns import TURN_FIELD, TURNS_STREAM
from pydantic import BaseModel, ValidationError
from redis.exceptions import RedisError, ResponseError

from services.gateway.app import Gateway
from services.gateway.console.figures import WINDOW_S, Figures, figures_of
from services.gateway.console.passed import ERASING, Passed
from services.gateway.visibility import Visibility
from services.runtime.id_matcher import decoded
from services.runtime.stack_metrics import StackFigures, StackReader

POLL_S: Final = 1.0
#: The state of the stack is read, and the figures are computed, at every so many polls.
FIGURES_EVERY: Final = 5
#: Without a viewer, what was read is dropped after so long, and with the next one read anew.
IDLE_S: Final = 30.0
#: What may have been deleted is read anew once in so long: of a program that deletes one memory after the other.
RENEW_S: Final = 10.0
#: Rows that are kept, of 1 kB each.
MAX_PASSED: Final = 20_000
#: Records that one command reads; those of turns may have 64 kB each.
PAGE: Final = 250
PAGE_OF_TURNS: Final = 50
#: Of the turn records that there are at first, the newest are read.
MAX_TURNS_LOADED: Final = 2_000
#: Characters of a text that a row has.
MAX_WORDS: Final = 160

_PAGES: Final = ((TRACES_STREAM, PAGE), (TURNS_STREAM, PAGE_OF_TURNS))
#: What a turn record may name a row by: its kind, its user, and an id.
Key = tuple[str, str, str]
#: `words` and `reply` of a row.
Texts = tuple[str | None, str | None]
#: Is told the rows that are new or were completed, oldest first.
Watcher = Callable[[list[Passed]], None]

log = structlog.get_logger()


class LiveFeed:
    """What passes now, and what has passed within the last hour.

    It reads only while there are viewers, each record once. Where Redis does not answer, it says so and goes on.

    Args:
        gateway: whose Redis is read.
        clock: seconds since 1970.
    """

    def __init__(self, gateway: Gateway, clock: Callable[[], float] = time.time) -> None:
        self._gateway = gateway
        self._redis: Any = gateway.redis
        self._clock = clock
        self._reader = StackReader(gateway.settings, gateway.redis)
        self._watchers: set[Watcher] = set()
        self._task: asyncio.Task[None] | None = None
        self._figures: TTLCache[Visibility, Figures] = TTLCache(100, POLL_S * FIGURES_EVERY)
        #: How often it has read everything: at first, and after something was erased.
        self.loads, self._loaded_at = 0, 0.0
        self._clear()

    def _clear(self) -> None:
        self.is_loaded, self._is_stale = False, False
        self.failure: Exception | None = None
        #: Why there are no texts, where the stream of turns cannot be read.
        self.texts_failure: Exception | None = None
        self.stack: StackFigures | None = None
        self._passed: deque[Passed] = deque()
        self._by_id: dict[Key, Passed] = {}
        self._texts: LRUCache[Key, Texts] = LRUCache(MAX_PASSED)
        self._last = {TRACES_STREAM: "", TURNS_STREAM: ""}
        self._since = self._clock()

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Have a watcher called after each poll, on the running loop.

        Returns:
            Ends it.
        """
        self._watchers.add(watcher)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        return lambda: self._watchers.discard(watcher)

    async def close(self) -> None:
        """End the reading."""
        if self._task is not None:
            await cancel_all([self._task])

    def newest(self) -> Iterator[Passed]:
        """The rows, newest first."""
        return reversed(self._passed)

    def figures(self, visible: Visibility) -> Figures:
        """The figures of what a caller sees; they are computed anew every few seconds."""
        if (known := self._figures.get(visible)) is None:
            seen = (row for row in self._passed if visible.sees_all or visible.sees(row.user))
            known = self._figures[visible] = figures_of(seen, self._clock(), self._since)
        return known

    async def _run(self) -> None:
        idle_s, polls = 0.0, 0
        while self._watchers or idle_s < IDLE_S:
            if self._watchers:
                idle_s = 0.0
                await self._tick(polls % FIGURES_EVERY == 0)
                polls += 1
            else:
                idle_s += POLL_S
            await asyncio.sleep(POLL_S)
        self._clear()

    async def _tick(self, with_stack: bool) -> None:
        """One poll; a fault in it, or in a watcher, ends none of the others."""
        changed: list[Passed] = []
        try:
            changed = await self.poll()
            if with_stack:
                self.stack = await self._reader.read()
        except (RedisError, OSError) as error:
            self.failure = error
        except Exception as error:
            log.exception("console_failed", page="live")
            self._gateway.counts.count("gateway_failed")
            self.failure = error
        for watcher in tuple(self._watchers):
            try:
                watcher(changed)
            except Exception:
                log.exception("console_failed", page="live")
                self._gateway.counts.count("gateway_failed")
                self._watchers.discard(watcher)

    async def poll(self) -> list[Passed]:
        """Read what came since the last poll; at first, the last hour.

        Returns:
            The rows that are new or were completed, oldest first.

        Raises:
            RedisError, OSError: Redis does not answer, or does not permit reading the traces.
        """
        changed = await self._poll() if self.is_loaded else []
        # Of a user who is forgotten, it is not known who it was: what is still recorded is read anew.
        self._is_stale |= any(row.type in ERASING for row in changed)
        is_forgotten = any(row.type == "user_forget" for row in changed)
        if is_forgotten or (self._is_stale and self._clock() - self._loaded_at >= RENEW_S):
            self.is_loaded = False
        if not self.is_loaded:
            self._clear()  # of a reading that Redis has broken off, too
            changed = await self._load()
            self.loads, self._loaded_at = self.loads + 1, self._clock()
        self.is_loaded, self.failure = True, None
        horizon = self._clock() - WINDOW_S
        while self._passed and (len(self._passed) > MAX_PASSED or self._passed[0].at < horizon):
            self._forget(self._passed.popleft())
        return changed

    async def _poll(self) -> list[Passed]:
        changed: dict[str, Passed] = {}
        while True:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for stream, page in _PAGES:
                    last = self._last[stream]
                    pipeline.xrange(stream, min=f"({last}" if last else "-", count=page)
                traces, turns = await pipeline.execute(raise_on_error=False)
            changed |= {row.entry_id: row for row in (*self._add_turns(turns), *self._add_traces(traces))}
            if len(traces) < PAGE and (isinstance(turns, Exception) or len(turns) < PAGE_OF_TURNS):
                return sorted(changed.values(), key=_order)

    async def _load(self) -> list[Passed]:
        """The rows of the last hour, as many as are kept."""
        try:
            for page in await self._last_hour(TURNS_STREAM, PAGE_OF_TURNS, MAX_TURNS_LOADED):
                self._add_turns(page)
                await asyncio.sleep(0)  # others have their turn
        except ResponseError as error:  # such as of a missing permission
            self.texts_failure = error
        pages = await self._last_hour(TRACES_STREAM, PAGE, MAX_PASSED)
        for page in pages:
            self._add_traces(page)
            await asyncio.sleep(0)
        self._since = await self._known_since(sum(map(len, pages)) >= MAX_PASSED)
        return list(self._passed)

    async def _known_since(self, is_cut: bool) -> float:
        """Since when all that passed is known: for an hour, or since the oldest record that there is."""
        horizon = self._clock() - WINDOW_S
        if is_cut and self._passed:
            return self._passed[0].at
        oldest = await self._redis.xrange(TRACES_STREAM, count=1)
        return max(horizon, int(oldest[0][0].partition(b"-")[0]) / 1000) if oldest else horizon

    async def _last_hour(self, stream: str, page: int, most: int) -> list[Any]:
        """The pages of a stream of the last hour, oldest first, of `most` entries or a page more."""
        horizon = max(0, int((self._clock() - WINDOW_S) * 1000))
        found: list[Any] = []
        end = "+"
        while end and len(found) * page < most:
            entries = await self._redis.xrevrange(stream, max=end, min=horizon, count=page)
            found.append(entries[::-1])
            end = f"({entries[-1][0].decode()}" if len(entries) == page else ""
        return found[::-1]

    def _add_traces(self, entries: Any) -> Iterator[Passed]:
        """Add rows.

        Raises:
            RedisError: `entries` is one.
        """
        if isinstance(entries, Exception):
            raise entries
        added = []
        for entry_id, fields in entries:
            self._last[TRACES_STREAM] = entry_id.decode()
            try:
                record = TraceRecord.model_validate(decoded(fields.get(TRACE_FIELD.encode(), b"")))
            except ValidationError:
                continue  # of a later version
            row = Passed.of(self._last[TRACES_STREAM], record)
            self._passed.append(row)
            if row.kind == "reply" and row.request_id:
                row.show_search(self._by_id.get(("search", row.user, row.request_id)))
            for key in _keys(row):
                self._by_id[key] = row
                if key in self._texts:
                    row.words, row.reply = self._texts[key]
            added.append(row)
        return iter(added)

    def _add_turns(self, entries: Any) -> Iterator[Passed]:
        """Keep the texts of turn records, and complete the rows that they belong to."""
        self.texts_failure = entries if isinstance(entries, ResponseError) else None
        if isinstance(entries, Exception):
            return iter(())
        completed = []
        for entry_id, fields in entries:
            self._last[TURNS_STREAM] = entry_id.decode()
            try:
                record = _Texts.model_validate(decoded(fields.get(TURN_FIELD.encode(), b"")))
            except ValidationError:
                continue
            for key, texts in _texts_of(record):
                self._texts[key] = texts
                if (row := self._by_id.get(key)) is not None:
                    row.words, row.reply = texts
                    completed.append(row)
        return iter(completed)

    def _forget(self, row: Passed) -> None:
        for key in _keys(row):
            if self._by_id.get(key) is row:
                del self._by_id[key]


class _Texts(BaseModel):
    """What a row has of a turn record; of candidates and prompt, which are most of it, no objects are made."""

    kind: str
    user: str = ""
    message_id: str | None = None
    request_id: str | None = None
    query: str | None = None
    text: str | None = None
    reply: str | None = None
    reply_message_id: str | None = None


def _order(row: Passed) -> tuple[int, int]:
    milliseconds, _, number = row.entry_id.partition("-")
    return int(milliseconds), int(number)


def _keys(row: Passed) -> list[Key]:
    """What a turn record may name a row by."""
    ids = {"search": (row.request_id,), "message": (row.message_id,), "reply": (row.message_id, row.request_id)}
    return [(row.kind, row.user, value) for value in ids.get(row.kind, ()) if value]


def _texts_of(record: _Texts) -> Iterator[tuple[Key, Texts]]:
    """The texts of a record, with what it names the rows by that have them."""
    query, text, reply = _beginning(record.query), _beginning(record.text), _beginning(record.reply)
    if record.kind == "search":
        found: list[tuple[str, str | None, Texts]] = [("search", record.request_id, (query, None))]
    else:
        found = [("reply", value, (text, reply)) for value in (record.message_id, record.request_id)]
        found.append(("message", record.message_id, (text, None)))
        found.append(("message", record.reply_message_id, (reply, None)))
    return (((kind, record.user, value), texts) for kind, value, texts in found if value)


def _beginning(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]}…"
