"""The workload of the benchmarks: searches and messages of made-up users, as events of a load."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from keepsake_client.protocol import MemoryUpdateMessage

from bench.harness.load import REQUEST, UPDATE, Event, Load, Result
from bench.harness.tables import progress_bar, track
from bench.harness.texts import TextGenerator

MONTH_S = 30 * 86_400
SESSION_MESSAGES = 25


def user_id(user: int) -> str:
    """The id of a made-up user."""
    return f"bench-user-{user}"


def search_event(due: float, user: int, query: str, deadline_ms: int | None) -> Event:
    """A search that wants its timings."""
    data = {"query": query, "limit": 5, "timings": True}
    if deadline_ms is not None:
        data["deadline_ms"] = deadline_ms
    request = {"request_id": f"req-{uuid.uuid4()}", "type": "search", "user_id": user_id(user), "data": data}
    return Event(due, REQUEST, json.dumps(request, ensure_ascii=False))


def message(user: int, number: int, text: str) -> dict[str, Any]:
    """An event of `memory_updates`, in the words of a foreign publisher."""
    return {
        "event_type": "message",
        "message_id": uuid.uuid4().hex,
        "user_id": user_id(user),
        "content": text,
        "source": "ai" if number % 2 else "user",
        "timestamp": time.time(),
        "meta": {"session_id": f"session-{number // SESSION_MESSAGES}"},
        "require_ai_response": False,
    }


def message_event(due: float, user: int, number: int, text: str) -> Event:
    """A message to publish."""
    return Event(due, UPDATE, json.dumps(message(user, number, text), ensure_ascii=False))


def backlog(size: int, users: int, texts: TextGenerator) -> list[str]:
    """Messages to publish all at once, as JSON."""
    numbers = track(range(size), "writing the backlog")
    return [json.dumps(message(n % users, n, texts.statement(n % users)), ensure_ascii=False) for n in numbers]


def past_messages(users: int, messages_per_user: int, texts: TextGenerator) -> list[MemoryUpdateMessage]:
    """The messages of every user over the last month: at most a thousand texts, in another order for each user."""
    pools = {
        language: list(dict.fromkeys(texts.statement(language) for _ in range(min(500, 4 * messages_per_user))))
        for language in (0, 1)
    }
    begin = time.time() - MONTH_S
    updates = []
    for user in range(users):
        pool = pools[user % 2]
        for place in range(messages_per_user):
            update = message(user, place, pool[(place * 7 + user * 13) % len(pool)])
            update["timestamp"] = begin + place * MONTH_S / messages_per_user
            updates.append(MemoryUpdateMessage.model_validate(update))
    return updates


def run_with_progress(load: Load, label: str, tick: Callable[[float], None] = lambda _: None) -> Result:
    """The result of a load, with a progress bar while it runs.

    Args:
        tick: called twice a second with the seconds since the beginning.
    """
    begun = time.monotonic()
    try:
        with progress_bar() as progress:
            task = progress.add_task(label, total=load.seconds)
            while load.running:
                time.sleep(0.5)
                progress.update(task, completed=time.monotonic() - begun)
                tick(time.monotonic() - begun)
    finally:
        if load.running:
            load.stop()
    return load.result()
