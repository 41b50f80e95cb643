"""The OpenAI-compatible proxy on real ports: OpenAI's own client before it, a scripted server behind it."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import openai
import pytest
import redis
from keepsake_client.protocol import COUNTERS, UPDATES_STREAM
from openai import OpenAI
from pydantic import SecretStr

from services.gateway.access import ALL_RIGHTS, Caller, Right
from services.gateway.proxy.door import add_proxy
from services.gateway.request_scope import BODY_LIMITS
from tests.integration.scripted_upstream import (
    Handler,
    Received,
    Script,
    ScriptedUpstream,
    broken_off,
    completion,
    endless,
    events,
    silent,
    stream,
)
from tests.integration.stand_in_memory import StandInMemory
from tests.served_gateway import Keys, served, settings_of
from tests.support import free_port, wait_until

#: By their keys.
CALLERS = {
    "key-of-anna": Caller("a", ALL_RIGHTS, user="anna", agent="luna"),
    "key-of-team": Caller("t", ALL_RIGHTS, users="team-"),
    "key-to-read": Caller("r", frozenset({Right.READ})),
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream(completion("ok")) as running:
        yield running


@pytest.fixture(scope="module")
def memory(valkey_url: str) -> Iterator[StandInMemory]:
    running = StandInMemory(valkey_url)
    running.start()
    yield running
    running.end()


@pytest.fixture(scope="module")
def gateway(valkey_url: str, upstream: ScriptedUpstream, memory: StandInMemory) -> Iterator[str]:
    """The URL of an open gateway, without an API key for upstream."""
    with served(settings_of(valkey_url, chat_base_url=SecretStr(upstream.url)), [add_proxy]) as url:
        yield url


@pytest.fixture(scope="module")
def keyed_gateway(valkey_url: str, upstream: ScriptedUpstream, memory: StandInMemory) -> Iterator[str]:
    """The URL of a gateway with keys, and an API key for upstream."""
    settings = settings_of(
        valkey_url, chat_base_url=SecretStr(upstream.url), openai_api_key=SecretStr("sk-of-the-operator")
    )
    with served(settings, [add_proxy], Keys(CALLERS)) as url:
        yield url


@pytest.fixture
def user() -> str:
    return f"用户-{uuid4().hex[:8]}"


@pytest.fixture
def client(gateway: str) -> Iterator[OpenAI]:
    """OpenAI's client, as a chat program has it."""
    with OpenAI(base_url=f"{gateway}/openai/v1", api_key="sk-of-the-client", max_retries=0) as client:
        yield client


@pytest.fixture
def says(upstream: ScriptedUpstream) -> Iterator[Callable[[Script], None]]:
    """Sets how upstream answers in this test."""

    def say(script: Script) -> None:
        upstream.script = script

    upstream.received.clear()
    upstream.client_gone.clear()
    yield say
    upstream.script = completion("ok")


@pytest.fixture
def last(upstream: ScriptedUpstream, says: Callable[[Script], None]) -> Callable[[], Received]:
    """The last request that upstream got in this test."""
    return lambda: upstream.received[-1]


Remembered = Callable[[str, int], list[dict[str, Any]]]


@pytest.fixture
def remembered(valkey_url: str) -> Iterator[Remembered]:
    """The events of a user, once there are so many."""
    with redis.Redis.from_url(valkey_url) as client:

        def published(user_id: str, number: int) -> list[dict[str, Any]]:
            def of_user() -> list[dict[str, Any]]:
                entries: Any = client.xrange(UPDATES_STREAM)
                found = [json.loads(fields[b"event"]) for _, fields in entries]
                return [event for event in found if event["user_id"] == user_id]

            wait_until(lambda: len(of_user()) >= number, description=f"{number} events")
            return of_user()

        yield published


Counted = Callable[[str], int]


@pytest.fixture
def counted(valkey_url: str) -> Iterator[Counted]:
    """How much a counter has grown in this test."""
    with redis.Redis.from_url(valkey_url) as client:
        before: Any = client.hgetall(COUNTERS)

        def count(name: str) -> int:
            now: Any = client.hget(COUNTERS, name)
            return int(now or 0) - int(before.get(name.encode(), 0))

        yield count


def quote(text: str) -> dict[str, Any]:
    """What a memory knows that quotes a text."""
    return {"memories": [{"date": "2026-11-01 08:00 UTC", "said_by": "user", "quote": text}]}


def chat(client: OpenAI, user: str, text: Any, **options: Any) -> Any:
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], user=user, **options)


def test_a_chat_has_a_memory(
    client: OpenAI,
    memory: StandInMemory,
    says: Callable[[Script], None],
    last: Callable[[], Received],
    remembered: Remembered,
    user: str,
) -> None:
    """Given what is remembered of a user, I expect it in the prompt, the answer as it came, and both turns."""
    memory.knows[user] = quote("My cat is called Mochi.")
    says(completion("She is called Mochi."))
    headers = {"X-Keepsake-Session": "s1", "X-Keepsake-Agent": "luna"}
    before = time.time()

    raw = client.chat.completions.with_raw_response.create(
        model="m", messages=[{"role": "user", "content": "What is my cat called?"}], user=user, extra_headers=headers
    )

    answer = raw.parse()
    assert (answer.choices[0].message.content, raw.headers["openai-version"]) == ("She is called Mochi.", "1")
    assert raw.headers["x-keepsake-request-id"] == memory.requests[-1]["request_id"]
    sent = json.loads(last().body)
    prompt, question = sent["messages"]
    assert prompt["role"] == "system"
    assert '"quote": "My cat is called Mochi."' in prompt["content"]
    assert (question, sent["user"]) == ({"role": "user", "content": "What is my cat called?"}, user)
    asked = memory.requests[-1]
    assert (asked["type"], asked["user_id"]) == ("context", user)
    assert asked["data"] == {
        "query": "What is my cat called?",
        "limit": 5,
        "session_id": "s1",
        "agent_id": "luna",
        "deadline_ms": 20_000,
    }
    said, answered = remembered(user, 2)
    assert (said["source"], said["content"]) == ("user", "What is my cat called?")
    assert (answered["source"], answered["content"]) == ("ai", "She is called Mochi.")
    assert before <= said["timestamp"] <= answered["timestamp"]
    for event in (said, answered):
        assert (event["meta"], event["agent_id"], event["require_ai_response"]) == ({"session_id": "s1"}, "luna", False)


def test_a_stream_is_passed_on_as_it_comes(
    gateway: str, client: OpenAI, says: Callable[[Script], None], remembered: Remembered, user: str
) -> None:
    """Given a streamed answer, I expect each event as upstream wrote it, for OpenAI's client too, and both turns."""
    says(stream("<think>hm</think>", "Mo", "奇。"))

    whole = httpx.post(
        f"{gateway}/openai/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "Hi"}], "stream": True, "user": user},
    )
    remembered(user, 2)  # published after the answer, which is not waited for
    chunks = [chunk.choices[0].delta.content or "" for chunk in chat(client, user, "Hello", stream=True)]

    assert whole.content == b"".join(events("<think>hm</think>", "Mo", "奇。"))
    assert whole.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "".join(chunks) == "<think>hm</think>Mo奇。"
    turns = [event["content"] for event in remembered(user, 4)]
    assert turns == ["Hi", "Mo奇。", "Hello", "Mo奇。"]


def test_a_message_of_parts(
    client: OpenAI, memory: StandInMemory, last: Callable[[], Received], remembered: Remembered, user: str
) -> None:
    """Given a message of texts and an image, I expect its texts to be searched and remembered, and it untouched."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    parts = [{"type": "text", "text": "What is"}, image, {"type": "text", "text": "on this picture?"}]
    memory.knows[user] = quote("I paint cats.")

    chat(client, user, parts)

    assert json.loads(last().body)["messages"][1]["content"] == parts
    assert memory.requests[-1]["data"]["query"] == "What is\non this picture?"
    assert remembered(user, 2)[0]["content"] == "What is\non this picture?"


def test_all_but_the_context_is_sent_byte_for_byte(
    gateway: str, memory: StandInMemory, last: Callable[[], Received], user: str
) -> None:
    """Given a body that no parser would write again, I expect it upstream with the context in one place."""
    memory.knows[user] = quote("I like tea.")
    start = f'{{ "user" : "{user}",\t"seed": {"9" * 30}, "x":1.50e+00, "x":[-0, "\\u00e9\\/"],\n"messages":'
    start += '[{"role":"system","content":"Be \\u0062rief.'
    end = '"},{"role":"user","content":"Tee? 🍵"}], "z": {"unknown": null} }\n'

    httpx.post(f"{gateway}/openai/v1/chat/completions?api-version=1", content=(start + end).encode())

    received = last()
    assert received.body.startswith(start.encode() + b"\\n\\nWhat follows is remembered")
    assert received.body.endswith(b"</memories>\\n" + end.encode())
    assert (received.method, received.path) == ("POST", "/v1/chat/completions?api-version=1")
    assert json.loads(received.body)["messages"][1]["content"] == "Tee? 🍵"


def test_what_the_conversation_says_is_not_quoted(
    client: OpenAI, memory: StandInMemory, last: Callable[[], Received], user: str
) -> None:
    """Given memories of the conversation that the request has anyway, I expect the others alone in the prompt."""
    known = [*quote("Good morning")["memories"], *quote("I have a cat.")["memories"]]
    memory.knows[user] = {"memories": known, "recap": [{**known[0], "sessions_ago": 1}]}

    chat(client, user, "Good morning")

    prompt, question = json.loads(last().body)["messages"]
    assert "I have a cat." in prompt["content"]
    assert "Good morning" not in prompt["content"]
    assert question["content"] == "Good morning"


def test_tools_are_called_and_the_user_is_remembered_once(
    client: OpenAI, says: Callable[[Script], None], last: Callable[[], Received], remembered: Remembered, user: str
) -> None:
    """Given an answer that calls a tool, and then one with its result, I expect the user's turn under one id."""
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"at": "Lisbon"}'}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    asked = {"role": "user", "content": "How is the weather?"}
    says(completion(None, tool_calls=[call]))
    messages: Any = [asked]
    first = client.chat.completions.create(model="m", messages=messages, tools=[tool], user=user)  # type: ignore[list-item]
    assert first.choices[0].message.tool_calls is not None
    assert len(remembered(user, 1)) == 1

    says(completion("Sunny."))
    messages += [first.choices[0].message.model_dump(), {"role": "tool", "tool_call_id": "c1", "content": "sun"}]
    client.chat.completions.create(model="m", messages=messages, tools=[tool], user=user)  # type: ignore[list-item]

    assert json.loads(last().body)["tools"] == [tool]
    turns = remembered(user, 3)
    assert [turn["content"] for turn in turns] == ["How is the weather?", "How is the weather?", "Sunny."]
    assert turns[0]["message_id"] == turns[1]["message_id"] != turns[2]["message_id"]


def test_a_request_sent_again_is_remembered_once(
    client: OpenAI, says: Callable[[Script], None], remembered: Remembered, user: str
) -> None:
    """Given a request that is repeated and answered otherwise, I expect one turn of the user and two answers."""
    for number, text in enumerate(("Tea.", "Tea.", "Coffee."), start=1):
        says(completion(text))
        chat(client, user, "What do I drink?")
        remembered(user, 2 * number)  # published after the answer, which is not waited for
    chat(client, user, "And you?")

    turns = remembered(user, 8)
    ids = [turn["message_id"] for turn in turns]
    assert ids[0] == ids[2] == ids[4]
    assert ids[1] == ids[3] != ids[5]
    assert len(set(ids)) == 5


def test_without_memory_in_time_the_request_goes_through(
    valkey_url: str,
    upstream: ScriptedUpstream,
    memory: StandInMemory,
    last: Callable[[], Received],
    counted: Counted,
    user: str,
) -> None:
    """Given a memory that does not answer in time, I expect the request upstream as it came, and that to be counted."""
    memory.knows[user] = None
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "user": user}).encode()
    settings = settings_of(valkey_url, chat_base_url=SecretStr(upstream.url), ltm_search_timeout_ms=30)

    with served(settings, [add_proxy]) as url:
        response = httpx.post(f"{url}/openai/v1/chat/completions", content=body)

    assert response.status_code == 200
    assert last().body == body
    assert counted("proxy_without_context") == 1


def test_without_redis_the_request_goes_through(upstream: ScriptedUpstream, last: Callable[[], Received]) -> None:
    """Given no Redis, I expect the request upstream as it came, and the gateway to stop when it is told to."""
    body = b'{"messages": [{"role": "user", "content": "Hi"}], "user": "u"}'
    settings = settings_of(f"redis://127.0.0.1:{free_port()}/0", chat_base_url=SecretStr(upstream.url))

    with served(settings, [add_proxy]) as url:
        response = httpx.post(f"{url}/openai/v1/chat/completions", content=body)

    assert response.json()["choices"][0]["message"]["content"] == "ok"
    assert last().body == body


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_an_error_of_upstream_is_passed_on(
    gateway: str, says: Callable[[Script], None], counted: Counted, remembered: Remembered, user: str, status: int
) -> None:
    """Given an error of upstream, I expect status, body and headers as they came, and nothing remembered."""
    error = b'{"error": {"message":"no", "type": "of upstream", "code": null}}'
    says(lambda handler: handler.reply(status, error, [("Retry-After", "7"), ("Content-Type", "application/json")]))

    response = httpx.post(
        f"{gateway}/openai/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "Hi"}], "user": user},
    )

    assert (response.status_code, response.content, response.headers["retry-after"]) == (status, error, "7")
    wait_until(lambda: counted("proxy_upstream_failed") == 1, description="the error to be counted")
    assert (remembered(user, 0), counted("proxy_not_remembered")) == ([], 0)


def test_an_upstream_that_is_not_there(valkey_url: str, memory: StandInMemory, user: str) -> None:
    """Given no server at CHAT_BASE_URL, I expect an error that OpenAI's client understands, with the remedy."""
    settings = settings_of(valkey_url, chat_base_url=SecretStr(f"http://127.0.0.1:{free_port()}/v1"))

    with (
        served(settings, [add_proxy]) as url,
        OpenAI(base_url=f"{url}/openai/v1", api_key="k", max_retries=0) as client,
        pytest.raises(openai.InternalServerError) as raised,
    ):
        chat(client, user, "Hi")

    assert (raised.value.status_code, raised.value.code, raised.value.type) == (
        502,
        "upstream_unavailable",
        "server_error",
    )
    assert "CHAT_BASE_URL" in raised.value.message


def test_an_upstream_that_ends_the_connection(
    client: OpenAI, says: Callable[[Script], None], counted: Counted, user: str
) -> None:
    """Given a server that ends the connection without an answer, I expect status 502."""
    says(Handler.reset)

    with pytest.raises(openai.InternalServerError) as raised:
        chat(client, user, "Hi")

    assert raised.value.status_code == 502
    wait_until(lambda: counted("proxy_upstream_failed") == 1, description="the failure to be counted")


def test_a_stream_that_breaks_off(
    gateway: str, says: Callable[[Script], None], counted: Counted, remembered: Remembered, user: str
) -> None:
    """Given a stream that upstream breaks off, I expect the client to notice, and nothing remembered."""
    says(broken_off(*events("My ", "cat")[:2]))

    got: list[bytes] = []
    with (
        httpx.stream(
            "POST",
            f"{gateway}/openai/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "Hi"}], "stream": True, "user": user},
        ) as response,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        got.extend(response.iter_raw())

    assert b"".join(got) == b"".join(events("My ")[:2])
    wait_until(lambda: counted("proxy_not_remembered") == 2, description="both turns to be counted")
    assert remembered(user, 0) == []


def test_a_stream_that_cannot_be_read_is_passed_on(
    gateway: str, says: Callable[[Script], None], counted: Counted, remembered: Remembered, user: str
) -> None:
    """Given a stream of nonsense, I expect it as it came, and nothing remembered."""
    nonsense = [b"data: {]\r\n\r\n", b"\xff\xfe\n\n", b"event: x\n", b"data: [DONE]\n\n"]

    def send(handler: Handler) -> None:
        handler.begin_stream()
        for piece in [*nonsense, b""]:
            handler.event(piece)

    says(send)

    response = httpx.post(
        f"{gateway}/openai/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}], "user": user}
    )

    assert response.content == b"".join(nonsense)
    wait_until(lambda: counted("proxy_not_remembered") == 2, description="both turns to be counted")
    assert remembered(user, 0) == []


def test_a_client_that_hangs_up_ends_the_stream(
    client: OpenAI,
    upstream: ScriptedUpstream,
    says: Callable[[Script], None],
    counted: Counted,
    remembered: Remembered,
    user: str,
) -> None:
    """Given a client that hangs up in mid-stream, I expect upstream's request ended, and nothing remembered."""
    says(endless)

    answer = chat(client, user, "Tell me everything", stream=True)
    assert next(iter(answer)).choices[0].delta.content == "word "
    answer.close()

    assert upstream.client_gone.wait(60)
    wait_until(lambda: counted("proxy_not_remembered") == 2, description="both turns to be counted")
    assert remembered(user, 0) == []


def test_a_client_that_hangs_up_before_the_answer(
    gateway: str, upstream: ScriptedUpstream, says: Callable[[Script], None], counted: Counted, user: str
) -> None:
    """Given a client that hangs up while the model thinks, I expect upstream's request ended."""
    says(silent)
    host, port = gateway.removeprefix("http://").split(":")
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "user": user}).encode()
    head = f"POST /openai/v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"

    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: upstream.received, description="the request to arrive")

    assert upstream.client_gone.wait(60)
    wait_until(lambda: counted("proxy_not_remembered") == 2, description="both turns to be counted")


def test_a_client_that_hangs_up_while_it_sends(gateway: str, upstream: ScriptedUpstream, user: str) -> None:
    """Given a client that hangs up in the middle of its request, I expect nothing of it upstream."""
    upstream.received.clear()
    host, port = gateway.removeprefix("http://").split(":")

    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /openai/v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")

    assert httpx.get(f"{gateway}/openai/v1/models").status_code == 200
    assert [received.method for received in upstream.received] == ["GET"]


@pytest.mark.parametrize(
    ("key", "header", "field", "expected"),
    [
        ("key-of-team", "team-a", "team-b", "team-a"),
        ("key-of-team", None, "team-b", "team-b"),
        ("key-of-team", None, None, None),
        ("key-of-team", "anna", None, 403),
        ("key-of-team", None, "anna", 403),
        ("key-of-anna", None, None, "anna"),
        ("key-of-anna", None, "a program's name for her", "anna"),
        ("key-of-anna", "anna", None, "anna"),
        ("key-of-anna", "bob", None, 403),
        ("key-to-read", "anna", None, 403),
        ("no-key", "anna", None, 401),
    ],
)
def test_who_speaks(
    keyed_gateway: str,
    memory: StandInMemory,
    last: Callable[[], Received],
    key: str,
    header: str | None,
    field: str | None,
    expected: str | int | None,
) -> None:
    """Given a key, a header and a field, I expect the user whose memory is asked, none, or an error."""
    memory.requests.clear()
    headers = {"Authorization": f"Bearer {key}", **({"X-Keepsake-User": header} if header else {})}
    body = {"messages": [{"role": "user", "content": "Hi"}], **({"user": field} if field else {})}

    response = httpx.post(f"{keyed_gateway}/openai/v1/chat/completions", json=body, headers=headers)

    if isinstance(expected, int):
        kind = {401: "authentication_error", 403: "permission_error"}[expected]
        assert (response.status_code, response.json()["error"]["type"]) == (expected, kind)
        assert memory.requests == []
        return
    assert response.status_code == 200
    assert json.loads(last().body).get("user") == field
    assert [(asked["user_id"], asked["data"]["agent_id"]) for asked in memory.requests] == [
        *([(expected, "luna" if key == "key-of-anna" else None)] if expected else [])
    ]


@pytest.mark.parametrize("name", ["X-Keepsake-User", "X-Keepsake-Agent", "X-Keepsake-Session", "X-Keepsake-Remember"])
def test_a_header_that_is_there_twice_is_refused(
    gateway: str, upstream: ScriptedUpstream, memory: StandInMemory, name: str
) -> None:
    """Given two headers of a name, of which a proxy may have checked either, I expect 400, no memory of either, and
    nothing upstream."""
    memory.requests.clear()
    upstream.received.clear()
    body = {"user": "anna", "messages": [{"role": "user", "content": "Hi"}]}

    response = httpx.post(f"{gateway}/openai/v1/chat/completions", json=body, headers=[(name, "true"), (name, "false")])

    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")
    assert (memory.requests, upstream.received) == ([], [])


def test_a_request_of_no_user_goes_through(
    client: OpenAI, last: Callable[[], Received], counted: Counted, memory: StandInMemory
) -> None:
    """Given a request that names no user, and a gateway without keys, I expect it upstream without memory."""
    memory.requests.clear()

    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])

    assert len(json.loads(last().body)["messages"]) == 1
    assert memory.requests == []
    wait_until(lambda: counted("proxy_without_user") == 1, description="the request to be counted")


def test_what_upstream_is_told_of_the_client(
    gateway: str, keyed_gateway: str, last: Callable[[], Received], user: str
) -> None:
    """Given headers of all kinds, I expect those for upstream there, and no key of Keepsake ever."""
    headers = {
        "Authorization": "Bearer key-of-team",
        "X-API-Key": "key-of-team",
        "Cookie": "a=b",
        "X-Keepsake-User": "team-a",
        "X-Forwarded-For": "10.0.0.1",
        "Connection": "close, X-Hop",
        "X-Hop": "1",
        "Via": "1.1 front",
        "OpenAI-Organization": "org",
        "User-Agent": "program/1",
        "Content-Type": "application/json; charset=utf-8",
    }
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()

    httpx.post(f"{keyed_gateway}/openai/v1/chat/completions", content=body, headers=headers)

    sent = {name.lower(): value for name, value in last().headers}
    assert len(sent) == len(last().headers)
    assert sent == {
        "host": sent["host"],
        "authorization": "Bearer sk-of-the-operator",
        "accept": "*/*",
        "accept-encoding": "identity",
        "openai-organization": "org",
        "user-agent": "program/1",
        "content-type": "application/json; charset=utf-8",
        "content-length": str(len(body)),
        "via": "1.1 front, 1.1 keepsake",
    }

    httpx.post(f"{gateway}/openai/v1/chat/completions", content=body, headers={"Authorization": "Bearer sk-own"})
    assert last().header("authorization") == "Bearer sk-own"
    for key in ("Bearer ltm_1_x", "bearer \t LTM_1_x", "ltm_1_x"):
        httpx.post(f"{gateway}/openai/v1/chat/completions", content=body, headers={"Authorization": key})
        assert last().header("authorization") is None


def test_a_key_of_keepsake_is_never_sent(
    valkey_url: str, upstream: ScriptedUpstream, memory: StandInMemory, last: Callable[[], Received]
) -> None:
    """Given a gateway with keys and no API key for upstream, I expect no Authorization there."""
    with served(settings_of(valkey_url, chat_base_url=SecretStr(upstream.url)), [add_proxy], Keys(CALLERS)) as url:
        httpx.get(f"{url}/openai/v1/models", headers={"Authorization": "Bearer key-of-anna"})

    assert last().path == "/v1/models"
    assert last().header("authorization") is None


def test_what_upstream_says_of_itself_stays_there(gateway: str, says: Callable[[Script], None]) -> None:
    """Given cookies and CORS of upstream, I expect neither at the client, nor the cookie in another request."""
    own = [
        ("Set-Cookie", "session=1; Path=/"),
        ("Access-Control-Allow-Origin", "*"),
        ("Keep-Alive", "timeout=5"),
        ("X-Ratelimit-Remaining", "3"),
    ]
    seen: list[str | None] = []

    def send(handler: Handler) -> None:
        seen.append(handler.headers.get("Cookie"))
        handler.reply(200, b"{}", own)

    says(send)

    responses = [httpx.get(f"{gateway}/openai/v1/models") for _ in range(2)]

    assert responses[1].headers["x-ratelimit-remaining"] == "3"
    assert {"set-cookie", "access-control-allow-origin", "keep-alive"} & set(responses[1].headers) == set()
    assert len(responses[1].headers.get_list("date")) == len(responses[1].headers.get_list("server")) == 1
    assert seen == [None, None]


def test_the_models_are_those_of_upstream(client: OpenAI, says: Callable[[Script], None]) -> None:
    """Given OpenAI's client, I expect the models of upstream."""
    models = {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "o"}]}
    says(lambda handler: handler.reply(200, json.dumps(models).encode(), [("Content-Type", "application/json")]))

    assert [model.id for model in client.models.list()] == ["m"]


def test_other_routes_are_refused_in_words(client: OpenAI, gateway: str) -> None:
    """Given another route of OpenAI's API, or another method, I expect an error that says which there are."""
    with pytest.raises(openai.NotFoundError, match="GET /openai/v1/models"):
        client.embeddings.create(model="m", input="Hi")

    response = httpx.get(f"{gateway}/openai/v1/chat/completions")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


def test_a_turn_that_is_not_to_be_remembered(
    client: OpenAI, memory: StandInMemory, last: Callable[[], Received], remembered: Remembered, user: str
) -> None:
    """Given X-Keepsake-Remember: false, I expect the context in the prompt and no turn of it."""
    memory.knows[user] = quote("I like tea.")

    chat(client, user, "Write a title for this chat", extra_headers={"X-Keepsake-Remember": "false"})
    assert "I like tea." in last().body.decode()
    chat(client, user, "Hello")

    assert [turn["content"] for turn in remembered(user, 2)] == ["Hello", "ok"]
    with pytest.raises(openai.BadRequestError, match="must be true or false"):
        chat(client, user, "Hello", extra_headers={"X-Keepsake-Remember": "nope"})


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"no JSON", {}),
        (gzip.compress(b'{"messages": []}', mtime=0), {"Content-Encoding": "gzip"}),
        ('{"messages": []}'.encode("utf-16"), {"Content-Type": "application/json; charset=utf-16"}),
        (b'{"messages": [{"role": "system", "content": "Hi"}]}', {}),
        (b"", {}),
    ],
)
def test_what_cannot_be_read_goes_through(
    gateway: str, last: Callable[[], Received], user: str, body: bytes, headers: dict[str, str]
) -> None:
    """Given a body without a message of a user, I expect it upstream as it came, which says what is wrong."""
    response = httpx.post(
        f"{gateway}/openai/v1/chat/completions", content=body, headers={"X-Keepsake-User": "u", **headers}
    )

    assert response.status_code == 200
    assert last().body == body
    assert {name: last().header(name) for name in headers} == headers


def test_a_body_that_is_too_large(gateway: str) -> None:
    """Given a body over the limit, I expect status 413 in OpenAI's shape, and an end to reading it."""
    response = httpx.post(f"{gateway}/openai/v1/chat/completions", content=b" " * (BODY_LIMITS["/openai/"] + 1))

    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")


def test_a_long_turn_is_counted(
    client: OpenAI, memory: StandInMemory, counted: Counted, remembered: Remembered, user: str
) -> None:
    """Given a message longer than any memory, I expect its beginning to be searched, it upstream, the answer
    remembered, and the other counted."""
    chat(client, user, "long " * 10_000)

    assert len(memory.requests[-1]["data"]["query"]) == 32_768
    assert [turn["source"] for turn in remembered(user, 1)] == ["ai"]
    wait_until(lambda: counted("proxy_not_remembered") == 1, description="the turn to be counted")


def test_a_proxy_that_is_its_own_upstream(valkey_url: str, memory: StandInMemory) -> None:
    """Given CHAT_BASE_URL with the address of the proxy, I expect an error that says so, and no endless loop."""
    port = free_port()
    own = f"http://127.0.0.1:{port}/openai/v1"
    settings = settings_of(valkey_url, chat_base_url=SecretStr(own))

    with served(settings, [add_proxy], port=port):
        response = httpx.get(f"{own}/models")

    assert (response.status_code, response.json()["error"]["code"]) == (508, "loop_detected")
