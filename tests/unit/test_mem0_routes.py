"""The door of Mem0's clients without a stack: its routes, who may, bodies, and errors in Mem0's shape."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis.asyncio
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient
from keepsake_client import AsyncClient
from starlette.routing import Mount

from services.gateway.access import ALL_RIGHTS, Caller, Right
from services.gateway.app import Gateway, create_app
from services.gateway.mem0_api import operations
from services.gateway.mem0_api.door import PREFIX, open_mem0_door
from services.gateway.mem0_api.ids import EventId, MemoryId
from services.gateway.mem0_api.refused import REFUSED
from services.runtime.settings import Settings
from tests.served_gateway import Keys

UUID = "5d1c0000-0000-8000-8000-000000000001"
OF_U1 = str(MemoryId(UUID, "u1"))
#: What mem0ai 2.2 asks for. A release that asks for more needs a route, or an answer in words, for each.
ASKED = {
    ("GET", "/v1/ping/"),
    ("POST", "/v3/memories/add/"),
    ("POST", "/v3/memories/search/"),
    ("POST", "/v3/memories/"),
    ("DELETE", "/v1/memories/"),
    ("GET", "/v1/memories/{}/"),
    ("PUT", "/v1/memories/{}/"),
    ("DELETE", "/v1/memories/{}/"),
    ("GET", "/v1/memories/{}/history/"),
    ("PUT", "/v1/batch/"),
    ("DELETE", "/v1/batch/"),
    ("GET", "/v1/entities/"),
    ("DELETE", "/v2/entities/{}/{}/"),
    ("GET", "/v2/entities/user/{}/profile/"),
}
REFUSED_IN_WORDS = {
    ("POST", "/v1/exports/"),
    ("POST", "/v1/exports/get/"),
    ("POST", "/v1/summary/"),
    ("POST", "/v1/feedback/"),
    ("POST", "/v2/profiles/jobs/"),
    ("GET", "/v2/profiles/jobs/{}/"),
    ("GET", "/v2/profiles/settings/"),
    ("POST", "/v2/profiles/settings/"),
    ("POST", "/api/v1/orgs/organizations/{}/projects/"),
    ("GET", "/api/v1/orgs/organizations/{}/projects/{}/"),
    ("PATCH", "/api/v1/orgs/organizations/{}/projects/{}/"),
    ("DELETE", "/api/v1/orgs/organizations/{}/projects/{}/"),
    ("GET", "/api/v1/orgs/organizations/{}/projects/{}/members/"),
    ("POST", "/api/v1/orgs/organizations/{}/projects/{}/members/"),
    ("PUT", "/api/v1/orgs/organizations/{}/projects/{}/members/"),
    ("DELETE", "/api/v1/orgs/organizations/{}/projects/{}/members/"),
    ("GET", "/api/v1/webhooks/projects/{}/"),
    ("POST", "/api/v1/webhooks/projects/{}/"),
    ("PUT", "/api/v1/webhooks/{}/"),
    ("DELETE", "/api/v1/webhooks/{}/"),
}

#: What may do everything.
MASTER = Caller("master", ALL_RIGHTS)


@pytest.fixture(scope="module")
def keys() -> Keys:
    """The callers by key, to which a test adds its own."""
    return Keys({"master": MASTER})


@pytest.fixture(scope="module")
def door(keys: Keys) -> Iterator[TestClient]:
    """The application on no Redis: what gets past the checks of the gateway is answered `unavailable`."""
    nowhere = "redis://127.0.0.1:1"
    gateway = Gateway(Settings(), AsyncClient(nowhere), redis.asyncio.Redis.from_url(nowhere), keys)
    app = create_app(gateway, [open_mem0_door])
    headers = {"Authorization": "Token master"}
    with TestClient(app, f"http://testserver{PREFIX}", headers=headers, raise_server_exceptions=False) as client:
        yield client


def asked_by(module: str) -> set[tuple[str, str]]:
    """The methods and paths that a file of Mem0's client asks for, with `{}` for what varies."""
    found = importlib.util.find_spec("mem0")
    assert found is not None
    assert found.origin is not None
    tree = ast.parse((Path(found.origin).parent / "client" / module).read_text())
    constants = {
        target.id: str(node.value.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return {
        (method, "/" + path.lstrip("/"))
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        if ast.unparse(call.func.value).endswith("client")
        and call.func.attr in ("get", "post", "put", "patch", "delete", "request")
        for method, path in [_asked(call, call.func.attr, constants)]
        if path
    }


def _asked(call: ast.Call, verb: str, constants: dict[str, str]) -> tuple[str, str]:
    arguments = list(call.args)
    method = verb.upper()
    if verb == "request":
        method = ast.literal_eval(arguments.pop(0))
    match arguments[0]:
        case ast.Constant(value=str(path)):
            return method, path
        case ast.Name(id=name):  # that of a job is given, or made of the constant
            return method, constants.get(name, "/v2/profiles/jobs/{}/" if name == "path" else "")
        case ast.JoinedStr(values=parts):
            return method, "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
    raise AssertionError(f"a path that is read in no way yet: {ast.unparse(call)}")


def test_what_mem0_s_client_asks_for_is_known() -> None:
    """Given the source of the installed client, I expect the routes above: a release that changes them is looked at."""
    assert asked_by("main.py") | asked_by("project.py") == ASKED | REFUSED_IN_WORDS


@pytest.mark.parametrize(("method", "path"), sorted(ASKED | REFUSED_IN_WORDS))
def test_every_route_wants_a_key(door: TestClient, method: str, path: str) -> None:
    """Given no key, or a wrong one, I expect 401 of each route, in the shape that the client shows."""
    for key in ("Token wrong", ""):
        response = door.request(method, path.replace("{}", "x"), headers={"Authorization": key}, json=BODIES.get(path))

        assert response.status_code == 401
        assert "ltm key create" in response.json()["detail"]


#: Bodies that are valid, so that a route is not refused for them.
BODIES: dict[str, Any] = {
    "/v3/memories/add/": {"messages": "tea", "user_id": "u1"},
    "/v3/memories/search/": {"query": "tea", "filters": {"user_id": "u1"}},
    "/v3/memories/": {"filters": {"user_id": "u1"}},
    "/v1/memories/{}/": {"text": "tea"},
    "/v1/batch/": {"memories": [{"memory_id": OF_U1, "text": "tea"}]},
}


@pytest.mark.parametrize(("method", "path"), sorted(REFUSED_IN_WORDS))
def test_what_is_not_supported_is_answered_in_words(door: TestClient, method: str, path: str) -> None:
    """Given a route that Keepsake has nothing for, I expect 501 and what there is in its place."""
    response = door.request(method, path.replace("{}", "x"), json={})

    assert (response.status_code, response.json()["code"]) == (501, "not_supported")
    assert response.json()["detail"] in {words for _, words in REFUSED.values()}


#: What each route wants, besides those that ask nothing of the wire.
RIGHTS = {
    ("POST", "/v3/memories/add/"): Right.TELL,
    ("POST", "/v1/memories/"): Right.TELL,
    ("POST", "/memories"): Right.TELL,
    ("POST", "/v3/memories/search/"): Right.SEARCH,
    ("POST", "/v2/memories/search/"): Right.SEARCH,
    ("POST", "/v1/memories/search/"): Right.SEARCH,
    ("POST", "/search"): Right.SEARCH,
    ("POST", "/v3/memories/"): Right.READ,
    ("POST", "/v2/memories/"): Right.READ,
    ("GET", "/v1/memories/"): Right.READ,
    ("GET", "/memories"): Right.READ,
    ("GET", "/v1/memories/{memory_id}/"): Right.READ,
    ("GET", "/memories/{memory_id}"): Right.READ,
    ("GET", "/v1/memories/{memory_id}/history/"): Right.READ,
    ("GET", "/memories/{memory_id}/history"): Right.READ,
    ("GET", "/v1/event/{event_id}/"): Right.READ,
    ("GET", "/v2/entities/user/{name}/profile/"): Right.READ,
    ("PUT", "/v1/memories/{memory_id}/"): Right.WRITE,
    ("PUT", "/memories/{memory_id}"): Right.WRITE,
    ("PUT", "/v1/batch/"): Right.WRITE,
    ("DELETE", "/v1/memories/{memory_id}/"): Right.DELETE,
    ("DELETE", "/memories/{memory_id}"): Right.DELETE,
    ("DELETE", "/v1/batch/"): Right.DELETE,
    ("DELETE", "/v1/memories/"): Right.DELETE,
    ("DELETE", "/memories"): Right.DELETE,
    ("DELETE", "/v2/entities/{kind}/{name}/"): Right.FORGET,
    ("DELETE", "/v1/entities/{kind}/{name}/"): Right.FORGET,
}
NAMES = {"memory_id": OF_U1, "event_id": str(EventId("0" * 32, 1, 5, "u1")), "kind": "user", "name": "u1"}


@pytest.mark.parametrize(("method", "path"), RIGHTS)
def test_a_route_wants_its_right_and_the_user_s_key(door: TestClient, keys: Keys, method: str, path: str) -> None:
    """Given a key without the right, or of another user, I expect 403; given both, that the wire is asked."""
    right = RIGHTS[method, path]
    keys.callers |= {
        "without": Caller("without", ALL_RIGHTS - {right}),
        "other": Caller("other", ALL_RIGHTS, user="u2"),
        "prefix": Caller("prefix", ALL_RIGHTS, users="team-"),
        "right": Caller("right", frozenset({right}), user="u1"),
    }
    bodies: dict[Right, Any] = {
        Right.TELL: {"messages": "tea", "user_id": "u1"},
        Right.SEARCH: {"query": "tea", "filters": {"user_id": "u1"}},
        Right.READ: {"filters": {"user_id": "u1"}},
    }
    params = {"user_id": "u1"} if method in ("GET", "DELETE") and path.rstrip("/").endswith("memories") else {}
    body = BODIES["/v1/batch/"] if "batch" in path else None if params else bodies.get(right, {"text": "tea"})

    def answered(key: str) -> tuple[int, str]:
        headers = {"Authorization": f"Token {key}"}
        response = door.request(method, path.format(**NAMES), params=params, headers=headers, json=body)
        return response.status_code, response.json()["code"]

    assert [answered(key) for key in ("without", "other", "prefix")] == [(403, "forbidden")] * 3
    assert answered("right") == (503, "unavailable")


def test_the_rights_of_every_route_are_tested(door: TestClient) -> None:
    """Given the routes of the door, I expect each among those above, those without the wire, or those refused."""
    mount = next(route for route in cast(FastAPI, door.app).routes if isinstance(route, Mount) and route.path == PREFIX)
    paths = cast(FastAPI, mount.app).openapi()["paths"]
    routes = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    refused = {(method, path.replace(":path", "")) for path, (methods, _) in REFUSED.items() for method in methods}

    assert routes == RIGHTS.keys() | refused | {("GET", "/v1/ping/"), ("GET", "/v1/entities/")}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v3/memories/search/", {"query": "x", "filters": {"user_id": "*"}}),
        ("POST", "/v3/memories/search/", {"query": "x", "filters": {"user_id": "u1"}, "top_k": 0}),
        ("POST", "/v3/memories/search/", {"query": "x", "filters": {"user_id": "u1"}, "threshold": 2}),
        ("POST", "/v3/memories/search/", {"query": "x", "filters": {"user_id": "u1"}, "sieve": 2}),
        ("POST", "/search", {"query": "x", "user_id": "u1", "filters": 5}),
        ("POST", "/v3/memories/?page=0", {"filters": {"user_id": "u1"}}),
        ("POST", "/v3/memories/?page_size=x", {"filters": {"user_id": "u1"}}),
        ("POST", "/v3/memories/?run_id=s1", {"filters": {"user_id": "u1"}}),
        ("POST", "/search?run_id=s1", {"query": "x", "user_id": "u1"}),
        ("POST", "/v3/memories/add/?run_id=s1", {"messages": "x", "user_id": "u1"}),
        ("GET", "/memories?user_id=u1&sieve=2", None),
        ("GET", "/memories?user_id=u1", {"filters": {"run_id": "s1"}}),
        ("GET", "/memories?user_id=u1&user_id=u2", None),
        ("DELETE", "/v1/memories/", None),
        ("DELETE", "/v1/memories/?user_id=*", None),
        ("DELETE", "/v1/memories/?user_id=u1&filters=x", None),
        ("DELETE", "/memories?agent_id=luna", None),
        ("DELETE", "/v1/memories/?user_id=u1", {"filters": {"run_id": "s1"}}),
        ("DELETE", "/memories?user_id=u1", {"run_id": "s1"}),
        ("DELETE", "/memories?user_id=u1&run_id=s1&run_id=s2", None),
        ("GET", f"/v1/memories/{UUID}/", None),
        ("PUT", f"/v1/memories/{OF_U1}/", {"text": "x", "timestamp": 5}),
        ("PUT", "/v1/batch/", {"memories": []}),
        ("PUT", "/v1/batch/", {"memories": [{"memory_id": OF_U1, "text": "x"}, {"memory_id": "x", "text": "x"}]}),
        ("DELETE", "/v1/batch/", {"memories": [{"memory_id": "x"}]}),
        ("POST", "/memories", {"messages": "x", "agent_id": "luna"}),
        ("POST", "/memories", [1]),
    ],
)
def test_a_request_that_is_none_is_refused_before_the_wire(door: TestClient, method: str, path: str, body: Any) -> None:
    """Given a request that says too little, or what is not known, I expect 400 in words: nothing is passed over."""
    response = door.request(method, path, json=body)

    assert response.status_code == 400
    assert response.json()["detail"]


def test_parameters_of_the_platform_select_nothing(door: TestClient) -> None:
    """Given the organization and project that earlier clients send in the URL, I expect the wire to be asked."""
    response = door.post("/v2/memories/?org_id=o&project_id=p", json={"filters": {"user_id": "u1"}})

    assert (response.status_code, response.json()["code"]) == (503, "unavailable")


@pytest.mark.parametrize(
    "body", ["[" * 100_000, '{"a":' * 1_000, '{"query": "x", "filters": {"\\ud800": NaN}}', "\xff", ""]
)
def test_a_body_that_is_no_json_is_refused(door: TestClient, body: str) -> None:
    """Given hostile bytes, I expect 400."""
    response = door.post("/search", content=body.encode("latin-1"), headers={"Content-Type": "application/json"})

    assert response.status_code == 400
    assert response.json()["detail"]


def test_a_fault_is_answered_in_mem0_s_shape(door: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a fault of the gateway's own, I expect 500 in the shape that the clients read, and nothing of its cause."""

    async def fail(*_: Any) -> None:
        raise ZeroDivisionError("hunter2")

    monkeypatch.setattr(operations, "get", fail)

    with structlog.testing.capture_logs() as logged:
        response = door.get(f"/v1/memories/{OF_U1}/")

    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert [line["event"] for line in logged if line["log_level"] == "error"]
    assert response.json()["detail"]
    assert "hunter2" not in response.text


def test_what_is_no_route_is_answered_in_mem0_s_shape(door: TestClient) -> None:
    assert "no route of Mem0's" in door.get("/v9/memories/").json()["detail"]
    assert door.patch("/memories").status_code == 405


def test_a_user_s_id_of_any_form_is_answered(door: TestClient, keys: Keys) -> None:
    """Given a key of a user whose id UTF-8 cannot represent, I expect that user among the users, and no other."""
    keys.callers["odd"] = Caller("odd", ALL_RIGHTS, user="\ud800/用户")
    one = door.get("/v1/entities/", headers={"Authorization": "Token odd"})
    all_users = door.get("/v1/entities/")

    assert [user["name"] for user in json.loads(one.content)["results"]] == ["\ud800/用户"]
    assert (all_users.status_code, MASTER.user) == (501, None)
    assert "do not list users" in all_users.json()["detail"]
