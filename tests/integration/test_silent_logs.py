"""No log holds contents or secrets: a conversation with marked words goes through every process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import redis
from keepsake_client.protocol import alive_key

from services.runtime.process_record import read_records
from services.stack.processes import GATEWAY, SERVICES, service_specs
from tests.support import wait_until

ROOT = Path(__file__).parents[2]
WITHIN_S = 120.0
#: A unique word for each part of a message and of a request that must not be logged.
MARKS = {
    part: f"mark{part}{uuid.uuid4().hex[:8]}"
    for part in ("content", "query", "meta", "metakey", "session", "task", "profile", "profilekey", "type", "broken")
}
PASSWORDS = [f"hush{uuid.uuid4().hex[:8]}" for _ in range(4)]
USER = f"user{uuid.uuid4().hex[:8]}"
DATABASE_NUMBER = 6


def environment(valkey_url: str, database_url: str, name: str, **settings: str) -> dict[str, str]:
    names = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH")
    separator = "&" if "?" in database_url else "?"
    return {
        **{name: os.environ[name] for name in names if name in os.environ},
        "REDIS_URL": valkey_url,
        # These servers require no password; the URL has one nevertheless.
        "DATABASE_URL": f"{database_url}{separator}password={PASSWORDS[0]}",
        "CHAT_BASE_URL": f"http://user:{PASSWORDS[1]}@127.0.0.1:1/v1",
        "OPENAI_API_KEY": PASSWORDS[2],
        "LTM_LLM_API_KEY": PASSWORDS[3],
        "LTM_GATEWAY_PORT": "0",
        "LTM_PROCESS_NAME": name,
        "OMP_NUM_THREADS": "1",
        **settings,
    }


def converse(client: redis.Redis) -> None:
    """Send every kind of valid and invalid message to the stack, with the marks in them."""
    answers: dict[str, dict[str, Any]] = {}
    with client.pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
        subscription.subscribe("ltm_responses", "ai_responses")

        def listen() -> None:
            while message := subscription.get_message(timeout=0.01):
                with suppress(ValueError, AttributeError):  # the broken messages below arrive here too
                    payload = json.loads(message["data"])
                    answers[payload.get("request_id") or "reply"] = payload

        def answered(request_id: str) -> bool:
            listen()
            return request_id in answers

        def ask(kind: str, **data: Any) -> None:
            request_id = uuid.uuid4().hex
            request = {"request_id": request_id, "type": kind, "user_id": USER, "data": {"deadline_ms": 60_000, **data}}
            client.lpush("ltm_requests", json.dumps(request))
            wait_until(lambda: answered(request_id), WITHIN_S, f"the answer to a {kind}")

        meta = {"session_id": MARKS["session"], MARKS["metakey"]: MARKS["meta"]}
        message = {"user_id": USER, "content": MARKS["content"], "task_id": MARKS["task"], "meta": meta}
        client.lpush("user_input_queue", json.dumps(message))
        wait_until(lambda: answered("reply"), WITHIN_S, "a reply, the built-in one: no model answers")
        ask("search", query=MARKS["query"], filters={"session_id": MARKS["session"]})
        ask("add", content=MARKS["content"], metadata=meta)
        ask("profile_update", updates={MARKS["profilekey"]: MARKS["profile"]})
        ask("profile_update", updates={MARKS["profilekey"]: MARKS["profile"]}, expected_version=7)
        ask("profile_update", updates={MARKS["profilekey"]: MARKS["profile"] * 7_000})
        ask("profile_get")
        # A rejection gives the reason, and must not quote the message
        ask("search", query=MARKS["query"], filters={MARKS["metakey"]: MARKS["meta"]})
        ask("search", query=[MARKS["query"]])
        ask(MARKS["type"], query=MARKS["query"])
        ask("add", content=MARKS["content"] * 4_000)
        for broken in (MARKS["broken"], f'{{"user_id": "{USER}"', json.dumps([MARKS["broken"]])):
            client.lpush("ltm_requests", broken)
            client.lpush("user_input_queue", broken)
            client.publish("memory_updates", broken)
            client.publish("ai_responses", broken)
            client.publish("ltm_responses", broken)
        client.lpush("user_input_queue", json.dumps({"user_id": USER, "content": {MARKS["metakey"]: MARKS["content"]}}))
        client.publish("memory_updates", json.dumps({**message, "source": MARKS["meta"]}))
        # A conversation that is no list, so that Redis itself refuses the message
        client.set(f"memory:conversation:{USER}-2", MARKS["content"])
        client.lpush("user_input_queue", json.dumps({**message, "user_id": f"{USER}-2"}))
        # And an actor's message that crashes it
        poison(client)
        wait_until(lambda: client.zcard("dramatiq:index.XQ"), WITHIN_S, "the dead letter")
        wait_until(lambda: client.llen("user_input_queue") == 0, WITHIN_S, "the inputs to be taken")
        ask("search", query=MARKS["query"])
    converse_by_http(client)


def converse_by_http(client: redis.Redis) -> None:
    """Send the gateway's doors what is valid and what is not, with the marks in it, and a key that it does not know."""
    address = read_records(client, [GATEWAY])[GATEWAY].address or ""
    headers = {"Authorization": f"Bearer {MARKS['meta']}", "X-Keepsake-User": USER}
    chat = {"model": "m", "messages": [{"role": "user", "content": MARKS["content"]}]}
    bodies: list[Any] = [
        {"user_id": USER, "content": MARKS["content"], "query": MARKS["query"], "source": "user"},
        {"user_id": USER, "content": MARKS["content"], "source": "user", "meta": {MARKS["metakey"]: MARKS["meta"]}},
        {"user_id": USER, "query": MARKS["query"], "deadline_ms": 30_000},
        {"user_id": USER, "query": [MARKS["query"]], MARKS["metakey"]: 1},
        {"messages": chat["messages"], "user_id": USER, "metadata": {MARKS["metakey"]: MARKS["meta"]}},
        {"jsonrpc": "2.0", "id": 1, "method": MARKS["type"], "params": {MARKS["metakey"]: MARKS["content"]}},
        chat,
    ]
    paths = ["/v1/events", "/v1/memories", "/v1/memories/search", "/v1/context", f"/v1/{MARKS['query']}"]
    paths += ["/openai/v1/chat/completions", "/mcp", "/mem0/v1/memories/", f"/v1/memories/{MARKS['query']}"]
    with httpx.Client(base_url=address, headers=headers, timeout=WITHIN_S) as http:
        answers = [http.post(path, json=body) for path in paths for body in bodies]
        answers += [http.post(path, content=MARKS["broken"].encode()) for path in paths]
        answers.append(
            http.patch("/v1/profile", params={"user_id": USER}, json={MARKS["profilekey"]: MARKS["profile"]})
        )
    assert {200, 202, 400, 404} <= {answer.status_code for answer in answers}
    assert all(answer.status_code != 500 for answer in answers)


def poison(client: redis.Redis) -> None:
    redis_id = uuid.uuid4().hex
    update = {"user_id": USER, "content": MARKS["content"], "source": MARKS["meta"], MARKS["metakey"]: 1}
    message = {
        "queue_name": "index",
        "actor_name": "memory.index",
        "args": [],
        "kwargs": {"update": update},
        "options": {"redis_message_id": redis_id},
        "message_id": uuid.uuid4().hex,
        "message_timestamp": round(time.time() * 1000),
    }
    client.hset("dramatiq:index.msgs", redis_id, json.dumps(message))
    client.rpush("dramatiq:index", redis_id)


def test_no_log_holds_contents_or_secrets(valkey_url: str, create_database: Callable[..., str], tmp_path: Path) -> None:
    """Given a conversation, every kind of request, and messages that fail in every place, I expect no content and no
    password in any process's log at info; nor a user id, since LTM_LOG_USER_IDS=false."""
    url, database_url = f"{valkey_url.removesuffix('/0')}/{DATABASE_NUMBER}", create_database()
    processes = {}
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        try:
            for spec in service_specs():
                with (tmp_path / f"{spec.name}.log").open("wb") as output:
                    processes[spec.name] = subprocess.Popen(
                        spec.argv,
                        env=environment(url, database_url, spec.name, LTM_LOG_USER_IDS="false"),
                        cwd=ROOT,
                        stdout=output,
                        stderr=output,
                    )
            wait_until(
                lambda: all(client.exists(alive_key(name)) for name in SERVICES),
                WITHIN_S,
                "a heartbeat of every process",
            )
            converse(client)
        finally:
            for process in processes.values():
                process.send_signal(signal.SIGTERM)
            for process in processes.values():
                try:
                    process.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    logs = {name: (tmp_path / f"{name}.log").read_text() for name in SERVICES}
    for name, text in logs.items():
        for secret in [*MARKS.values(), *PASSWORDS, USER]:
            line = next((line for line in text.splitlines() if secret in line), None)
            assert line is None, f"{name} logged {secret}: {line}"
    everything = "\n".join(logs.values())
    # What an operator needs: user, request and duration
    responded = [json.loads(line) for line in everything.splitlines() if '"responded"' in line]
    assert all({"request_id", "user_id", "success"} <= set(line) for line in responded)
    # And the failures that could have leaked contents did occur
    events = {json.loads(line)["event"].split(" ")[0] for line in everything.splitlines() if line}
    assert {"rejected", "message_failed", "provider_failed", "actor_failed", "Failed"} <= events
    assert [line for line in responded if line.get("type") == "search" and line["worked_ms"] > 0]
