"""The HTTP API: what each route asks on the wire, what it answers, and for whom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from services.gateway.access import ALL_RIGHTS, OPEN, Caller, Right
from services.gateway.api import api
from tests.unit.gateway_app import MEMORY, GatewayApp, gateway_app

ID = MEMORY["id"]
RECORD = '{"kind": "memory", "content": "x"}\n'


@pytest.fixture(scope="module")
def app() -> Iterator[GatewayApp]:
    with gateway_app(api) as app:
        yield app


@pytest.fixture
def http(app: GatewayApp) -> GatewayApp:
    app.reset()
    return app


#: Every route that asks the memory once: method, path, body; right; what is asked; what is answered.
ROUTES: list[tuple[str, str, Any, Right, str, dict[str, Any], Any]] = [
    (
        "POST", "/v1/memories/search", {"query": "cat?", "limit": 3, "filters": {"since": "2024-04-05"}}, Right.SEARCH,
        "search", {"query": "cat?", "limit": 3, "filters": {"since": "2024-04-05"}, "all_agents": False}, "memories",
    ),
    (
        "GET", "/v1/memories?contains=cat&order=oldest&limit=7", None, Right.READ,
        "memory_list", {"filters": {"contains": "cat"}, "order": "oldest", "limit": 7, "all_agents": False}, "memories",
    ),
    (
        "POST", "/v1/memories", {"content": "x", "metadata": {"a": 1}}, Right.WRITE,
        "add", {"content": "x", "metadata": {"a": 1}}, "memory",
    ),
    ("GET", f"/v1/memories/{ID}", None, Right.READ, "memory_get", {"id": ID}, "memory"),
    (
        "PATCH", f"/v1/memories/{ID}", {"content": "y"}, Right.WRITE,
        "memory_update", {"content": "y", "id": ID}, "memory",
    ),
    ("DELETE", f"/v1/memories/{ID}", None, Right.DELETE, "memory_delete", {"ids": [ID]}, "count"),
    (
        "POST", "/v1/memories/delete", {"filters": {"source": "ai"}, "dry_run": True}, Right.DELETE,
        "memory_delete", {"filters": {"source": "ai"}, "dry_run": True}, "count",
    ),
    (
        "POST", "/v1/context", {"query": "cat?", "max_chars": 900}, Right.SEARCH,
        "context", {"query": "cat?", "max_chars": 900, "all_agents": False}, "context",
    ),
    ("GET", "/v1/profile", None, Right.READ, "profile_get", {}, "user_profile"),
    (
        "PATCH", "/v1/profile", {"name": None}, Right.WRITE,
        "profile_update", {"updates": {"name": None}}, "user_profile",
    ),
    ("DELETE", "/v1/users?dry_run=true", None, Right.FORGET, "user_forget", {"dry_run": True}, "count"),
]  # fmt: skip
NAMES = [f"{method} {path.partition('?')[0].replace(ID, 'ID')}" for method, path, *_ in ROUTES]
#: The others: those that ask for several things, or publish.
OTHERS: list[tuple[str, str, Any, Right]] = [
    ("POST", "/v1/events", {"content": "x", "source": "user"}, Right.TELL),
    ("GET", "/v1/users/export", None, Right.EXPORT),
    ("POST", "/v1/users/import", RECORD, Right.IMPORT),
    ("GET", "/v1/users", None, Right.READ),
    ("GET", "/v1/traces", None, Right.TRACE),
]
#: Of these, the requests that name no user.
NAMELESS = [("GET", "/v1/users"), ("GET", "/v1/traces")]
EVERY = [*(route[:4] for route in ROUTES), *OTHERS]
EVERY_NAME = [*NAMES, *(f"{method} {path}" for method, path, *_ in OTHERS)]


def send(http: GatewayApp, method: str, path: str, body: Any, user_id: str | None = "u1") -> Any:
    """Send a request about a user, who is named where such a request names one."""
    given: dict[str, Any] = {}
    if isinstance(body, str):
        given["content"] = body
    elif body is not None:
        given["json"] = body
    if user_id is not None and (method, path) not in NAMELESS:
        if isinstance(body, dict) and "profile" not in path:
            given["json"] = {**body, "user_id": user_id}
        else:
            path += ("&" if "?" in path else "?") + f"user_id={user_id}"
    return http.send(method, path, **given)


@pytest.mark.parametrize(
    ("method", "path", "given"),
    [
        ("DELETE", "/v1/users?user_id=u1", {"json": {"dry_run": True}}),
        ("DELETE", "/v1/users?user_id=u1", {"headers": {"Transfer-Encoding": "chunked"}}),
        ("DELETE", "/v1/users?user_id=u1&dry_run=true&dry_run=false", {}),
        ("DELETE", f"/v1/memories/{ID}?user_id=u1", {"json": {"agent_id": "a1"}}),
        ("POST", "/v1/memories/delete?dry_run=true", {"json": {"user_id": "u1", "ids": [ID]}}),
        ("POST", "/v1/events?user_id=u1", {"json": {"user_id": "u2", "content": "x", "source": "user"}}),
    ],
)
def test_what_is_in_the_wrong_place_is_an_error(
    http: GatewayApp, method: str, path: str, given: dict[str, Any]
) -> None:
    """Given a field where a route does not look, or twice, I expect 400 and nothing asked: it may be `dry_run`."""
    response = http.send(method, path, **given)

    assert (response.status_code, response.json()["code"], http.memory.requests) == (400, "invalid_request", [])


@pytest.mark.parametrize(("method", "path", "body", "right", "asked", "data", "field"), ROUTES, ids=NAMES)
def test_a_route_asks_once_and_answers_with_the_fields_of_the_response(
    http: GatewayApp, method: str, path: str, body: Any, right: Right, asked: str, data: dict[str, Any], field: str
) -> None:
    """Given a request, I expect its one request on the wire, as it was sent, and its answer in JSON."""
    response = send(http, method, path, body)

    assert response.is_success, response.text
    assert http.memory.requests == [(asked, "u1", data)]
    assert field in response.json()


@pytest.mark.parametrize(("method", "path", "body", "right"), EVERY, ids=EVERY_NAME)
def test_a_key_without_the_right_is_refused(http: GatewayApp, method: str, path: str, body: Any, right: Right) -> None:
    """Given a key with every right but this one, I expect 403 and nothing asked."""
    http.keys.of = replace(OPEN, rights=ALL_RIGHTS - {right})

    response = send(http, method, path, body)

    assert (response.status_code, response.json()["code"], http.memory.requests) == (403, "forbidden", [])


@pytest.mark.parametrize(("method", "path", "body"), [each[:3] for each in EVERY[:-2]], ids=EVERY_NAME[:-2])
def test_a_key_of_one_user_does_not_reach_another(http: GatewayApp, method: str, path: str, body: Any) -> None:
    """Given a key of u1 and a request about u2, I expect 403 and nothing asked; without a user, that of the key."""
    http.keys.of = Caller("k", ALL_RIGHTS, user="u1")

    assert send(http, method, path, body, "u2").status_code == 403
    assert http.memory.requests == []
    assert send(http, method, path, body, None).is_success
    assert {user for _, user, _ in http.memory.requests} <= {"u1"}


def test_a_search_of_several_users_asks_for_each(http: GatewayApp) -> None:
    """Given a key of the users of a prefix, I expect `also` to be held to it."""
    http.keys.of = Caller("k", ALL_RIGHTS, users="game:")
    body = {"user_id": "game:1", "query": "x"}

    assert http.send("POST", "/v1/memories/search", json={**body, "also": ["other"]}).status_code == 403
    assert http.send("POST", "/v1/memories/search", json={**body, "also": ["game:2"]}).is_success
    assert [data["also"] for _, _, data in http.memory.requests] == [["game:2"]]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/memories/search", {"query": "x", "agent_id": "other"}),
        ("POST", "/v1/memories/search", {"query": "x", "all_agents": True}),
        ("POST", "/v1/context", {"query": "x", "all_agents": "true"}),
        ("GET", "/v1/memories?all_agents=1", None),
        ("POST", "/v1/memories", {"content": "x", "agent_id": "other"}),
        ("POST", "/v1/memories/delete", {"ids": [ID], "all_agents": True}),
        ("POST", "/v1/events", {"content": "x", "source": "ai", "agent_id": "other"}),
        ("GET", "/v1/profile?agent_id=other", None),
        ("GET", "/v1/users", None),
        ("DELETE", "/v1/users", None),
        ("GET", "/v1/users/export", None),
        ("POST", "/v1/users/import", RECORD),
        ("GET", "/v1/traces", None),
    ],
)
def test_a_key_of_one_agent_reaches_no_other_and_not_all(http: GatewayApp, method: str, path: str, body: Any) -> None:
    """Given a key of agent a1, I expect 403 for another agent, for all, and for what has no agent."""
    http.keys.of = Caller("k", ALL_RIGHTS, agent="a1")

    assert send(http, method, path, body).status_code == 403
    assert http.memory.requests == []


def test_a_key_of_one_agent_asks_as_that_agent(http: GatewayApp) -> None:
    """Given a key of agent a1 and requests that name none, I expect that agent in each."""
    http.keys.of = Caller("k", ALL_RIGHTS, agent="a1")

    for method, path, body, *_ in ROUTES:
        if "/users" not in path:
            send(http, method, path, body)

    asked = [(kind, data.get("agent_id")) for kind, _, data in http.memory.requests]
    by_id = {"memory_get", "memory_update"}
    assert {agent for kind, agent in asked if kind not in by_id} == {"a1"}
    # An update looks at the memory's agent first.
    assert [kind for kind, _ in asked if kind in by_id] == ["memory_get", "memory_get", "memory_update"]


@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_a_memory_of_another_agent_is_not_found(http: GatewayApp, method: str) -> None:
    """Given a key of agent a1 and the id of a memory of agent a2, I expect 404, and no change."""
    http.keys.of = Caller("k", ALL_RIGHTS, agent="a1")
    http.memory.answer = lambda *_: {"memories": [{**MEMORY, "agent_id": "a2"}]}

    response = send(http, method, f"/v1/memories/{ID}", {"content": "y"} if method == "PATCH" else None)

    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert [kind for kind, *_ in http.memory.requests] == ["memory_get"]


@pytest.mark.parametrize(
    "user_id", ["a/b", "..", "a%2Fb", " u1 ", "anna lee", "用户一", "😀", "a\nb", "*", "a&b=c", "a+b"]
)
def test_an_id_of_a_user_is_any_text(http: GatewayApp, user_id: str) -> None:
    """Given an id with slashes, spaces, newlines or emoji, in a query and in a body, I expect it one to one."""
    http.send("GET", "/v1/profile", params={"user_id": user_id})
    http.send("POST", "/v1/memories", json={"user_id": user_id, "content": "x"})

    assert [user for _, user, _ in http.memory.requests] == [user_id, user_id]


def test_an_id_with_a_lone_surrogate_comes_back(http: GatewayApp) -> None:
    """Given an id that no UTF-8 holds, as JSON may have one, I expect an answer in JSON all the same."""
    http.memory.answer = lambda *_: {"memories": [{**MEMORY, "user_id": "\ud800"}]}
    content = b'{"user_id": "\\ud800", "query": "x"}'

    response = http.send("POST", "/v1/memories/search", content=content, headers={"Content-Type": "application/json"})

    assert json.loads(response.content)["memories"][0]["user_id"] == "\ud800"


def test_ids_are_of_any_agent_where_all_agents_is_false(http: GatewayApp) -> None:
    """Given the ids of memories, and `all_agents` as false, I expect it left out: on the wire it is a scope."""
    http.send("POST", "/v1/memories/delete", json={"user_id": "u1", "ids": [ID], "all_agents": False})

    assert http.memory.requests == [("memory_delete", "u1", {"ids": [ID]})]


def test_a_deadline_is_passed_on(http: GatewayApp) -> None:
    """Given `deadline_ms` in a body or in a query, I expect the wait to have it; without one, the client's own."""
    http.send("POST", "/v1/memories/search", json={"user_id": "u1", "query": "x", "deadline_ms": 250})
    http.send("GET", "/v1/profile?user_id=u1&deadline_ms=300")
    http.send("GET", "/v1/profile?user_id=u1")

    assert http.memory.deadlines == [250, 300, None]


def test_partial_is_returned(http: GatewayApp) -> None:
    """Given a search that had no time for its embedding, I expect the answer to say so."""
    http.memory.answer = lambda *_: {"partial": True}

    assert http.send("POST", "/v1/memories/search", json={"user_id": "u1", "query": "x"}).json()["partial"] is True


def test_the_id_on_the_wire_is_returned(http: GatewayApp) -> None:
    """Given a request with an id of its own, I expect it back, and the one of the wire, which is another."""
    response = http.send("GET", "/v1/profile?user_id=u1", headers={"X-Request-ID": "mine-1"})

    assert response.headers["X-Request-ID"] == "mine-1"
    assert response.headers["X-Keepsake-Request-ID"] == http.memory.ids[0] != "mine-1"


@pytest.mark.parametrize(
    ("if_match", "status", "expected"), [('"3"', 200, 3), ("*", 200, None), (None, 200, None), ("3", 400, "not asked")]
)
def test_a_profile_is_patched_at_the_version_of_its_etag(
    http: GatewayApp, if_match: str | None, status: int, expected: Any
) -> None:
    """Given an `If-Match`, I expect its version to be expected; what is no ETag of a profile is refused."""
    headers = {"If-Match": if_match} if if_match else {}

    response = http.send("PATCH", "/v1/profile?user_id=u1", json={"name": "Anna"}, headers=headers)

    asked = [data.get("expected_version") for _, _, data in http.memory.requests] or ["not asked"]
    assert (response.status_code, asked) == (status, [expected])


def test_a_patch_of_another_version_is_412(http: GatewayApp) -> None:
    """Given a profile that has changed, I expect 412 with a code of its own."""
    http.memory.fails("conflict: expected_version is 3 and the profile is at version 4")

    response = http.send("PATCH", "/v1/profile?user_id=u1", json={"name": "Anna"}, headers={"If-Match": '"3"'})

    assert (response.status_code, response.json()["code"]) == (412, "precondition_failed")


def test_a_profile_that_is_known_is_not_sent_again(http: GatewayApp) -> None:
    """Given the ETag of the present profile, I expect 304 without a body; with another one, the profile."""
    etag = http.send("GET", "/v1/profile?user_id=u1").headers["ETag"]

    known = http.send("GET", "/v1/profile?user_id=u1", headers={"If-None-Match": etag})
    other = http.send("GET", "/v1/profile?user_id=u1", headers={"If-None-Match": '"2"'})

    assert (known.status_code, known.content, other.status_code) == (304, b"", 200)


def test_the_description_has_every_route_with_an_example(http: GatewayApp) -> None:
    """Given /openapi.json, I expect an example of each body and answer, and the errors as problems."""
    schema = http.send("GET", "/openapi.json").json()

    operations = [(path, operation) for path, of in schema["paths"].items() for operation in of.values()]
    assert len(operations) == len(EVERY)
    for path, operation in operations:
        success = next(response for status, response in operation["responses"].items() if status.startswith("2"))
        assert all("example" in content for content in success["content"].values()), path
        for content in operation.get("requestBody", {}).get("content", {}).values():
            examples = {"example", "examples"} & {*content, *content["schema"]}
            assert examples or content["schema"].get("type") == "object", path  # of a form
        assert list(operation["responses"]["504"]["content"]) == ["application/problem+json"]
        assert operation["security"] == [{"bearer": []}, {}]
    assert schema["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
