"""Every route of the gateway with no key, a wrong one, and one that does not permit what is asked.

The routes are those of the application, so that one which is added later without authorization fails here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fakeredis
import httpx
import pytest
from fastapi import FastAPI
from keepsake_client import AsyncClient
from keepsake_client.protocol import LTMResponse, Memory
from starlette.testclient import TestClient

from services.gateway.__main__ import DOORS
from services.gateway.access import ALL_RIGHTS, Right
from services.gateway.app import CallerOf, Door, Gateway, GatewayOf, create_app
from services.gateway.authentication import Authentication
from services.gateway.key_file import KeyFile
from services.gateway.keys import KeyStore
from services.runtime.settings import load_settings
from tests.unit.gateway_routes import MEMORY_ID, PUBLIC, Route, Sample, routes_of

#: Of a memory that belongs to another character.
PRIVATE = "mira alone knows this"
#: Answers of a route that serves nothing: it says that there is nothing, or that it does not do this.
SERVES_NOTHING = {404, 405, 501}
NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Recorder(AsyncClient):
    """A client of the wire that keeps what it is asked for, and answers with a memory of no character.

    A single memory, asked for by its id, belongs to the character mira.
    """

    def __init__(self) -> None:
        super().__init__("redis://127.0.0.1:1/0")
        self.asked: list[tuple[str, str, Mapping[str, Any]]] = []

    async def request(
        self,
        request_type: Any,
        user_id: str,
        data: Mapping[str, Any],
        *,
        deadline_ms: int | None = None,
        request_id: str | None = None,
    ) -> LTMResponse:
        self.asked.append((request_type, user_id, data))
        one = request_type == "memory_get"
        memory = Memory(
            id=MEMORY_ID,
            content=PRIVATE if one else "a cat",
            score=0.5,
            timestamp=86_400,
            user_id=user_id,
            agent_id="mira" if one else None,
        )
        return LTMResponse(
            request_id=request_id or "r",
            user_id=user_id,
            success=True,
            memories=[memory],
            profile_version=1,
            count=1,
            known=0,
            deleted=0,
            records=[],
            context="",
            history=[],
        )

    async def remember(self, user_id: str, content: str, **options: Any) -> str:
        self.asked.append(("event", user_id, options))
        return "m"

    @property
    def users(self) -> set[str]:
        """The users that it was asked about."""
        return {user for _, user, data in self.asked for user in (user, *(data.get("also") or ()))}

    @property
    def agents(self) -> set[Any]:
        """The characters that it was asked about; True for all of them."""
        return {data.get("all_agents") or data.get("agent_id") for _, _, data in self.asked}


class Matrix:
    """The application behind keys of every kind.

    Args:
        directory: of the key file.
        doors: of the application.
    """

    def __init__(self, directory: Path, doors: tuple[Door, ...]) -> None:
        self.ltm = Recorder()
        file = KeyFile(directory / "keys.json", lambda: NOW - timedelta(days=2))
        self.keys = {
            "anna's": file.create("annas", tuple(Right), user="anna"),
            "ben's": file.create("bens", tuple(Right), user="ben"),
            "of another prefix": file.create("prefixed", tuple(Right), users="team-"),
            "luna's": file.create("lunas", tuple(Right), user="anna", agent="luna"),
            "expired": file.create("expired", tuple(Right), expires=NOW - timedelta(days=1)),
            "revoked": file.create("revoked", tuple(Right)),
            "rotated": file.create("rotated", tuple(Right)),
            **{str(right): file.create(f"may-{right}", (right,), user="anna") for right in Right},
        }
        file.revoke("revoked")
        file.rotate("rotated", timedelta(hours=1))
        store = KeyStore(file.path, lambda: None, lambda: NOW)
        store.refresh()
        authentication = Authentication(store, None, 0, proxied=False, local=True)
        # Nothing listens at this address of a chat model.
        settings = load_settings(chat_base_url="http://127.0.0.1:9/v1", openai_api_key="sk-none")
        redis = fakeredis.FakeAsyncRedis()
        self.app = create_app(Gateway(settings, self.ltm, redis, authentication), doors)
        self.routes = [route for route in routes_of(self.app) if route.path not in PUBLIC]

    def ask(self, client: TestClient, sample: Sample, key: str | None) -> httpx.Response:
        """The response to a request with a key of this name, or with these words as the key."""
        self.ltm.asked.clear()
        bearer = {} if key is None else {"authorization": f"Bearer {self.keys.get(key, key)}"}
        response: Any = client.request(
            sample.method,
            sample.path,
            params=dict(sample.query),
            headers={**sample.headers, **bearer},
            json=sample.json,
            content=sample.content,
        )
        found: httpx.Response = response
        return found


def without_valid_key(matrix: Matrix, client: TestClient) -> list[str]:
    """The routes that answer without a valid key anything but 401, or ask the memory."""
    found = []
    for route in matrix.routes:
        for key in (None, "", "wrong", "ltm_0123456789abcdef_" + "x" * 43, "expired", "revoked", "rotated"):
            status = matrix.ask(client, route.sample("anna"), key).status_code
            if status != 401 or matrix.ltm.asked:
                found.append(f"{route.method} {route.path} with {key!r}: {status}")
    return found


def with_the_key(matrix: Matrix, client: TestClient) -> list[str]:
    """The routes whose request is refused although the key permits it: the others' refusals would prove nothing."""
    found = []
    for route in matrix.routes:
        response = matrix.ask(client, route.sample("anna"), "anna's")
        if response.status_code in {400, 401, 403, 415, 422, 500}:
            found.append(f"{route.method} {route.path}: {response.status_code} {response.text[:300]}")
    return found


def without_the_right(matrix: Matrix, client: TestClient) -> dict[str, set[Right]]:
    """The rights that permit each route, as each right alone shows."""
    permitted = {}
    for route in matrix.routes:
        statuses = {right: matrix.ask(client, route.sample("anna"), right).status_code for right in Right}
        if set(statuses.values()) <= SERVES_NOTHING:
            continue
        permitted[f"{route.method} {route.path}"] = {right for right, status in statuses.items() if status != 403}
    return permitted


def about_another_user(matrix: Matrix, client: TestClient) -> list[str]:
    """The routes that ask the memory about a user whom the key is not for, or do not refuse one that is named."""
    found = []
    for route in matrix.routes:
        sample = route.sample("anna")
        names_one = sample != route.sample("ben")
        for key in ("ben's", "of another prefix"):
            status = matrix.ask(client, sample, key).status_code
            if "anna" in matrix.ltm.users or (names_one and status not in {403, *SERVES_NOTHING}):
                found.append(f"{route.method} {route.path} with a key {key}: {status}, asked {matrix.ltm.asked}")
    return found


def about_another_agent(matrix: Matrix, client: TestClient) -> list[str]:
    """The routes that show or change what is another character's than the key's."""
    found = []
    for route in matrix.routes:
        sample = route.sample("anna", "mira")
        names_one = sample != route.sample("anna")
        response = matrix.ask(client, sample, "luna's")
        reached = matrix.ltm.agents & {"mira", True} or PRIVATE in response.text
        changed = {kind for kind, _, data in matrix.ltm.asked if data.get("id") or data.get("ids")} - {"memory_get"}
        if reached or changed or (names_one and response.status_code not in {403, *SERVES_NOTHING}):
            found.append(f"{route.method} {route.path} : {response.status_code}, asked {matrix.ltm.asked}")
    return found


def sample_door(app: FastAPI, _: Gateway) -> None:
    """A door as the others are, for this test of the test."""

    @app.get("/sample/{memory_id}")
    async def sample(
        memory_id: str, caller: CallerOf, gateway: GatewayOf, user_id: str | None = None, agent_id: str | None = None
    ) -> dict[str, Any]:
        caller.check(Right.READ)
        data = {"agent_id": caller.agent_of(agent_id)}
        response = await gateway.ltm.request("memory_list", caller.user_of(user_id), data)
        return response.model_dump()


def careless_door(app: FastAPI, _: Gateway) -> None:
    """A door whose routes forget something."""

    @app.get("/no-caller")
    async def no_caller(gateway: GatewayOf, user_id: str) -> dict[str, Any]:
        return (await gateway.ltm.request("memory_list", user_id, {})).model_dump()

    @app.get("/no-right")
    async def no_right(caller: CallerOf, gateway: GatewayOf, user_id: str) -> dict[str, Any]:
        return (await gateway.ltm.request("memory_list", caller.user_of(user_id), {})).model_dump()

    @app.get("/no-user")
    async def no_user(caller: CallerOf, gateway: GatewayOf, user_id: str, agent_id: str = "") -> dict[str, Any]:
        caller.check(Right.READ)
        return (await gateway.ltm.request("memory_list", user_id, {"agent_id": agent_id})).model_dump()

    @app.get("/no-agent/{memory_id}")
    async def no_agent(memory_id: str, caller: CallerOf, gateway: GatewayOf) -> dict[str, Any]:
        caller.check(Right.READ)
        return (await gateway.ltm.request("memory_get", caller.user_of(None), {"id": memory_id})).model_dump()


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("keys"), (*DOORS, sample_door))


@pytest.fixture(scope="module")
def client(matrix: Matrix) -> Iterator[TestClient]:
    with TestClient(matrix.app, "http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def test_every_route_wants_a_valid_key(matrix: Matrix, client: TestClient) -> None:
    """Given no key, a wrong, an expired, a revoked or a rotated one, I expect 401 of every route, and nothing asked of
    the memory."""
    assert without_valid_key(matrix, client) == []


def test_every_route_takes_its_sample_with_a_key(matrix: Matrix, client: TestClient) -> None:
    """Given a key with every right for the user, I expect no route to refuse the request that the others are tested
    with: a new route needs an example in its description, or a sample in tests/unit/gateway_routes.py."""
    assert with_the_key(matrix, client) == []


def test_every_route_wants_a_right(matrix: Matrix, client: TestClient) -> None:
    """Given keys with one right each, I expect every route permitted by some of them, and not by all."""
    permitted = without_the_right(matrix, client)

    assert [route for route, rights in permitted.items() if not rights or rights == ALL_RIGHTS] == []


def test_no_route_is_about_another_user(matrix: Matrix, client: TestClient) -> None:
    """Given a key for another user, or for a prefix of others, I expect 403 wherever a route names the user, and
    nothing asked of the memory about that user."""
    assert about_another_user(matrix, client) == []


def test_no_route_is_about_another_agent(matrix: Matrix, client: TestClient) -> None:
    """Given a key for one character, I expect 403 wherever a route names another, its memory neither shown nor
    changed by its id, and nothing asked about it or about all characters."""
    assert about_another_agent(matrix, client) == []


def test_a_careless_route_is_found(tmp_path: Path) -> None:
    """Given routes that look at no key, right, user or character, I expect each of them found by the test that is for
    it."""
    matrix = Matrix(tmp_path, (careless_door, sample_door))
    with TestClient(matrix.app, "http://127.0.0.1") as client:
        assert {line.split()[1] for line in without_valid_key(matrix, client)} == {"/no-caller"}
        assert with_the_key(matrix, client) == []
        permitted = without_the_right(matrix, client)
        assert {route.split()[1] for route, rights in permitted.items() if rights == ALL_RIGHTS} == {
            "/no-caller",
            "/no-right",
        }
        assert permitted["GET /sample/{memory_id}"] == {Right.READ}
        assert {line.split()[1] for line in about_another_user(matrix, client)} == {"/no-caller", "/no-user"}
        assert {line.split()[1] for line in about_another_agent(matrix, client)} == {
            "/no-user",
            "/no-agent/{memory_id}",
        }


def test_the_routes_are_found(matrix: Matrix) -> None:
    """Given the application with the door of this test, I expect its route among those that are tested."""
    assert [route.path for route in matrix.routes if isinstance(route, Route)][-1] == "/sample/{memory_id}"
