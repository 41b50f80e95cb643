"""Traces: what is recorded of a message, a request and a reply, that recording fails nothing, and what is found."""

from __future__ import annotations

import json
import time
from typing import Any

import dramatiq
import fakeredis
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from keepsake_client.errors import InvalidMessage, Unavailable
from keepsake_client.protocol import (
    MEMBERSHIP_KEY,
    REJECTED_STREAM,
    STREAM_GROUP,
    TRACE_FIELD,
    TRACES_STREAM,
    LTMRequest,
    MemoryUpdateMessage,
    TraceRecord,
    parse_request,
)
from structlog.testing import capture_logs

from adapters.ltm_responses import ResponsePublisher
from services.cli.output import Output
from services.cli.trace import _show
from services.runtime.queues import QueueKeys, taken_list
from services.runtime.settings import load_settings
from services.runtime.trace_reader import Trace, TraceReader, Waiting
from services.runtime.traces import Traces
from tasks.middleware.deliveries import DeliveryLimit
from tasks.queues import index_message, request_message

SECRET = "the user's own words"
UPDATE = MemoryUpdateMessage(user_id="anna", content=SECRET, source="user", timestamp=5, message_id="m1", task_id="t1")
SEARCH: dict[str, Any] = {"request_id": "r1", "type": "search", "user_id": "anna"}
TRACES = Traces(1_000, "some-worker")


@pytest.fixture
def client() -> Any:
    return fakeredis.FakeRedis()


def records(client: Any) -> list[TraceRecord]:
    return [TraceRecord.model_validate_json(fields[TRACE_FIELD.encode()]) for _, fields in client.xrange(TRACES_STREAM)]


def proxy(message: dramatiq.Message[Any], **options: Any) -> dramatiq.MessageProxy:
    return dramatiq.MessageProxy(message.copy(options={"redis_message_id": "x", **options}))


def index(
    client: Any,
    traces: Traces,
    error: BaseException | None = None,
    update: MemoryUpdateMessage = UPDATE,
    **options: Any,
) -> None:
    """What the middleware does around the actor that indexes."""
    message = proxy(index_message(update, arrived_at=6.5), **options)
    message.failed = options.get("retries", 0) > 2
    middleware = DeliveryLimit(client, traces)
    middleware.before_process_message(None, message)  # type: ignore[arg-type]  # it needs no broker
    middleware.after_process_message(None, message, exception=error)  # type: ignore[arg-type]


def answer(client: Any, traces: Traces, result: dict[str, Any] | None = None, error: Exception | None = None) -> None:
    """What the middleware does around the actor that searches."""
    data = {"query": SECRET, "deadline_ms": 600}
    request = parse_request(json.dumps({**SEARCH, "data": data, "pushed_at": 99.5}).encode(), 1_000)
    message = proxy(request_message(request, 100.0))
    message.failed = error is not None
    publisher = ResponsePublisher(client, "ltm_responses", traces)
    publisher.before_process_message(None, message)  # type: ignore[arg-type]
    publisher.after_process_message(None, message, result=result, exception=error)  # type: ignore[arg-type]


# What is recorded


def test_an_indexed_message_has_one_record(client: Any) -> None:
    """Given a message that was indexed, I expect its ids and the time of each stage, and no content."""
    began = time.time()

    index(client, TRACES)

    (record,) = records(client)
    assert (record.kind, record.process, record.user) == ("message", "some-worker", "anna")
    assert (record.message_id, record.task_id, record.outcome) == ("m1", "t1", "ok")
    assert list(record.times) == ["said", "logged", "dispatched", "started", "indexed"]
    assert (record.times["said"], record.times["logged"]) == (5, 6.5)
    assert began - 1 < record.times["dispatched"] <= record.times["started"] + 1
    assert SECRET not in str(client.xrange(TRACES_STREAM))


@pytest.mark.parametrize(("remember", "memories"), [(True, None), (False, 0)])
def test_a_reply_that_was_indexed_names_its_message(client: Any, remember: bool, memories: int | None) -> None:
    """Given the event of a reply, I expect what it answers in its record, and whether it became no memory."""
    meta = {"original_message_id": "m0", "remember": remember}

    index(client, TRACES, update=UPDATE.model_copy(update={"source": "ai", "meta": meta}))

    (record,) = records(client)
    assert (record.message_id, record.reply_to, record.memories) == ("m1", "m0", memories)


def test_what_is_too_long_for_an_id_is_in_no_record(client: Any) -> None:
    """Given an event that claims to answer a message whose id has half a million characters, I expect a record without
    it: the stream keeps thousands of them."""
    index(client, TRACES, update=UPDATE.model_copy(update={"meta": {"original_message_id": "m" * 500_000}}))

    (record,) = records(client)
    assert (record.message_id, record.reply_to) == ("m1", None)


def test_a_message_that_failed_for_good_has_one_record(client: Any) -> None:
    """Given a failed try that is retried, I expect no record; given the last one, its error's code and the tries."""
    index(client, TRACES, Unavailable(SECRET), retries=1)
    assert records(client) == []

    index(client, TRACES, Unavailable(SECRET), retries=3)

    (record,) = records(client)
    assert (record.outcome, record.tries, "failed" in record.times) == ("unavailable", 3, True)


def test_an_answered_search_has_one_record(client: Any) -> None:
    """Given a search, I expect the stages from its push to its answer, what each part took, and whether it was late."""
    answer(client, TRACES, {"memories": [], "partial": True, "stages": {"embed_ms": 12.34, "rank_ms": 0.5}})

    (record,) = records(client)
    assert (record.kind, record.type, record.request_id, record.outcome) == ("request", "search", "r1", "ok")
    assert list(record.times) == ["pushed", "taken", "queued", "started", "answered"]
    assert (record.times["pushed"], record.times["taken"], record.deadline_ms) == (99.5, 100.0, 600)
    assert (record.ms, record.partial, record.memories) == ({"embed_ms": 12.3, "rank_ms": 0.5}, True, 0)
    assert record.late_ms is not None  # it was pushed decades ago
    assert SECRET not in str(client.xrange(TRACES_STREAM))


@pytest.mark.parametrize(("answered", "late_ms"), [(100.1, None), (100.5, None), (100.75, 250)])
def test_an_answer_is_late_after_the_deadline(answered: float, late_ms: float | None) -> None:
    """Given an asker that waits 500 ms from its push on, I expect an answer after that to be late."""
    record = TraceRecord(kind="request", times={"pushed": 100.0, "taken": 100.4, "answered": answered}, deadline_ms=500)

    assert record.late_ms == late_ms


def test_an_answered_profile_request_has_no_number_of_memories(client: Any) -> None:
    """Given a change of a profile, I expect a record without a number of memories, which it does not look for."""
    request = LTMRequest(request_id="r1", type="profile_update", user_id="anna", data={"updates": {"a": SECRET}})
    message = proxy(request_message(request, 100.0))
    message.failed = False
    publisher = ResponsePublisher(client, "ltm_responses", TRACES)
    publisher.after_process_message(None, message, result={"profile": {"a": SECRET}, "version": 1})  # type: ignore[arg-type]

    (record,) = records(client)
    assert (record.type, record.outcome, record.memories) == ("profile_update", "ok", None)


def test_a_failed_request_has_its_code(client: Any) -> None:
    """Given a search that failed, and a request that an adapter refused, I expect a record with each error's code."""
    answer(client, TRACES, error=Unavailable("PostgreSQL does not answer"))
    ResponsePublisher(client, "ltm_responses", TRACES).refuse(
        "r2", "anna", InvalidMessage("data: " + SECRET), 100.0, repeat=False
    )

    assert [(record.request_id, record.outcome) for record in records(client)] == [
        ("r1", "unavailable"),
        ("r2", "invalid_request"),
    ]
    assert list(records(client)[1].times) == ["taken", "answered"]
    assert SECRET not in str(client.xrange(TRACES_STREAM))


def test_the_user_is_hashed_where_the_log_hashes_it(client: Any) -> None:
    """Given LTM_LOG_USER_IDS=false, I expect the same hash in every record of a user, and no user id."""
    traces = Traces.of(load_settings(ltm_log_user_ids=False, ltm_log_key="k"), "some-worker")
    index(client, traces)
    answer(client, traces, {"memories": []})

    users = {record.user for record in records(client)}
    assert len(users) == 1
    assert "anna" not in str(client.xrange(TRACES_STREAM))


def test_the_stream_of_traces_is_bounded(client: Any) -> None:
    """Given more records than LTM_TRACE_MAX_LEN, I expect about as many; Redis trims whole nodes of a hundred."""
    for _ in range(500):
        index(client, Traces(100, "some-worker"))

    assert client.xlen(TRACES_STREAM) <= 200


def test_without_traces_nothing_is_written(client: Any) -> None:
    """Given LTM_TRACE_MAX_LEN=0, I expect the answer, and no stream."""
    traces = Traces.of(load_settings(ltm_trace_max_len=0), "some-worker")
    index(client, traces)
    answer(client, traces, {"memories": []})

    assert client.keys() == [b"ltm:answered:" + client.keys()[0].rpartition(b":")[2]]


def test_a_trace_that_cannot_be_written_fails_nothing(client: Any) -> None:
    """Given a key of another type in place of the stream, I expect every answer published, and no error in the log."""
    client.set(TRACES_STREAM, "in the way")
    subscription = client.pubsub(ignore_subscribe_messages=True)
    subscription.subscribe("ltm_responses")
    subscription.get_message()

    with capture_logs() as lines:
        index(client, TRACES)
        answer(client, TRACES, {"memories": []})
        ResponsePublisher(client, "ltm_responses", TRACES).refuse(
            "r2", "anna", InvalidMessage("data"), 100.0, repeat=False
        )

    published = [json.loads(message["data"]) for _ in range(2) if (message := subscription.get_message())]
    assert [response["request_id"] for response in published] == ["r1", "r2"]
    assert [line["event"] for line in lines] == ["responded", "responded"]
    assert not client.exists("ltm:deliveries:x")


def test_a_message_that_no_adapter_has_validated_is_traced_too(client: Any) -> None:
    """Given messages put on a queue by hand, I expect what can be read of them, and no error."""
    for kwargs in ({}, {"update": [1]}, {"update": {"user_id": 7, "timestamp": "2024-04-05"}}):
        message = proxy(dramatiq.Message("index", "memory.index", (), kwargs, {}))
        DeliveryLimit(client, TRACES).after_process_message(None, message)  # type: ignore[arg-type]
    message = proxy(dramatiq.Message("interactive", "memory.search", (), {"request": {**SEARCH, "data": "x"}}, {}))
    ResponsePublisher(client, "ltm_responses", TRACES).after_process_message(None, message, result={})  # type: ignore[arg-type]

    assert [(record.kind, record.user) for record in records(client)] == [
        ("message", ""),
        ("message", ""),
        ("message", "7"),
        ("request", "anna"),
    ]


# What is found


def found(client: Any, identifier: str) -> Trace:
    return TraceReader(client, client, load_settings()).follow(identifier)


def test_one_id_leads_to_message_request_and_reply(client: Any) -> None:
    """Given the records of two turns, I expect each id of the first to lead to all of it alone."""
    for turn in ("1", "2"):
        for record in (
            TRACES.record("message", "anna", message_id=f"m{turn}", task_id=f"t{turn}", times={"indexed": 4.0}),
            TRACES.record("request", "anna", request_id=f"r{turn}", times={"pushed": 2.0}),
            TRACES.record("reply", "anna", message_id=f"m{turn}", request_id=f"r{turn}", task_id=f"t{turn}"),
        ):
            TRACES.add(client, record)

    for identifier in ("m1", "r1", "t1"):
        trace = found(client, identifier)
        assert sorted(record.kind for record in trace.records) == ["message", "reply", "request"]
        assert {record.message_id for record in trace.records} == {"m1", None}
        assert trace.waiting == []
    assert found(client, "m").records == []


def place(client: Any, broker: RedisBroker, where: str) -> None:
    """Put an event or request where it waits."""
    event, request = UPDATE.to_wire(), json.dumps(SEARCH)
    match where:
        case "input":
            client.lpush("user_input_queue", json.dumps({"task_id": "t1", "user_id": "anna", "content": SECRET}))
        case "list":
            client.lpush("ltm_requests", request)
        case "taken":
            client.zadd(MEMBERSHIP_KEY, {"a1": 1.0})
            client.lpush(taken_list("ltm_requests", "a1"), request)
        case "stream":
            client.xadd("memory_updates:log", {"event": event})
        case "prefetched" | "dispatched":
            entry = client.xadd("memory_updates:log", {"event": event})
            client.xgroup_create("memory_updates:log", STREAM_GROUP, id="0")
            client.xreadgroup(STREAM_GROUP, "a1", {"memory_updates:log": ">"})
            if where == "dispatched":
                client.xack("memory_updates:log", STREAM_GROUP, entry)
        case "queue":
            broker.enqueue(request_message(LTMRequest.model_validate(SEARCH), 1.0))
        case "running":
            broker.enqueue(index_message(UPDATE))
            broker.do_fetch("index", 1)
        case "delayed":
            broker.enqueue(index_message(UPDATE).copy(options={"retries": 2}), delay=60_000)
        case "dead":
            message = broker.enqueue(index_message(UPDATE).copy(options={"error": "internal: ValueError"}))
            broker.do_fetch("index", 1)
            broker.do_nack("index", message.options["redis_message_id"])
        case "rejected":
            entry = {"at": "memory_updates", "reason": "invalid_request: source", "message": event}
            client.xadd(REJECTED_STREAM, entry)


@pytest.mark.parametrize(
    ("where", "identifier", "expected", "state"),
    [
        ("input", "t1", "user_input_queue", "waits for the memory service"),
        ("list", "r1", "ltm_requests", "waits for an adapter"),
        ("taken", "r1", "ltm_requests:taken:a1", "was taken by adapter a1"),
        ("stream", "m1", "memory_updates:log", "waits to be read"),
        ("stream", "t1", "memory_updates:log", "waits to be read"),
        ("prefetched", "m1", "memory_updates:log", "was read by adapter a1"),
        ("dispatched", "m1", "memory_updates:log", "was dispatched"),
        ("queue", "r1", "queue interactive", "waits for a worker"),
        ("running", "m1", "queue index", "is being run by a worker"),
        ("delayed", "m1", "queue index", "failed 2 times, waits for its next try"),
        ("dead", "m1", "queue index", "is a dead letter, internal: ValueError"),
        ("rejected", "m1", "ltm:rejected", "was rejected from memory_updates: invalid_request: source"),
    ],
)
def test_what_has_not_ended_is_found_where_it_waits(
    client: Any, where: str, identifier: str, expected: str, state: str
) -> None:
    """Given an event or request that waits somewhere, I expect that place and since when, and no content."""
    broker = RedisBroker(client=client, middleware=[])
    for queue in ("interactive", "index"):
        broker.declare_queue(queue)
    place(client, broker, where)

    trace = found(client, identifier)

    (item,) = trace.waiting
    assert item.place == expected
    assert item.state.startswith(state)
    assert item.since is not None or where in ("input", "list", "taken")
    assert SECRET not in trace.model_dump_json()
    assert found(client, "m").waiting == [], "a part of an id is none"


def test_a_dispatched_message_is_shown_where_it_is_now(client: Any) -> None:
    """Given an entry of the stream that was dispatched, I expect its place in the queue alone, and then its record."""
    broker = RedisBroker(client=client, middleware=[])
    broker.declare_queue("index")
    place(client, broker, "dispatched")
    place(client, broker, "running")
    assert [item.place for item in found(client, "m1").waiting] == ["queue index"]

    client.delete(QueueKeys("index").messages)
    index(client, TRACES)

    trace = found(client, "m1")

    assert ([record.kind for record in trace.records], trace.waiting) == (["message"], [])


def test_an_empty_id_is_the_id_of_nothing(client: Any) -> None:
    """Given no id, as of an empty variable in a shell, I expect nothing found, what was rejected included."""
    client.xadd(REJECTED_STREAM, {"at": "memory_updates", "message": "{}", "reason": "invalid_request"})

    assert found(client, "").waiting == []


def test_an_id_of_digits_is_found_as_text(client: Any) -> None:
    """Given a request whose id is a number in JSON, and one in another script, I expect both found."""
    client.lpush("ltm_requests", json.dumps({"request_id": 77, "type": "profile_get", "user_id": 7}))
    client.lpush("ltm_requests", json.dumps({"request_id": "请求一", "type": "profile_get", "user_id": 7}))
    client.lpush("ltm_requests", b"[77]", b"\xff 77")

    assert [item.request_id for item in found(client, "77").waiting] == ["77"]
    assert [item.request_id for item in found(client, "请求一").waiting] == ["请求一"]


def test_ids_that_no_encoding_has_are_shown(client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Given ids with lone surrogates and controls, as any publisher may send them, I expect them found and escaped."""
    client.xadd(
        TRACES_STREAM, {TRACE_FIELD: TRACES.record("message", "a\ud800\x1b[2J", message_id="m1", task_id="\udc00")}
    )

    trace = found(client, "m1")
    _show(trace, Output())

    assert [(record.user, record.task_id) for record in trace.records] == [("a\ud800\x1b[2J", "\udc00")]
    assert r"task_id \udc00, user a\ud800\u001b[2J" in capsys.readouterr().out


def test_a_place_that_may_not_be_read_is_named(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a Redis user without the right to the lists, I expect them named, and the rest looked into."""
    place(client, RedisBroker(client=client, middleware=[]), "stream")

    def refuse(*_: Any) -> None:
        raise redis.exceptions.NoPermissionError("no permissions")

    monkeypatch.setattr(client, "lrange", refuse)

    trace = found(client, "m1")

    assert [item.place for item in trace.waiting] == ["memory_updates:log"]
    assert trace.unseen == [
        f"{name}: no permission" for name in ("user_input_queue", "user_input_queue:processing", "ltm_requests")
    ]


# What is shown


def test_a_trace_is_shown_stage_by_stage(capsys: pytest.CaptureFixture[str]) -> None:
    """Given a request that came late and a message that waits, I expect a line a stage, and no control characters."""
    record = TraceRecord(
        kind="request",
        type="search",
        request_id="r\x1b[2J",
        user="anna",
        process="long-term-memory-worker",
        host="h1",
        outcome="expired",
        times={"pushed": 100.0, "taken": 100.25, "answered": 101.0},
        ms={"embed_ms": 12.0},
        deadline_ms=600,
    )
    waiting = Waiting(place="memory_updates:log", state="waits to be read", since=100.5, message_id="m1")

    _show(Trace(id="m1", records=[record], waiting=[waiting], unseen=["ltm_requests: no permission"]), Output())

    assert capsys.readouterr().out.splitlines() == [
        "request search: request_id r\\u001b[2J, user anna",
        "  1970-01-01 00:01:40.000       +0 ms  pushed by its asker  the asker",
        "  1970-01-01 00:01:40.250     +250 ms  taken by an adapter",
        "  1970-01-01 00:01:41.000    +1000 ms  answered: expired, embedded in 12.0 ms, LATE by 400 ms"
        "  long-term-memory-worker @ h1",
        "memory_updates:log: waits to be read since 1970-01-01 00:01:40.500 (message_id m1)",
        "not looked into: ltm_requests: no permission",
    ]


def test_what_is_not_known_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Given nothing, I expect one line that says so."""
    _show(Trace(id="m1"), Output())

    assert capsys.readouterr().out == "nothing is known of m1: it did not arrive here, or its record is gone\n"


def test_the_keys_of_the_queues_are_dramatiqs(client: Any) -> None:
    """Given a dead letter of Dramatiq's, I expect it under the names that the reader uses."""
    broker = RedisBroker(client=client, middleware=[])
    broker.declare_queue("index")
    place(client, broker, "dead")

    assert client.hlen(QueueKeys("index").dead_messages) == 1
