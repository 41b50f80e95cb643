"""Every route of the gateway with no key, a wrong one, and one that does not permit what is asked.

The routes are those of the application, so that one which is added later without authorization fails here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fakeredis
import httpx
import pytest
from fastapi import FastAPI
from keepsake_client import AsyncClient
from keepsake_client.protocol import LTMResponse, Memory
from structlog.testing import capture_logs

from services.gateway.__main__ import DOORS
from services.gateway.access import Right
from services.gateway.app import CallerOf, Door, Gateway, GatewayOf, create_app
from services.gateway.authentication import Authentication
from services.gateway.key_file import KeyFile
from services.gateway.keys import KeyStore
from services.runtime.settings import load_settings
from tests.unit.gateway_routes import MEMORY_ID, PUBLIC, Sample, routes_of

#: Of a memory that belongs to another character.
PRIVATE = "mira alone knows this"
#: Answers of a route that serves nothing: it says that there is nothing, or that it does not do this.
SERVES_NOTHING = {404, 405, 501}
#: Routes that any valid key may ask for, by intent: what Mem0's clients ask at their start.
NO_RIGHT = {"GET /mem0/v1/ping/"}
NONE = "no key"
#: What is asked with some keys: the user, and the rest of the scope. With all others: anna.
SCOPES: dict[str, tuple[str, dict[str, Any]]] = {
    "ben, also anna": ("ben", {"also": ["anna"]}),
    "luna": ("anna", {"agent_id": "mira"}),
    "luna, all agents": ("anna", {"all_agents": True}),
}
NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Recorder(AsyncClient):
    """A client of the wire that keeps what it is asked for, and answers with a memory of what was said last.

    A single memory, asked for by its id, belongs to the character mira, others to none.
    """

    def __init__(self) -> None:
        super().__init__("redis://127.0.0.1:1/0")
        self.asked: list[tuple[str, str, Mapping[str, Any]]] = []
        self._told = ""

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
            metadata={"message_id": self._told},
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
        self._told = str(options.get("message_id", "m"))
        return self._told


@dataclass(frozen=True)
class Seen:
    """What came of one request.

    Attributes:
        asked: of the memory.
        named: whether the request can name what the key is not for.
    """

    status: int
    text: str
    headers: httpx.Headers
    asked: Sequence[tuple[str, str, Mapping[str, Any]]]
    named: bool

    @property
    def refused(self) -> bool:
        """Whether what was named is refused, or there is nothing to be had; MCP says so in a result."""
        in_words = not self.asked and '"isError":true' in self.text and "forbidden: " in self.text
        return in_words or self.status in {403, *SERVES_NOTHING}


class Matrix:
    """The answers of every route to a key of every kind.

    Args:
        directory: of the key file.
        doors: of the application.
    """

    def __init__(self, directory: Path, doors: tuple[Door, ...]) -> None:
        file = KeyFile(directory / "keys.json", lambda: NOW - timedelta(days=2))
        every = tuple(Right)
        self._keys: dict[str, str | None] = {
            NONE: None,
            "wrong": "ltm_0123456789abcdef_" + "x" * 43,
            "expired": file.create("expired", every, expires=NOW - timedelta(days=1)),
            "revoked": file.create("revoked", every),
            "anna": file.create("annas", every, user="anna"),
            "ben": file.create("bens", every, user="ben"),
            "team": file.create("teams", every, users="team-"),
            "ben, also anna": file.create("ben-also", every, user="ben"),
            "luna": file.create("lunas", every, user="anna", agent="luna"),
            "luna, all agents": file.create("luna-all", every, user="anna", agent="luna"),
            "slow": file.create("slow", every, user="anna", rate=1e-6),
            "metrics": file.create("metrics", (Right.METRICS,), user="anna"),
            "trace": file.create("trace", (Right.TRACE,), user="anna"),
        }
        file.revoke("revoked")
        store = KeyStore(file.path, lambda: None, lambda: NOW)
        store.refresh()
        self._ltm = Recorder()
        # Nothing listens at this address of a chat model.
        settings = load_settings(chat_base_url="http://127.0.0.1:9/v1", openai_api_key="sk-none")
        authentication = Authentication(store, None, 0, proxied=False, local=True)
        self._app = create_app(Gateway(settings, self._ltm, fakeredis.FakeAsyncRedis(), authentication), doors)
        self.seen: dict[tuple[str, str], Seen] = {}
        with capture_logs():
            asyncio.run(self._ask_all())

    def routes(self, found: Callable[[Seen], bool], *keys: str) -> list[str]:
        """The routes whose answer to one of these keys is such, each with the key and the answer."""
        return [
            f"{route} with {key}: {seen.status} {seen.text[:200]}, asked {seen.asked}"
            for (route, key), seen in self.seen.items()
            if key in keys and found(seen)
        ]

    async def _ask_all(self) -> None:
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        async with (
            self._app.router.lifespan_context(self._app),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        ):
            for route in routes_of(self._app):
                if route.path in PUBLIC:
                    continue
                for name, key in self._keys.items():
                    user, scope = SCOPES.get(name, ("anna", {}))
                    sample = route.sample(user, **scope)
                    named = sample != (route.sample(user) if scope else route.sample("ben"))
                    self._ltm.asked = []
                    response = await self._ask(client, sample, key)
                    seen = Seen(response.status_code, response.text, response.headers, self._ltm.asked, named)
                    self.seen[f"{route.method} {route.path}", name] = seen

    async def _ask(self, client: httpx.AsyncClient, sample: Sample, key: str | None) -> httpx.Response:
        bearer = {"authorization": f"Bearer {key}"} if key else {}
        return await client.request(
            sample.method,
            sample.path,
            params=dict(sample.query),
            headers={**sample.headers, **bearer},
            json=sample.json,
            content=sample.content,
        )


def without_valid_key(matrix: Matrix) -> list[str]:
    """The routes that answer without a valid key anything but 401, without what is asked for, or ask the memory."""

    def taken(seen: Seen) -> bool:
        return seen.status != 401 or seen.headers.get("www-authenticate") != "Bearer" or bool(seen.asked)

    return matrix.routes(taken, NONE, "wrong", "expired", "revoked")


def over_the_rate(matrix: Matrix) -> list[str]:
    """The routes that answer a key without another request left anything but 429, without when to come again."""
    return matrix.routes(lambda seen: seen.status != 429 or not seen.headers.get("retry-after"), "slow")


def with_the_key(matrix: Matrix) -> list[str]:
    """The routes whose request is refused although the key permits it: the others' refusals would prove nothing."""
    return matrix.routes(lambda seen: seen.status in {400, 401, 403, 415, 422, 500}, "anna")


def without_the_right(matrix: Matrix) -> list[str]:
    """The routes that neither a key for metrics nor one for traces is refused by: they cannot both be right."""
    permitted = [
        {line.partition(" with ")[0] for line in matrix.routes(lambda seen: not seen.refused, key)}
        for key in ("metrics", "trace")
    ]
    return sorted(permitted[0] & permitted[1] - NO_RIGHT)


def about_another_user(matrix: Matrix) -> list[str]:
    """The routes that ask the memory about a user whom the key is not for, or do not refuse one that is named."""

    def reached(seen: Seen) -> bool:
        users = {one for _, user, data in seen.asked for one in (user, *(data.get("also") or ()))}
        return "anna" in users or (seen.named and not seen.refused)

    return matrix.routes(reached, "ben", "team", "ben, also anna")


def about_another_agent(matrix: Matrix) -> list[str]:
    """The routes that show or change what is another character's than the key's."""

    def reached(seen: Seen) -> bool:
        agents = {data.get("all_agents") or data.get("agent_id") for _, _, data in seen.asked}
        # A deletion with the character reaches no other's memories.
        by_id = {
            kind
            for kind, _, data in seen.asked
            if (data.get("id") or data.get("ids")) and (kind, data.get("agent_id")) != ("memory_delete", "luna")
        } - {"memory_get"}
        return bool(agents & {"mira", True} or by_id) or PRIVATE in seen.text or (seen.named and not seen.refused)

    return matrix.routes(reached, "luna", "luna, all agents")


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


def test_every_route_wants_a_valid_key(matrix: Matrix) -> None:
    """Given no key, a wrong, an expired or a revoked one, I expect 401 of every route, and nothing asked of the
    memory."""
    assert without_valid_key(matrix) == []


def test_every_route_counts_against_the_rate(matrix: Matrix) -> None:
    """Given a key for one request in days, I expect 429 of every route but the first that was asked, with the time to
    wait."""
    assert len(over_the_rate(matrix)) == 1


def test_every_route_takes_its_sample_with_a_key(matrix: Matrix) -> None:
    """Given a key with every right for the user, I expect no route to refuse the request that the others are tested
    with: a new route needs an example in its description, or a sample in tests/unit/gateway_routes.py."""
    assert with_the_key(matrix) == []


def test_every_route_wants_a_right(matrix: Matrix) -> None:
    """Given a key for metrics alone, and one for traces alone, I expect 403 of every route to one of them at least."""
    assert without_the_right(matrix) == []


def test_no_route_is_about_another_user(matrix: Matrix) -> None:
    """Given a key for another user, or for a prefix of others, I expect 403 wherever a route names the user, and
    nothing asked of the memory about that user."""
    assert about_another_user(matrix) == []


def test_no_route_is_about_another_agent(matrix: Matrix) -> None:
    """Given a key for one character, I expect 403 wherever a route names another, its memory neither shown nor
    changed by its id, and nothing asked about it or about all characters."""
    assert about_another_agent(matrix) == []


def test_a_careless_route_is_found(tmp_path: Path) -> None:
    """Given routes that look at no key, right, user or character, I expect each of them found by the test that is for
    it, and a careful one by none."""
    matrix = Matrix(tmp_path, (careless_door, sample_door))

    def found(lines: list[str]) -> set[str]:
        return {line.split()[1] for line in lines}

    assert found(without_valid_key(matrix)) == {"/no-caller"}
    assert found(with_the_key(matrix)) == set()
    assert found(without_the_right(matrix)) == {"/no-caller", "/no-right"}
    assert found(about_another_user(matrix)) == {"/no-caller", "/no-user"}
    assert found(about_another_agent(matrix)) == {"/no-user", "/no-agent/{memory_id}"}
    assert matrix.seen["GET /sample/{memory_id}", "anna"].status == 200
