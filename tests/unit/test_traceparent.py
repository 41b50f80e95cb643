"""The field `traceparent` on the wire: what is passed on, that a wrong one costs nothing, and who gets it."""

from __future__ import annotations

import asyncio
import json
from contextvars import ContextVar
from typing import Any

import fakeredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keepsake_client import AsyncClient, Client
from keepsake_client.errors import InvalidMessage
from keepsake_client.fields import WireModel
from keepsake_client.protocol import (
    MAX_MESSAGE_BYTES,
    LTMRequest,
    LTMResponse,
    Memory,
    SearchData,
    parse_request,
    parse_update,
    read_traceparent,
)

from adapters.stream import _derived_id
from services.memory.messages import Answered, ai_message, parse_ai_response, parse_user_input, traced
from tasks.queues import index_message, read_data, read_update, request_message
from tests.support import eventually

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-1af7651916cd43dd8448eb211c80319c-c7ad6b7169203331-00"
EVENT = {"user_id": "u1", "content": "I like tea", "source": "user", "timestamp": 1_712_345_678}
REQUEST = {"request_id": "r1", "type": "search", "user_id": "u1", "data": {"query": "tea?"}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def wire(fields: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({**fields, **more}).encode()


# What is passed on


def test_an_events_traceparent_reaches_its_actor() -> None:
    """Given an event with a traceparent, I expect it in what is stored and in what the actor reads."""
    event = parse_update(wire(EVENT, traceparent=TRACEPARENT), 1_000)

    message = json.loads(index_message(event).encode())

    assert json.loads(event.to_wire(logged=True))["traceparent"] == TRACEPARENT
    assert message["kwargs"]["update"]["traceparent"] == TRACEPARENT
    assert read_update(message["kwargs"]["update"]).traceparent == TRACEPARENT


def test_a_requests_traceparent_reaches_its_actor() -> None:
    """Given a request with a traceparent, I expect it in the actor's message, and the data as without one."""
    with_one, without = (
        request_message(parse_request(wire(REQUEST, **more), 1_000), 1.5).kwargs["request"]
        for more in ({"traceparent": TRACEPARENT}, {})
    )

    assert with_one.pop("traceparent") == TRACEPARENT
    assert with_one == without


def test_the_options_of_dramatiq_are_untouched() -> None:
    """Given messages with a traceparent, I expect the broker's options as without one."""
    event = parse_update(wire(EVENT, traceparent=TRACEPARENT), 1_000)
    request = parse_request(wire(REQUEST, traceparent=TRACEPARENT), 1_000)

    assert index_message(event).options == {}
    assert request_message(request, 1.5).options == {}


def test_a_refused_request_is_answered_with_its_traceparent() -> None:
    """Given a request of an unknown type, I expect the error to know the traceparent that its response carries."""
    with pytest.raises(InvalidMessage) as refused:
        parse_request(wire({**REQUEST, "type": "dance"}, traceparent=TRACEPARENT), 1_000)

    assert refused.value.traceparent == TRACEPARENT


def test_the_memory_service_passes_it_on() -> None:
    """Given a user's message and a reply with a traceparent, I expect it in the events that are published of them."""
    said = parse_user_input(wire({"user_id": "u1", "content": "hi"}, traceparent=TRACEPARENT), 1_000)
    reply = parse_ai_response(wire({"user_id": "u1", "text": "yes"}, traceparent=OTHER), 1_000)

    assert said.traceparent == TRACEPARENT
    assert ai_message(reply, "m2", Answered(traceparent=TRACEPARENT)).traceparent == OTHER


@pytest.mark.parametrize(("room", "expected"), [(0, TRACEPARENT), (-1, None)])
def test_a_message_of_the_largest_size_keeps_its_own(room: int, expected: str | None) -> None:
    """Given a message with room for the traceparent of a span, or with one byte too few, I expect it, or none."""
    said = parse_user_input(wire({"user_id": "u1", "content": "hi"}), 1_000)
    size = len(traced(said, TRACEPARENT).to_wire(logged=True))
    filled = said.model_copy(update={"content": "h" * (MAX_MESSAGE_BYTES - size + len("hi") - room)})

    assert traced(filled, TRACEPARENT).traceparent == expected


def test_a_reply_without_one_belongs_to_the_trace_of_its_message() -> None:
    """Given a reply of a chat service that knows no traces, I expect the traceparent of the message that it answers."""
    reply = parse_ai_response(wire({"user_id": "u1", "text": "yes"}), 1_000)

    assert ai_message(reply, "m2", Answered(traceparent=TRACEPARENT)).traceparent == TRACEPARENT


def test_an_event_is_the_same_whatever_its_traceparent() -> None:
    """Given an event that is published twice under different spans, I expect one identity."""
    first, again = (parse_update(wire(EVENT, traceparent=sent), 1_000) for sent in (TRACEPARENT, OTHER))

    assert _derived_id(first) == _derived_id(again)
    assert again.is_same_event(first.message_id, first.source, first.content)


# Tolerance


@given(JSON)
def test_no_traceparent_makes_a_message_invalid(sent: Any) -> None:
    """Given any JSON in the place of a traceparent, I expect each message to be read, with the traceparent or none."""
    event = parse_update(wire(EVENT, traceparent=sent), 1_000)
    request = parse_request(wire(REQUEST, traceparent=sent), 1_000)
    response = LTMResponse.model_validate({"request_id": "r", "user_id": "u", "success": True, "traceparent": sent})
    said = parse_user_input(wire({"user_id": "u1", "content": "hi"}, traceparent=sent), 1_000)

    read = {event.traceparent, request.traceparent, response.traceparent, said.traceparent}
    assert read == {read_traceparent(sent)}


@pytest.mark.parametrize(
    "sent",
    [
        "",
        TRACEPARENT.upper(),
        TRACEPARENT + "-more",
        TRACEPARENT + "\n",
        "ff" + TRACEPARENT[2:],
        TRACEPARENT[:-1],
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        TRACEPARENT * 20_000,
        "0\u0661-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        [TRACEPARENT],
    ],
)
def test_a_malformed_traceparent_counts_as_absent(sent: Any) -> None:
    """Given what only resembles a traceparent, I expect none."""
    assert read_traceparent(sent) is None


def test_nothing_is_written_where_there_is_none() -> None:
    """Given messages without a traceparent, I expect the wire as it was before there was one."""
    event = parse_update(wire(EVENT), 1_000)
    request = LTMRequest.model_validate(REQUEST)
    response = LTMResponse(request_id="r", user_id="u", success=True)

    written = (json.loads(event.to_wire()), request.to_fields(), json.loads(response.to_wire()))
    assert [fields for fields in written if "traceparent" in fields] == []


class OldResponse(WireModel):
    """A response as clients of version 0.2 know it."""

    request_id: str
    user_id: str
    success: bool
    memories: list[Memory]


class OldRequest(WireModel):
    """A request as adapters of version 0.2 know it."""

    request_id: str
    type: str
    user_id: str
    data: dict[str, Any]


def test_old_and_new_programs_read_each_other() -> None:
    """Given the messages of one version, I expect the other to read them: a field that it does not know is ignored."""
    new_response = LTMResponse(request_id="r", user_id="u", success=True, traceparent=TRACEPARENT).to_wire()
    new_request = LTMRequest.model_validate({**REQUEST, "traceparent": TRACEPARENT}).to_fields()
    old_update = index_message(parse_update(wire(EVENT), 1_000)).kwargs["update"]
    del old_update["traceparent"]
    of_a_newer_one = {**old_update, "unheard_of": 1}

    assert OldResponse.model_validate_json(new_response).request_id == "r"
    assert OldRequest.model_validate(new_request).data == {"query": "tea?"}
    assert read_update(old_update).traceparent is None
    assert read_update(of_a_newer_one).content == "I like tea"
    assert read_data({**new_request, "validated": True}, SearchData).query == "tea?"


# The clients

_span: ContextVar[str | None] = ContextVar("span", default=None)


def published(server: fakeredis.FakeServer) -> list[str | None]:
    """The traceparents of the events in the stream, in order."""
    entries: Any = fakeredis.FakeRedis(server=server).xrange("memory_updates:log")
    return [json.loads(fields[b"event"]).get("traceparent") for _, fields in entries]


def test_the_asyncio_client_sends_the_traceparent_of_each_callers_span() -> None:
    """Given two tasks under spans of their own and one under none, I expect each one's traceparent in its event."""
    server = fakeredis.FakeServer()

    async def story() -> None:
        client = AsyncClient(fakeredis.FakeAsyncRedis(server=server), traceparent=_span.get)

        async def under(traceparent: str | None) -> None:
            _span.set(traceparent)
            await client.remember("u1", "tea")

        for sent in (TRACEPARENT, None, OTHER, "nonsense"):
            await asyncio.create_task(under(sent))

    asyncio.run(story())

    assert published(server) == [TRACEPARENT, None, OTHER, None]


def test_the_blocking_client_sends_the_traceparent_of_the_thread_that_calls() -> None:
    """Given a client with a thread of its own, I expect the traceparent of the calling thread's span."""
    server = fakeredis.FakeServer()
    token = _span.set(TRACEPARENT)
    try:
        with Client(fakeredis.FakeAsyncRedis(server=server), traceparent=_span.get) as client:
            client.remember("u1", "tea")
    finally:
        _span.reset(token)

    assert published(server) == [TRACEPARENT]


def test_a_request_and_its_response_carry_the_traceparent() -> None:
    """Given a search under a span, I expect its traceparent beside `data` on the wire, and in the response."""

    async def story() -> None:
        server = fakeredis.FakeServer()
        keepsake: Any = fakeredis.FakeAsyncRedis(server=server)
        async with AsyncClient(fakeredis.FakeAsyncRedis(server=server), traceparent=lambda: TRACEPARENT) as client:
            asked = asyncio.create_task(client.request("search", "u1", {"query": "tea?"}, deadline_ms=60_000))
            request = json.loads(await eventually(lambda: keepsake.rpop("ltm_requests"), description="the request"))
            answer = LTMResponse(
                request_id=request["request_id"], user_id="u1", success=True, traceparent=request["traceparent"]
            )
            await keepsake.publish("ltm_responses", answer.to_wire())

            assert "traceparent" not in request["data"]
            assert (await asked).traceparent == TRACEPARENT
        await keepsake.aclose()

    asyncio.run(story())
