"""Mem0's own clients, as they come in its package, and its server's routes, against a running stack."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx
import pytest
from keepsake_client import Client

from services.gateway.access import ALL_RIGHTS, Caller
from services.gateway.mem0_api.door import PREFIX, open_mem0_door
from tests.acceptance.conftest import Stack
from tests.mem0_module import mem0_client
from tests.served_gateway import Keys, served, settings_of
from tests.support import eventually, wait_until


@pytest.fixture(scope="module")
def keys() -> Keys:
    """The callers by key, to which a test adds its own."""
    return Keys({"master": Caller("master", ALL_RIGHTS)})


@pytest.fixture(scope="module")
def host(stack: Stack, keys: Keys) -> Iterator[str]:
    """Where Mem0's clients find the gateway."""
    with served(settings_of(stack.redis_url), [open_mem0_door], keys) as url:
        yield f"{url}{PREFIX}"


@pytest.fixture
def user() -> str:
    return f"user/{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def connect(host: str) -> Iterator[Any]:
    """Makes Mem0's clients; one whose key is `master` may do everything."""
    with mem0_client() as module, ExitStack() as at_exit:

        def connect(key: str = "master") -> Any:
            client = module.MemoryClient(api_key=key, host=host)
            at_exit.callback(client.client.close)
            return client

        yield connect


@pytest.fixture(scope="module")
def mem0(connect: Any) -> Any:
    """Mem0's client."""
    return connect()


@pytest.fixture(scope="module")
def server(host: str) -> Iterator[httpx.Client]:
    """What asks for the routes of Mem0's open source server."""
    with httpx.Client(base_url=host, headers={"Authorization": "Token master"}, timeout=60) as client:
        yield client


def stored(mem0: Any, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The memories of an add, once all are indexed: on a loaded machine its answer may come before."""

    def results() -> Any:
        event = mem0.client.get(f"/v1/event/{answer['event_id']}/").json()
        return event.get("status") == "SUCCEEDED" and event["results"]  # of an error, there is none

    found: list[dict[str, Any]] = wait_until(results, description="the memories of an add")
    return found


def texts(found: Any) -> list[str]:
    """The texts of an answer, in its order."""
    return [memory["memory"] for memory in found["results"]]


def test_what_is_added_is_found_and_belongs_to_its_user(mem0: Any, user: str) -> None:
    """Given a conversation added with Mem0's client, I expect it to be found with speaker, session and metadata."""
    answer = mem0.add(
        [
            {"role": "user", "content": "My cat is called Mochi"},
            {"role": "assistant", "content": "What a lovely name!"},
        ],
        user_id=user,
        run_id="s1",
        metadata={"topic": "pets"},
        timestamp=1_712_318_400,
    )
    cat, name = stored(mem0, answer)

    best = mem0.search("What is my cat called?", filters={"user_id": user}, top_k=1)["results"][0]
    assert best.pop("score") > 0.3
    assert best.items() <= cat.items()
    assert (best["memory"], best["user_id"], best["run_id"], best["agent_id"]) == (cat["memory"], user, "s1", None)
    assert (best["role"], name["role"]) == ("user", "assistant")
    assert best["metadata"]["topic"] == "pets"
    assert best["created_at"] == "2024-04-05T12:00:00+00:00"
    assert mem0.search("What is my cat called?", filters={"user_id": "another"}) == {"results": []}
    assert mem0.search("my cat", filters={"user_id": user}, fields=["memory"])["results"][0].keys() == {"id", "memory"}


def test_a_memory_is_corrected_and_deleted_by_its_id(mem0: Any, user: str) -> None:
    """Given the id of an answer, I expect get, update, history and delete to be about that memory."""
    (memory,) = stored(mem0, mem0.add("My cat is called Tofu", user_id=user))

    assert mem0.get(memory["id"])["memory"] == "My cat is called Tofu"
    updated = mem0.update(memory["id"], text="My cat is called Mochi", metadata={"checked": True})
    assert (updated["memory"], updated["metadata"]["checked"]) == ("My cat is called Mochi", True)
    changes = [(each["event"], each["old_memory"], each["new_memory"]) for each in mem0.history(memory["id"])]
    assert changes == [
        ("ADD", None, "My cat is called Tofu"),
        ("UPDATE", "My cat is called Tofu", "My cat is called Mochi"),
    ]
    mem0.delete(memory["id"])
    with pytest.raises(Exception, match="no memory of this id") as error:
        mem0.get(memory["id"])
    assert type(error.value).__name__ == "MemoryNotFoundError"


def test_lists_have_pages_and_filters(mem0: Any, user: str) -> None:
    """Given more memories than a page, I expect each once, newest first, and those that meet a filter alone."""
    for number, agent in enumerate(["luna", "luna", "mars", None]):
        topic = "tea" if number % 2 else "coffee"
        answer = mem0.add(
            f"I drank cup {number}",
            user_id=user,
            agent_id=agent,
            metadata={"topic": topic, "cup": number},
            timestamp=1_700_000_000 + number,
        )
        stored(mem0, answer)

    pages = [mem0.get_all(filters={"user_id": user}, page=number, page_size=3) for number in (1, 2, 3)]
    assert [texts(page) for page in pages] == [
        ["I drank cup 3", "I drank cup 2", "I drank cup 1"],
        ["I drank cup 0"],
        [],
    ]
    assert [(page["count"], bool(page["next"]), bool(page["previous"])) for page in pages] == [
        (None, True, False),  # what follows is not counted
        (4, False, True),
        (4, False, True),
    ]

    def listed(*conditions: dict[str, Any]) -> list[str]:
        return [text[-1] for text in texts(mem0.get_all(filters={"AND": [{"user_id": user}, *conditions]}))]

    assert listed({"agent_id": "luna"}) == ["1", "0"]
    assert listed({"agent_id": "*"}, {"NOT": {"agent_id": "mars"}}) == ["1", "0"]
    assert listed({"metadata": {"topic": "tea"}}) == ["3", "1"]
    assert listed({"OR": [{"metadata": {"cup": {"gte": 3}}}, {"agent_id": "mars"}]}) == ["3", "2"]
    assert listed({"created_at": {"gt": 1_700_000_001}}, {"keywords": {"icontains": "CUP"}}) == ["3", "2"]
    found = mem0.search("what did I drink?", filters={"AND": [{"user_id": user}, {"metadata": {"topic": "tea"}}]})
    assert sorted(texts(found)) == ["I drank cup 1", "I drank cup 3"]


def test_deletions_are_of_what_they_name_alone(mem0: Any, user: str) -> None:
    """Given memories of two agents, a run and none, I expect each deletion to leave the others."""
    for text, of in (("luna's", {"agent_id": "luna"}), ("mars's", {"agent_id": "mars"}), ("run's", {"run_id": "s1"})):
        stored(mem0, mem0.add(f"This is {text}", user_id=user, **of))
    stored(mem0, mem0.add("This is the user's", user_id=user))

    def left() -> set[str]:
        return set(texts(mem0.get_all(filters={"user_id": user})))

    mem0.delete_all(user_id=user, agent_id="luna")
    assert left() == {"This is mars's", "This is run's", "This is the user's"}
    mem0.delete_all(user_id=user, run_id="s1")
    assert left() == {"This is mars's", "This is the user's"}
    mem0.delete_all(user_id=user)
    assert left() == set()
    with pytest.raises(Exception, match="whose memories"):
        mem0.delete_all()


def test_batches_and_users_of_a_key(connect: Any, keys: Keys, mem0: Any, user: str) -> None:
    """Given a key that is bound to a user, I expect bare ids, the user among the users, and a reset of that one."""
    keys.callers["bound"] = Caller("bound", ALL_RIGHTS, user=user)
    bound = connect("bound")
    one, two = stored(mem0, mem0.add([{"role": "user", "content": text} for text in ("one", "two")], user_id=user))

    bare = one["id"].partition(".")[0]
    assert bound.get(bare)["memory"] == "one"
    bound.batch_update([{"memory_id": bare, "text": "first"}, {"memory_id": two["id"], "text": "second"}])
    assert texts(bound.get_all()) == ["second", "first"]
    bound.batch_delete([{"memory_id": bare}])
    assert texts(bound.get_all()) == ["second"]
    assert [each["name"] for each in bound.users()["results"]] == [user]
    assert bound.get_profile(user)["profile"] == {}
    bound.reset()
    assert texts(bound.get_all()) == []
    with pytest.raises(Exception, match="do not list users"):
        mem0.reset()


def test_a_key_of_an_agent_reaches_no_other_s(connect: Any, keys: Keys, mem0: Any, user: str) -> None:
    """Given a key bound to an agent, I expect its memories and the shared ones, by lists and ids, and no other's."""
    keys.callers["luna"] = Caller("luna", ALL_RIGHTS, agent="luna")
    luna = connect("luna")
    (own,) = stored(mem0, luna.add("Luna's secret", user_id=user))
    (other,) = stored(mem0, mem0.add("Mars's secret", user_id=user, agent_id="mars"))
    (shared,) = stored(mem0, mem0.add("No secret", user_id=user))

    assert own["agent_id"] == "luna"
    assert set(texts(luna.get_all(filters={"user_id": user}))) == {"Luna's secret", "No secret"}
    assert set(texts(luna.search("secret", filters={"user_id": user}))) == {"Luna's secret", "No secret"}
    assert luna.get(shared["id"])["memory"] == "No secret"
    for refused in (
        partial(luna.get, other["id"]),
        partial(luna.history, other["id"]),
        partial(luna.update, other["id"], text="x"),
        partial(luna.delete, other["id"]),
        partial(luna.batch_update, [{"memory_id": other["id"], "text": "x"}]),
        partial(luna.batch_delete, [{"memory_id": other["id"]}]),
    ):
        with pytest.raises(Exception, match="no memory of this id"):
            refused()
    with pytest.raises(Exception, match="one agent only"):
        luna.delete_users(user_id=user)
    luna.delete_all(user_id=user)
    assert set(texts(mem0.get_all(filters={"user_id": user}))) == {"Mars's secret", "No secret"}


def test_many_messages_are_one_add(mem0: Any, user: str) -> None:
    """Given a long conversation, I expect all of it to be memories, in its order."""
    said = [f"Bottle {number} of beer" for number in range(30)]

    memories = stored(mem0, mem0.add([{"role": "user", "content": text} for text in said], user_id=user))

    assert [memory["memory"] for memory in memories] == said
    assert len(mem0.get_all(filters={"user_id": user})["results"]) == 30


def test_the_async_client_works_as_well(host: str, user: str) -> None:
    """Given Mem0's asyncio client, I expect what the other one has."""

    async def play() -> list[str]:
        with mem0_client() as module:
            client = module.AsyncMemoryClient(api_key="master", host=host)
        async with client:
            await client.add("My cat is called Mochi", user_id=user)

            async def search() -> list[str]:
                return texts(await client.search("What is my cat called?", filters={"AND": [{"user_id": user}]}))

            found = await eventually(search, description="the memory to be found")
            await client.delete_users(user_id=user)
            return found + texts(await client.get_all(filters={"user_id": user}))

    assert asyncio.run(play()) == ["My cat is called Mochi"]


def test_the_routes_of_the_open_source_server(server: httpx.Client, user: str) -> None:
    """Given the routes of Mem0's open source server, I expect a memory's whole life by them."""
    body = {"messages": [{"role": "user", "content": "My cat is called Tofu"}], "user_id": user, "agent_id": "luna"}
    answer = server.post("/memories", json={**body, "metadata": {"topic": "pets"}}).json()
    wait_until(lambda: server.get("/memories", params={"user_id": user}).json()["results"], description="the memory")
    (memory,) = server.get(f"/v1/event/{answer['event_id']}/").json()["results"]
    path = f"/memories/{memory['id']}"

    found = server.post("/search", json={"query": "cat", "user_id": user, "filters": {"topic": "pets"}}).json()
    assert texts(found) == ["My cat is called Tofu"]
    assert server.post("/search", json={"query": "cat", "user_id": user, "filters": {"topic": "tea"}}).json() == {
        "results": []
    }
    assert server.put(path, json={"text": "My cat is called Mochi"}).status_code == 200
    assert server.get(path).json()["memory"] == "My cat is called Mochi"
    assert [change["event"] for change in server.get(f"{path}/history").json()] == ["ADD", "UPDATE"]
    assert server.delete(path).json()["message"]
    assert server.get(path).status_code == 404
    assert server.delete("/memories", params={"user_id": user}).json()["count"] == 0


def test_earlier_versions_read_lists(server: httpx.Client, user: str) -> None:
    """Given the routes of earlier versions of the client, I expect lists, and objects where they ask for them."""
    added = server.post("/v1/memories/", json={"messages": "My cat is called Mochi", "user_id": user}).json()
    assert [each.get("event") or each["status"] for each in added] in (["ADD"], ["PENDING"])
    wait_until(lambda: server.get("/v1/memories/", params={"user_id": user}).json(), description="the memory")

    (listed,) = server.post("/v2/memories/", json={"filters": {"AND": [{"user_id": user}]}}).json()
    (found,) = server.post("/v1/memories/search/", json={"query": "cat", "user_id": user}).json()
    asked = {"query": "cat", "filters": {"user_id": user}, "output_format": "v1.1"}
    assert server.post("/v2/memories/search/", json=asked).json()["results"] == [found]
    assert found["id"] == listed["id"]


def test_what_is_added_is_an_event_of_the_wire(stack: Stack, mem0: Any, user: str) -> None:
    """Given an add, I expect of the wire what any other publisher's event is: a message by its speaker."""
    stored(mem0, mem0.add([{"role": "user", "name": "Anna", "content": "I like tea"}], user_id=user, agent_id="luna"))

    with Client(stack.redis_url) as client:
        (memory,) = client.memory_list(user, agent_id="luna").memories
    assert memory.speaker is not None
    assert (memory.kind, memory.source, memory.speaker.name, memory.agent_id) == ("message", "user", "Anna", "luna")
    assert memory.metadata["message_id"]
