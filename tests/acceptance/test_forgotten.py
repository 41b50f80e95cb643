"""A user who is forgotten: a marker that came in by every door is nowhere afterwards, and does not come back."""

from __future__ import annotations

import json
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from keepsake_client import Client
from keepsake_client.protocol import conversation_key, encode_user_id

from services.long_term_memory.embeddings.providers import DIMENSIONS
from services.long_term_memory.known_profile import NewSlot, write_slots
from services.long_term_memory.postgres.facts import NewFact, insert_facts
from services.long_term_memory.postgres.scope import Owner
from services.runtime.queues import QueueKeys
from tests.acceptance.conftest import Stack, Up
from tests.ltm_command import run_ltm
from tests.support import wait_until

USER, OTHER = "anna 安娜", "ben"
MARKER = "xylophone7319"
#: In the publisher's ids of messages, which the log has on purpose.
ID = "id7319"
WITHIN_S = 180.0


class Site:
    """A running stack, seen by its clients, with its servers looked into."""

    def __init__(self, stack: Stack, place: Path) -> None:
        self.stack = stack
        self.redis: Any = redis.Redis.from_url(stack.redis_url)
        self.client = Client(stack.redis_url)
        self.place = place

    def ltm(self, *arguments: str, stdin: str | None = None) -> Any:
        return run_ltm(*arguments, stdin=stdin, REDIS_URL=self.stack.redis_url, DATABASE_URL=self.stack.database_url)

    def in_redis(self) -> list[str]:
        """The keys that hold the marker, of whatever type."""
        read = {
            b"string": self.redis.get,
            b"list": lambda key: self.redis.lrange(key, 0, -1),
            b"hash": self.redis.hgetall,
            b"set": self.redis.smembers,
            b"zset": lambda key: self.redis.zrange(key, 0, -1),
            b"stream": self.redis.xrange,
            b"none": lambda key: None,
        }
        keys = self.redis.scan_iter()
        held = ((key.decode(), f"{key} {read[self.redis.type(key)](key)}") for key in keys)
        return [key for key, text in held if MARKER in text or ID in text]

    def in_postgres(self) -> list[str]:
        """The tables that hold the marker."""
        with psycopg.connect(self.stack.database_url) as connection:
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            return [
                table
                for (table,) in tables
                if any(MARKER in row for (row,) in connection.execute(f"SELECT t::text FROM {table} t"))
            ]

    def in_logs(self) -> list[str]:
        """The files of the stack that hold the marker, but for those of its servers' data."""
        files = (path for path in self.place.rglob("*") if path.is_file() and "postgres" not in path.parts)
        return [
            str(path) for path in files if "valkey" not in path.parts and MARKER in path.read_text(errors="replace")
        ]

    def memories(self, user: str) -> int:
        with psycopg.connect(self.stack.database_url) as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM memories JOIN users ON users.number = user_number WHERE user_id = %s",
                (conversation_key(user).removeprefix("memory:conversation:"),),
            ).fetchone() or (0,)
        return int(count)

    def counter(self, name: str) -> int:
        return int(self.redis.hget("ltm:counters", name) or 0)

    def quiet(self) -> bool:
        """Whether everything that was published is dispatched and done."""
        (group,) = self.redis.xinfo_groups("memory_updates:log")
        return not (group["pending"] or group["lag"] or self.redis.hlen(QueueKeys("index").messages))

    def replies(self) -> int:
        """How many replies of the AI were published."""
        entries = self.redis.xrange("memory_updates:log")
        return sum(json.loads(fields[b"event"])["source"] == "ai" for _, fields in entries)


@pytest.fixture
def site(up: Up, place: Path) -> Iterator[Site]:
    stack = up()
    site = Site(stack, place)
    with site.client:
        yield site
    site.redis.close()
    assert stack.end(signal.SIGTERM) == 0


def event(user: str, content: str, **fields: Any) -> dict[str, Any]:
    return {"user_id": user, "content": content, "source": "user", "timestamp": time.time() - 5, **fields}


def say_everything(site: Site, user: str) -> list[dict[str, Any]]:
    """Bring the marker in by every door; the events among it."""
    meta, events = {"note": MARKER, "session_id": MARKER}, []
    for number in range(3):
        events.append(event(user, f"{MARKER} on the channel {number}", meta=meta, message_id=f"{ID}-{number}"))
        events.append(event(user, f"{MARKER} without an id {number}", agent_id=MARKER, speaker={"name": MARKER}))
    for each in events:
        site.redis.publish("memory_updates", json.dumps(each))
    site.client.remember(user, f"{MARKER} in the stream", message_id=f"{ID}-stream", meta=meta)
    site.client.remember(user, f"{MARKER} with a time", session=MARKER, timestamp="2024-05-06 10:00")
    inputs = {"user_id": user, "content": f"My {MARKER} is in the cellar.", "meta": meta, "task_id": ID}
    site.redis.lpush("user_input_queue", json.dumps(inputs))
    site.redis.publish("ai_responses", json.dumps({"user_id": user, "text": f"a reply with {MARKER}"}))
    site.client.add(user, f"{MARKER} added", metadata=meta, deadline_ms=60_000)
    site.client.profile_update(user, {"instrument": MARKER}, deadline_ms=60_000)
    site.client.search(user, f"Where is my {MARKER}?", deadline_ms=60_000)
    record = {"kind": "memory", "content": f"{MARKER} imported", "source": "user", "timestamp": 1_700_000_000}
    site.client.user_import(user, [record], deadline_ms=60_000)
    # What cannot be read, whole and cut off; and what failed for good.
    for bad in ({"contents": MARKER}, {"contents": f"{MARKER} {'x' * 3_000}"}):
        site.redis.publish("memory_updates", json.dumps({**bad, "user_id": user}))
    site.redis.publish("memory_updates", json.dumps(event(user, MARKER))[:-2])
    return events


def find_facts(site: Site, user: str) -> None:
    """Store facts of what the user said, one of them superseded, a slot, and a reason, as extraction does."""
    owner = Owner(encode_user_id(user))
    with psycopg.connect(site.stack.database_url) as database:
        row = database.execute(
            "SELECT m.number, m.id::text FROM memories m JOIN users u ON u.number = user_number"
            " WHERE user_id = %s AND agent_id = '' AND kind = 'message' LIMIT 1",
            (owner.user,),
        ).fetchone()
        assert row is not None
        number, memory_id = row
        for place in range(2):
            insert_facts(database, owner, [fact(f"{MARKER} is a fact {place}", [number], superseded(database, place))])
        write_slots(database, owner, [NewSlot("likes", MARKER, [memory_id], time.time())])
        database.execute(
            "INSERT INTO to_extract (memory_number, user_number, tokens, from_user, set_aside)"
            " SELECT number, user_number, 1, true, %s FROM memories WHERE number = %s",
            (f"{MARKER} is no JSON", number),
        )


def superseded(database: psycopg.Connection[Any], place: int) -> list[int]:
    """The number of the first fact, for the second."""
    rows = database.execute("SELECT number FROM memories WHERE content = %s", (f"{MARKER} is a fact {place - 1}",))
    return [number for (number,) in rows.fetchall()]


def fact(content: str, evidence: list[int], replaces: list[int]) -> NewFact:
    return NewFact(
        id=str(uuid.uuid4()),
        content=content,
        vector=[1.0] * DIMENSIONS,
        kind="state",
        about=MARKER,
        when=None,
        said_at=time.time(),
        source="user",
        session_id=MARKER,
        speaker=None,
        evidence=evidence,
        replaces=replaces,
    )


def put_dead_letter(site: Site, user: str) -> bytes:
    keys = QueueKeys("index")
    update = {**event(user, f"{MARKER} failed"), "meta": {}, "message_id": None, "arrived_at": time.time() - 1}
    body = json.dumps(
        {
            "queue_name": "index",
            "actor_name": "memory.index",
            "args": [],
            "kwargs": {"update": {**update, "validated": True}},
            "options": {"redis_message_id": "dead-1", "traceback": MARKER},
            "message_id": "dead-1",
            "message_timestamp": int(time.time() * 1000),
        }
    ).encode()
    site.redis.hset(keys.dead_messages, "dead-1", body)
    site.redis.zadd(keys.dead_ids, {"dead-1": time.time() * 1000})
    return body


def test_a_marker_that_came_in_by_every_door_is_nowhere_and_does_not_come_back(site: Site) -> None:
    """Given a user who said, added, asked and sent a marker by every door, I expect the forget to leave it in no key,
    no row and no log; the same events, a restored stream, conversation, dead letter and queue to bring nothing back;
    another user to keep everything; and what is said after to count."""
    events = say_everything(site, USER)
    site.client.remember(OTHER, "My piano is in the cellar.", message_id="other")
    wait_until(lambda: site.memories(USER) >= 12 and site.memories(OTHER) == 1, WITHIN_S, "the memories")
    wait_until(lambda: site.counter("rejected") >= 3, WITHIN_S, "the rejects")
    # To ten messages, one of them of the other user; and the one that another service published.
    wait_until(lambda: site.replies() == 11 and site.quiet(), WITHIN_S, "the chat service's replies")
    with psycopg.connect(site.stack.database_url) as connection:  # a correction
        connection.execute(
            "INSERT INTO memory_history (id, memory_id, old_memory, new_memory, event, is_deleted)"
            " SELECT gen_random_uuid(), id::text, content, %s, 'UPDATE', false FROM memories WHERE content LIKE %s",
            (f"{MARKER} corrected", f"{MARKER}%"),
        )
    find_facts(site, USER)
    letter = put_dead_letter(site, USER)
    places = set(site.in_redis())
    assert {
        "memory_updates:log",
        "ltm:rejected",
        "ltm:trace",
        "ltm:turns",
        conversation_key(USER),
        "dramatiq:index.XQ.msgs",
    } <= places
    assert {"memories", "memory_history", "profiles", "profile_history", "to_extract"} <= set(site.in_postgres())
    stream = [fields for _, fields in site.redis.xrange("memory_updates:log")]
    conversation = site.redis.lrange(conversation_key(USER), 0, -1)
    lost = site.counter("log_trimmed_unread")

    # The command counts, and deletes nothing without --yes where it cannot ask
    count = site.memories(USER)
    counted = site.ltm("forget", USER, "--everything", "--dry-run")
    assert f"{count} memories and everything else" in counted.stdout
    assert site.ltm("forget", USER, "--everything", stdin="n\n").returncode == 2
    assert site.memories(USER) == count
    forgotten = site.ltm("forget", USER, "--everything", "--yes")
    assert forgotten.returncode == 0, forgotten.stderr
    assert f"forgotten: {count} memories" in forgotten.stdout

    # Nowhere
    assert site.in_redis() == []
    assert site.in_postgres() == []
    assert site.in_logs() == []
    with psycopg.connect(site.stack.database_url) as connection:
        assert connection.execute("SELECT user_id FROM users WHERE user_id <> %s", (OTHER,)).fetchall() == []
    assert site.memories(OTHER) == 1
    assert site.counter("log_trimmed_unread") == lost

    # Not again: the events, the stream, the conversation, the dead letter, the queue
    for each in events:
        site.redis.publish("memory_updates", json.dumps(each))
    for fields in stream:
        site.redis.xadd("memory_updates:log", fields)
    site.redis.rpush(conversation_key(USER), *conversation)
    assert site.ltm("backfill", "--user", USER).returncode == 0
    keys = QueueKeys("index")
    site.redis.hset(keys.dead_messages, "dead-1", letter)
    site.redis.zadd(keys.dead_ids, {"dead-1": time.time() * 1000})
    assert site.ltm("dead", "replay", "--all").returncode == 0
    site.redis.hset(keys.messages, "dead-2", letter.replace(b"dead-1", b"dead-2"))
    site.redis.rpush(keys.ids, "dead-2")
    handed_over = [json.loads(raw) for raw in [*(fields[b"event"] for fields in stream), *conversation]]
    # Of the replies, those that remember nothing become no memory in any case.
    remembered = [each for each in handed_over if each["user_id"] == USER and each["meta"].get("remember") is not False]
    dropped = len(events) + len(remembered) + 2
    wait_until(lambda: site.counter("events_deleted") >= dropped and site.quiet(), WITHIN_S, "the dropped events")
    assert site.in_postgres() == []
    assert site.memories(USER) == 0
    assert site.client.search(USER, MARKER, min_score=0, deadline_ms=60_000) == []
    assert site.client.profile_get(USER, deadline_ms=60_000).user_profile == {}

    # After
    site.client.remember(USER, "My violin is in the attic.")
    wait_until(lambda: site.memories(USER) == 1, WITHIN_S, "what was said after")
