"""Deletions take effect in the order in which they were asked for: real adapters, workers and servers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from keepsake_client import Client, RequestFailed
from keepsake_client.protocol import COUNTERS, UPDATES_STREAM, MemoryUpdateMessage, conversation_key

from services.cli.backfill import Backfill, Counts
from services.runtime.dead_letters import RedisDeadLetters
from services.runtime.queues import INDEX_QUEUE, QueueKeys
from services.runtime.settings import load_settings
from services.stack.readiness import stream_backlog
from tests.integration.worker_process import Servers, servers
from tests.support import wait_until

LONG_MS = 120_000


@pytest.fixture
def site(database: str) -> Iterator[Servers]:
    with servers(database_url=database) as running:
        running.environment["LTM_INDEX_WINDOW"] = "1"
        yield running


def test_an_event_before_a_deletion_is_gone_and_one_after_it_is_kept(site: Servers) -> None:
    """Given events that wait, in the queue and in the stream, while a deletion is done and more is said, I expect those
    before it never to become memories: not when they are indexed, nor handed over again, nor replayed from the dead
    letters, nor written by a backfill."""
    site.adapters()
    site.worker("writer", "writes", "interactive")
    for worker in site.workers:
        worker.ready()
    keys, letters = QueueKeys(INDEX_QUEUE), RedisDeadLetters(site.client)
    before = [f"tofu {number}" for number in range(4)]
    with Client(site.valkey.url, write_timeout_ms=LONG_MS) as client:
        # Given a dead letter, and events of which the queue has one and the stream the others
        dead = client.remember("u1", "tofu that failed", message_id="dead")
        wait_until(lambda: site.client.llen(keys.ids), description="the first to be dispatched")
        [broker_id] = [str(key, "utf-8") for key in site.client.lrange(keys.ids, 0, -1) if isinstance(key, bytes)]
        body = site.client.hget(keys.messages, broker_id)
        site.client.hset(keys.dead_messages, broker_id, body)
        site.client.zadd(keys.dead_ids, {broker_id: time.time() * 1000})
        site.client.lrem(keys.ids, 1, broker_id)
        site.client.hdel(keys.messages, broker_id)
        for content in before:
            client.remember("u1", content, message_id=content)
        client.remember("u1", "tea")
        client.remember("u2", "tofu of another user")
        wait_until(lambda: site.client.llen(keys.ids), description="one to be dispatched")
        assert stream_backlog(site.client, UPDATES_STREAM) >= 4

        # When they are deleted, and more is said
        assert client.memory_delete("u1", filters={"contains": "TOFU"}).count == 0
        client.remember("u1", "tofu after")
        site.worker("indexer", "index").ready()
        expected = sorted(["tea", "tofu after", "tofu of another user"])
        wait_until(lambda: site.indexed() == expected and _deleted(site) == 4, description="the events to be indexed")

        # And the events come again
        for content in before:
            client.remember("u1", content, message_id=content)
        wait_until(lambda: _deleted(site) == 8, description="the events to be refused again")
        [letter] = letters.all(INDEX_QUEUE)
        assert letters.replay(letter)
        wait_until(lambda: _deleted(site) == 9, description="the dead letter to be refused")
        for message_id, content in (*zip(before, before, strict=True), (dead, "tofu that failed")):
            message = MemoryUpdateMessage(user_id="u1", content=content, source="user", message_id=message_id)
            site.client.rpush(conversation_key("u1"), message.to_wire())
        backfill = Backfill(site.client, load_settings(redis_url=site.valkey.url))
        backfill.append(conversation_key("u1").encode(), 0, Counts())
        wait_until(lambda: _deleted(site) == 14, description="the backfill to be refused")

        # Then none has come back, and a memory that was indexed can be deleted as well
        assert site.indexed() == expected
        [after] = client.memory_list("u1", filters={"contains": "after"}).memories
        assert client.memory_delete("u1", ids=[after.id]).count == 1
        client.remember("u1", "tofu after", message_id=after.metadata["message_id"])
        wait_until(lambda: _deleted(site) == 15, description="it to be refused")
        with pytest.raises(RequestFailed, match="not_found"):
            client.memory_get("u1", after.id)
    assert site.indexed() == ["tea", "tofu of another user"]


def _deleted(site: Servers) -> int:
    return int(site.client.hget(COUNTERS, "events_deleted") or 0)


def test_the_requests_are_answered_over_the_wire(site: Servers) -> None:
    """Given each request with all its fields, I expect what the contract says, and each error by its code."""
    site.adapters()
    site.worker("worker", "writes", "interactive", "index")
    for worker in site.workers:
        worker.ready()
    with Client(site.valkey.url, write_timeout_ms=LONG_MS) as client:
        added = [client.add("u1", f"{n} Ärger", metadata={"n": n}).memories[0] for n in range(5)]

        pages = [[memory.content for memory in page] for page in client.memory_pages("u1", limit=2)]
        assert pages == [["4 Ärger", "3 Ärger"], ["2 Ärger", "1 Ärger"], ["0 Ärger"]]
        filters = {"contains": "ärger", "speaker": {"name": "Wei"}}
        assert client.memory_list("u1", filters=filters).memories == []
        corrected = client.memory_update("u1", added[0].id, content="Freude", metadata={"n": None, "m": 1}).memories[0]
        assert (corrected.content, corrected.metadata.get("n"), corrected.metadata["m"]) == ("Freude", None, 1)
        got = client.memory_get("u1", added[0].id)
        assert got.memories == [corrected]
        assert got.history is not None
        assert [change.new_content for change in got.history] == ["0 Ärger", "Freude"]
        assert client.memory_delete("u1", filters={"contains": "ärger"}, dry_run=True).count == 4
        assert client.memory_delete("u1", ids=[memory.id for memory in added[:3]]).count == 3
        assert [memory.content for memory in client.memory_list("u1").memories] == ["4 Ärger", "3 Ärger"]

        for request, data, error in (
            ("memory_list", {"cursor": "x"}, "invalid_request: data.cursor"),
            ("memory_list", {"filters": {"contian": "x"}}, "invalid_request: data.filters.contian"),
            ("memory_list", {"filters": {"contains": "x" * 501}}, "invalid_request: data.filters.contains"),
            ("memory_get", {"id": "no UUID"}, "not_found: "),
            ("memory_get", {}, "invalid_request: data.id"),
            ("memory_update", {"id": added[0].id}, "not_found|invalid_request"),
            ("memory_update", {"id": added[4].id, "content": "x" * 40_000}, "too_large: data.content"),
            ("memory_delete", {"filters": {}}, "invalid_request: "),
            ("memory_delete", {"ids": []}, "invalid_request: data.ids"),
            ("memory_delete", {"ids": ["x"], "filters": {"source": "ai"}}, "invalid_request: "),
        ):
            with pytest.raises(RequestFailed, match=error):
                client.request(request, "u1", json.loads(json.dumps(data)))  # type: ignore[arg-type]
