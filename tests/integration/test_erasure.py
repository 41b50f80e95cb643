"""Erasure of a user in Redis, on a real Valkey: everything of before goes, and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from keepsake_client.protocol import (
    COUNTERS,
    MEMBERSHIP_KEY,
    REJECTED_STREAM,
    TRACE_FIELD,
    TRACES_STREAM,
    UPDATES_STREAM,
    MemoryUpdateMessage,
    conversation_key,
    parse_request,
)
from keepsake_client.turns import TURN_FIELD, TURNS_STREAM

from adapters.stream import UpdateStream
from services.runtime.erasure import Erasure
from services.runtime.errors import ErasureRefused
from services.runtime.extraction_figures import EXTRACTION_KEY
from services.runtime.logging import user_id_hasher
from services.runtime.queues import QUEUES, QueueKeys, taken_list
from services.runtime.rejected import add_reject
from services.runtime.settings import Settings, load_settings
from services.runtime.turns import Turns
from tasks.broker import build_broker
from tasks.queues import index_message, request_message

#: Ids that JSON writes in more than one way, one that is a number, and one that is in the id of another.
USERS = ["anna", "用户 一", 'q"uote/d', "7", "*"]
MARKER = "xylophone"


@pytest.fixture
def client(valkey_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(valkey_url) as client:
        client.flushdb()
        yield client


@pytest.fixture
def settings(valkey_url: str) -> Settings:
    return load_settings(redis_url=valkey_url, ltm_manage_queue="ltm_requests:manage")


@pytest.fixture
def erasure(settings: Settings) -> Erasure:
    return Erasure.of(settings)


def event(user_id: str, content: str = MARKER, **fields: Any) -> str:
    return json.dumps({"user_id": user_id, "content": content, "source": "user", "timestamp": 1_700_000_000, **fields})


def request(user_id: str, kind: str, **data: Any) -> dict[str, Any]:
    return {"request_id": f"r-{kind}", "type": kind, "user_id": user_id, "data": data}


def everything(client: Any) -> str:
    """What is in every key, of whatever type, as text."""
    shown: list[Any] = []
    for key in client.scan_iter():
        read = {
            b"string": client.get,
            b"list": lambda key: client.lrange(key, 0, -1),
            b"hash": client.hgetall,
            b"set": client.smembers,
            b"zset": lambda key: client.zrange(key, 0, -1),
            b"stream": client.xrange,
        }
        shown.append((key, read[client.type(key)](key)))
    return str(shown)


def opened(client: Any, name: str = "adapter") -> UpdateStream:
    """The stream, as a consumer that has nothing pending."""
    stream = UpdateStream(client, UPDATES_STREAM, name, 1_000)
    stream.open()
    assert stream.read(10, None) == []
    return stream


def fill(client: Any, settings: Settings, user_id: str, at: float) -> None:
    """Put something of the user into every place there is."""
    group = opened(client, user_id)
    first = client.xadd(UPDATES_STREAM, {"event": event(user_id, message_id="m-read")})
    client.xadd(UPDATES_STREAM, {"event": event(user_id, message_id="m-pending")})
    group.read(2, None)
    group.ack([first])
    client.xadd(UPDATES_STREAM, {"event": event(user_id, message_id="m-unread")})
    client.xadd(
        UPDATES_STREAM, {"event": f'{{"user_id": {json.dumps(user_id, ensure_ascii=False)}, "content": "{MARKER}"}}'}
    )
    escaped = "".join(f"\\u{ord(character):04x}" for character in user_id)
    client.xadd(UPDATES_STREAM, {"event": f'{{"user_id": "{escaped}", "content": "{MARKER}"}}'})
    client.rpush(conversation_key(user_id), event(user_id, message_id="m-read"), event(user_id, message_id="m-other"))
    client.lpush("user_input_queue", json.dumps({"user_id": user_id, "content": MARKER}))
    client.lpush("user_input_queue:processing", json.dumps({"user_id": user_id, "content": MARKER}))
    client.zadd(MEMBERSHIP_KEY, {"some-adapter": at})
    for name in ("ltm_requests", taken_list("ltm_requests:manage", "some-adapter")):
        client.lpush(name, json.dumps({**request(user_id, "search", query=MARKER), "pushed_at": at - 1}))
    broker = build_broker(settings.redis_url.get_secret_value(), [])
    for queue in QUEUES:
        broker.declare_queue(queue)
    for number, delay in enumerate((None, None, 3_600_000)):
        update = MemoryUpdateMessage(user_id=user_id, content=MARKER, source="user", message_id=f"m-queued-{number}")
        broker.enqueue(index_message(update, at - 1), delay=delay)
        for kind, data in (("search", {"query": MARKER}), ("add", {"content": MARKER})):
            parsed = parse_request(json.dumps(request(user_id, kind, **data)).encode(), 1_000)
            broker.enqueue(request_message(parsed, at - 1), delay=delay)
    for queue in QUEUES:  # one of each is held by a worker, and one failed for good
        consumer = broker.consume(queue, prefetch=1, timeout=100)
        assert next(consumer) is not None
        keys = QueueKeys(queue)
        (_, body), *_ = client.hgetall(keys.messages).items()
        client.zadd(keys.dead_ids, {"dead": at * 1000})
        client.hset(keys.dead_messages, "dead", body)
    for raw in (event(user_id)[:-3], event(user_id, "x" * 5_000, agent_id=MARKER), f'{{"content": "{MARKER}'):
        add_reject(client, "memory_updates", "invalid_request: x", raw.encode())
    late = json.dumps({"content": f"{MARKER} {'x' * 5_000}", "contents": 1, "user_id": user_id})
    add_reject(client, "memory_updates", "invalid_request: x", late.encode())
    hashed = user_id_hasher(settings.model_copy(update={"ltm_log_user_ids": False}))
    for name in (user_id, hashed(user_id)):
        client.xadd(TRACES_STREAM, {TRACE_FIELD: json.dumps({"kind": "message", "user": name, "message_id": MARKER})})
        client.xadd(TURNS_STREAM, {TURN_FIELD: json.dumps({"kind": "reply", "at": at, "user": name, "text": MARKER})})


@pytest.mark.parametrize("user_id", USERS)
def test_nothing_of_the_user_is_in_any_key(client: Any, settings: Settings, erasure: Erasure, user_id: str) -> None:
    """Given a user with something in every place, I expect it in no key afterwards, and that of others everywhere."""
    fill(client, settings, user_id, time.time())
    nobodys = f'{{"content": "{MARKER}'  # a reject that does not say whose it is
    (kept,) = [entry for entry, fields in client.xrange(REJECTED_STREAM) if fields[b"message"] == nobodys.encode()]
    client.xdel(REJECTED_STREAM, kept)
    assert everything(client).count(MARKER) > 20

    erased = erasure.erase(user_id, time.time())

    assert MARKER not in everything(client)
    ids = {update.message_id for update in erased}
    assert {"m-read", "m-pending", "m-unread", "m-other", "m-queued-0", "m-queued-1", "m-queued-2"} <= ids
    assert {update.user_id for update in erased} == {user_id}


def test_the_figures_of_extraction_go(client: Any, erasure: Erasure) -> None:
    """Given figures that name the messages that were set aside, I expect them gone until they are published again."""
    client.set(EXTRACTION_KEY, '{"newest_set_aside": [{"user": "anna"}]}')

    erasure.erase("anna", time.time())

    assert not client.exists(EXTRACTION_KEY)


def test_what_is_of_others_stays(client: Any, settings: Settings, erasure: Erasure) -> None:
    """Given users whose ids hold the user's, and one who names the user, I expect every key as it was."""
    for other in ("anna lee", "annab", "Anna", " anna"):
        fill(client, settings, other, time.time())
    client.xadd(UPDATES_STREAM, {"event": event("ben", '{"user_id": "anna"}')})
    add_reject(client, "memory_updates", "x", event("ben", "anna" + "x" * 2_000).encode())
    before = everything(client)

    assert erasure.erase("anna", time.time()) == []
    assert everything(client) == before


def test_what_arrived_after_stays(client: Any, settings: Settings, erasure: Erasure) -> None:
    """Given something of the user in every place that came after the request to forget, I expect it to stay: said
    after, it counts."""
    at = time.time() - 5
    fill(client, settings, "anna", time.time() + 2)
    client.delete("user_input_queue", "user_input_queue:processing", conversation_key("anna"), TURNS_STREAM)
    client.rpush(conversation_key("anna"), event("anna", message_id="m-read"))  # dated before, and in the stream after
    client.lpush("user_input_queue", json.dumps({"user_id": "anna", "content": MARKER, "timestamp": time.time()}))
    client.lpush("ltm_requests", json.dumps(request("anna", "search", query="without a time")))
    before = everything(client)

    assert erasure.erase("anna", at) == []
    assert everything(client) == before


def test_a_turn_that_was_recorded_while_memories_were_deleted_goes(client: Any, erasure: Erasure) -> None:
    """Given a record of a search that found memories after the request to forget, I expect it to go with them."""
    client.xadd(TURNS_STREAM, {TURN_FIELD: json.dumps({"kind": "search", "user": "anna", "query": MARKER})})

    erasure.erase("anna", time.time() - 60)

    assert MARKER not in everything(client)


@pytest.mark.parametrize("hashed", [False, True])
def test_the_search_of_another_that_asked_for_the_user_as_well_goes(
    client: Any, settings: Settings, erasure: Erasure, hashed: bool
) -> None:
    """Given a record of another user's search, with memories of the user among its candidates, I expect it to go."""
    turns = Turns(10, contents=True, user=user_id_hasher(settings.model_copy(update={"ltm_log_user_ids": not hashed})))
    for also in (["zoe", "anna"], ["annab"]):
        data = {"query": f"{MARKER} {also[-1]}", "also": also}
        record = turns.search({**request("ben", "search"), "data": data}, None)
        client.xadd(TURNS_STREAM, {TURN_FIELD: record})

    erasure.erase("anna", time.time())

    (left,) = [json.loads(fields[TURN_FIELD.encode()]) for _, fields in client.xrange(TURNS_STREAM)]
    assert left["query"] == f"{MARKER} annab"


def test_the_reply_of_another_that_was_made_of_the_user_s_memories_goes(client: Any, erasure: Erasure) -> None:
    """Given another user's reply to a search for the user's memories as well, and replies of that and a third user to
    other searches, one of them of the same id, I expect the first alone to go."""
    records: list[dict[str, Any]] = [
        {"kind": "search", "user": "ben", "request_id": "r1", "options": {"also": ["anna"]}},
        {"kind": "search", "user": "ben", "options": {"also": ["anna"]}},
        {"kind": "reply", "user": "ben", "request_id": "r1", "prompt": [{"role": "system", "content": MARKER}]},
        {"kind": "reply", "user": "ben", "request_id": "r2", "reply": "stays"},
        {"kind": "reply", "user": "ben", "reply": "stays"},
        {"kind": "reply", "user": "cleo", "request_id": "r1", "reply": "stays"},
    ]
    for record in records:
        client.xadd(TURNS_STREAM, {TURN_FIELD: json.dumps(record)})

    erasure.erase("anna", time.time())

    left = [json.loads(fields[TURN_FIELD.encode()]) for _, fields in client.xrange(TURNS_STREAM)]
    assert left == records[3:]


@pytest.mark.parametrize("user_id", USERS)
def test_turns_of_which_memories_were_deleted_go_alone(
    client: Any, settings: Settings, erasure: Erasure, user_id: str
) -> None:
    """Given users with something in every place, I expect the turns of one to go, and nothing else."""
    fill(client, settings, user_id, time.time())
    fill(client, settings, "ben", time.time())
    kept = {key: client.dump(key) for key in client.scan_iter() if key != TURNS_STREAM.encode()}
    hashed = user_id_hasher(settings.model_copy(update={"ltm_log_user_ids": False}))

    erasure.erase_turns(user_id)

    turns = [json.loads(fields[TURN_FIELD.encode()]) for _, fields in client.xrange(TURNS_STREAM)]
    assert [turn["user"] for turn in turns] == ["ben", hashed("ben")]
    assert {key: client.dump(key) for key in kept} == kept


def test_turns_that_redis_does_not_permit_to_be_erased_are_counted(client: Any, valkey_url: str) -> None:
    """Given access rules of before there were turns, I expect a count, and no error: the memories are deleted."""
    client.execute_command("ACL", "SETUSER", "no-turns", "on", ">x", "~*", "&*", "+@all", "-xrange")
    try:
        limited = load_settings(redis_url=valkey_url.replace("//", "//no-turns:x@"))
        Erasure.of(limited).erase_turns("anna")
    finally:
        client.execute_command("ACL", "DELUSER", "no-turns")

    assert client.hget(COUNTERS, "turns_not_erased") == b"1"


def test_an_entry_that_was_heard_before_and_written_after_goes(client: Any, erasure: Erasure) -> None:
    """Given an event that an adapter kept while Redis refused writes, I expect the time of its hearing to hold."""
    stream = opened(client)
    at = time.time() - 5
    update = MemoryUpdateMessage(user_id="anna", content=MARKER, source="user")
    stream.append(update, b"raw", at - 1)
    stream.append(update, b"raw", at + 1)

    assert len(erasure.erase("anna", at)) == 1
    (entry,) = stream.read(10, None)
    assert entry.arrived_at == pytest.approx(at + 1)


def test_the_requests_that_waited_are_answered(client: Any, settings: Settings, erasure: Erasure) -> None:
    """Given requests of the user that no worker has taken, I expect each to be answered as of a user without anything,
    and the one that a worker holds, and the request to forget, to be left to them."""
    broker = build_broker(settings.redis_url.get_secret_value(), [])
    at = time.time()
    for kind, data in (("search", {"query": "x"}), ("profile_get", {}), ("user_forget", {})):
        broker.declare_queue("interactive")
        broker.declare_queue("writes")
        broker.enqueue(request_message(parse_request(json.dumps(request("anna", kind, **data)).encode(), 100), at - 1))
    assert next(broker.consume("interactive", prefetch=1, timeout=100)) is not None  # a worker holds it, and answers
    held = parse_request(json.dumps(request("anna", "memory_get", id="x")).encode(), 100)
    broker.enqueue(request_message(held, at - 1))
    client.lpush("ltm_requests", json.dumps({**request("anna", "add", content="x"), "pushed_at": at - 1}))
    listener = client.pubsub()
    listener.subscribe("ltm_responses")
    listener.get_message(timeout=5)

    erasure.erase("anna", at)

    answers = [json.loads(listener.get_message(timeout=5)["data"]) for _ in range(3)]
    assert listener.get_message(timeout=0.01) is None
    by_id = {answer["request_id"]: answer for answer in answers}
    assert set(by_id) == {"r-memory_get", "r-profile_get", "r-add"}
    assert all(answer["success"] and not answer["memories"] for answer in answers)
    assert by_id["r-profile_get"]["profile_version"] == 0
    assert client.llen("dramatiq:writes") == 1  # the request itself


def test_entries_of_a_forgotten_user_do_not_count_as_lost(client: Any, erasure: Erasure) -> None:
    """Given read, pending and unread entries of the user between those of others, I expect none to count as trimmed,
    the others to be read, and a trim after that to be counted."""
    stream = opened(client)
    for n in range(12):
        client.xadd(UPDATES_STREAM, {"event": event("anna" if n % 2 else "ben", f"number {n}")})
    stream.ack([entry.id for entry in stream.read(4, None)])
    stream.read(4, None)  # pending

    erasure.erase("anna", time.time())
    client.xtrim(UPDATES_STREAM, maxlen=2, approximate=False)  # what was read
    other = opened(client, "other")
    other.count_trimmed()
    assert client.hget(COUNTERS, "log_trimmed_unread") is None

    texts = [json.loads(entry.event)["content"] for entry in other.read(10, None)]
    assert texts == ["number 8", "number 10"]
    other.count_trimmed()
    assert client.hget(COUNTERS, "log_trimmed_unread") is None

    for n in range(6):
        client.xadd(UPDATES_STREAM, {"event": event("ben", f"later {n}")})
        if n == 0:
            other.read(10, None)
    client.xtrim(UPDATES_STREAM, maxlen=2, approximate=False)
    other.count_trimmed()
    assert client.hget(COUNTERS, "log_trimmed_unread") == b"3"


def test_the_only_user_of_a_stream(client: Any, erasure: Erasure) -> None:
    """Given a stream with entries of one user alone, read and unread, I expect none to count as lost, and what is said
    after to be read."""
    stream = opened(client)
    for n in range(6):
        client.xadd(UPDATES_STREAM, {"event": event("anna", f"number {n}")})
    stream.read(3, None)

    erasure.erase("anna", time.time())
    stream.rewind()
    stream.count_trimmed()
    client.xadd(UPDATES_STREAM, {"event": event("anna", "after")})
    assert stream.read(10, None) == []  # nothing is pending
    assert [json.loads(entry.event)["content"] for entry in stream.read(10, None)] == ["after"]
    stream.count_trimmed()
    assert client.hget(COUNTERS, "log_trimmed_unread") is None
    assert stream.backlog() == 1


def test_the_anonymous_user(client: Any, erasure: Erasure) -> None:
    """Given messages without a user_id, I expect them to be those of the anonymous user."""
    client.xadd(UPDATES_STREAM, {"event": json.dumps({"content": MARKER, "source": "user"})})
    client.xadd(UPDATES_STREAM, {"event": json.dumps({"user_id": None, "content": MARKER, "source": "user"})})
    add_reject(client, "memory_updates", "x", json.dumps({"contents": MARKER}).encode())

    assert len(erasure.erase("anonymous", time.time())) == 2
    assert MARKER not in everything(client)


def test_queues_on_rabbitmq_are_left_to_the_insertion(client: Any, valkey_url: str) -> None:
    """Given workers' queues that are not on Redis, I expect all else to be erased."""
    client.xadd(UPDATES_STREAM, {"event": event("anna")})
    client.hset("dramatiq:index.msgs", "of another program", "x")
    elsewhere = load_settings(redis_url=valkey_url, broker_url="amqp://127.0.0.1:1")

    assert len(Erasure.of(elsewhere).erase("anna", time.time())) == 1
    assert client.xlen(UPDATES_STREAM) == 0


def test_what_redis_does_not_permit_is_said(client: Any, valkey_url: str) -> None:
    """Given access rules without the right to the stream, I expect an error that names it."""
    client.execute_command("ACL", "SETUSER", "no-stream", "on", ">x", "~*", "&*", "+@all", "-xrange")
    try:
        limited = load_settings(redis_url=valkey_url.replace("//", "//no-stream:x@"))
        with pytest.raises(ErasureRefused, match="memory_updates:log"):
            Erasure.of(limited).erase("anna", time.time())
    finally:
        client.execute_command("ACL", "DELUSER", "no-stream")
