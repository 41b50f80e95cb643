"""`ltm up` with an LLM, a scripted server on this machine: from what is said to facts, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis
from keepsake_client import Client

from bench.harness.llm_server import RULES, Hang, LLMServer, Status
from services.long_term_memory.extraction.report import ExtractionReport, read_report
from services.long_term_memory.postgres.pending import BATCH_MESSAGES
from services.runtime.queues import INDEX_QUEUE, queue_depths
from services.runtime.settings import Settings
from services.stack.processes import EXTRACTOR, SERVERS, SERVICES
from services.stack.readiness import stream_backlog
from tests.acceptance.conftest import INDEX_NICE, Stack, start_ltm_up, without
from tests.ltm_command import run_ltm
from tests.support import wait_until

#: A killed worker's message is delivered again after 5 to 10 s, and the process is started anew meanwhile.
FOUND_WITHIN_S = 120.0
KEY = "sk-the-key-of-the-test"


@dataclass(frozen=True)
class Extracting:
    """A stack with an LLM."""

    stack: Stack
    llm: LLMServer

    def ltm(self, *arguments: str) -> str:
        """Run a command; what it prints."""
        variables = {"REDIS_URL": self.stack.redis_url, "DATABASE_URL": self.stack.database_url}
        return run_ltm(*arguments, LTM_LLM_PROVIDER="openai", **variables).stdout

    def status(self) -> dict[str, Any]:
        """What `ltm status --json` says of extraction."""
        report: dict[str, Any] = json.loads(self.ltm("status", "--json"))
        return {**report["extraction"], "counters": report["counters"]}

    def report(self) -> ExtractionReport:
        """The same, without a process of its own."""
        with psycopg.connect(self.stack.database_url) as connection:
            return read_report(connection)

    def wait_until_read(self) -> None:
        """Wait until nothing waits to be read."""
        wait_until(lambda: self.report().messages == 0, FOUND_WITHIN_S, "all read")

    def say(self, user: str, *contents: str) -> None:
        """Publish as many messages of a user as make a batch, these at first."""
        with Client(self.stack.redis_url) as client:
            for place in range(BATCH_MESSAGES):
                content = contents[place] if place < len(contents) else f"What is {place} and {place}?"
                client.remember(user, content, message_id=f"{user}-{contents[0]}-{place}", require_ai_response=False)

    def chat(self, user: str, content: str) -> None:
        """Say as much in a conversation, which is stored."""
        with redis.Redis.from_url(self.stack.redis_url) as client:
            for place in range(BATCH_MESSAGES):
                text = content if place == 0 else f"What is {place} and {place}?"
                message = {"user_id": user, "content": text, "require_ai_response": False}
                client.lpush(Settings().user_input_queue, json.dumps(message))

    def found(self, user: str, query: str) -> list[str]:
        """What a search finds."""
        with Client(self.stack.redis_url) as client:
            return [memory.content for memory in client.search(user, query, deadline_ms=10_000)]

    def messages(self) -> int:
        """How many messages are stored."""
        with psycopg.connect(self.stack.database_url) as connection:
            query = "SELECT count(*) FROM memories JOIN users u ON u.number = user_number WHERE kind = 'message'"
            return int((connection.execute(query).fetchone() or (0,))[0])

    def indexed(self) -> bool:
        """Whether nothing waits to be indexed."""
        with redis.Redis.from_url(self.stack.redis_url) as client:
            depths = queue_depths(client)[INDEX_QUEUE]
            waiting = stream_backlog(client, Settings().ltm_stream_key)
        return not (waiting or depths["waiting"] or depths["working"] or depths["delayed"])

    def facts(self, user: str, kind: str = "fact") -> list[str]:
        """The contents of the user's facts."""
        with psycopg.connect(self.stack.database_url) as connection:
            return [
                content
                for (content,) in connection.execute(
                    "SELECT content FROM memories JOIN users u ON u.number = user_number"
                    " WHERE user_id = %s AND kind = %s ORDER BY memories.number",
                    (user, kind),
                )
            ]

    def pid(self) -> int:
        """The extractor's process, which may have been started anew."""
        family = psutil.Process(self.stack.process.pid).children()
        (extractor,) = (process for process in family if EXTRACTOR in " ".join(process.cmdline()))
        return extractor.pid


@pytest.fixture(scope="module")
def extracting() -> Iterator[Extracting]:
    with LLMServer() as llm, tempfile.TemporaryDirectory(prefix="ltm-test-") as directory:
        stack = start_ltm_up(
            Path(directory),
            "--ephemeral",
            LTM_LLM_PROVIDER="openai",
            LTM_LLM_MODEL="rules",
            LTM_LLM_BASE_URL=llm.url,
            LTM_LLM_API_KEY=KEY,
            LTM_SEARCH_TIMEOUT_MS="30000",
        )
        try:
            yield Extracting(stack, llm)
        finally:
            stack.end(signal.SIGTERM)


@pytest.fixture
def llm(extracting: Extracting) -> Iterator[LLMServer]:
    """The provider, which answers by its rules before and after each test."""
    yield extracting.llm
    extracting.llm.behaviour = RULES


def test_an_extractor_is_one_process_more(extracting: Extracting) -> None:
    """Given an LLM, I expect the processes of any stack and the extractor, at a lower CPU priority, in order."""
    assert sorted(extracting.stack.pids) == sorted([*SERVERS, *SERVICES, EXTRACTOR])
    assert psutil.Process(extracting.stack.pids[EXTRACTOR]).nice() == extracting.stack.nice + INDEX_NICE
    assert f"{EXTRACTOR} answers: embedder engine int8\n" in extracting.ltm("status")
    assert extracting.status()["state"] == "working"


def test_what_is_said_becomes_facts_and_a_later_one_replaces_them(extracting: Extracting, llm: LLMServer) -> None:
    """Given where a user lives, and in a later batch where the user moved to, I expect a fact, then the other in its
    place, all messages as they were said, and what it took in `ltm status`."""
    extracting.say("anna", "I live in Oslo.")
    wait_until(lambda: extracting.facts("anna"), FOUND_WITHIN_S, "the fact")
    assert any("Oslo" in fact for fact in extracting.facts("anna"))

    extracting.say("anna", "I moved to Lisbon.")
    wait_until(lambda: extracting.facts("anna", "superseded"), FOUND_WITHIN_S, "the superseded fact")

    assert any("Lisbon" in fact for fact in extracting.facts("anna"))
    assert not any("Oslo" in fact for fact in extracting.facts("anna"))
    assert "I live in Oslo." in extracting.found("anna", "Where did I live?")
    extracting.wait_until_read()
    status = extracting.status()
    assert (status["state"], status["calls"], status["set_aside"]) == ("working", 2, 0)
    assert status["counters"]["extraction_calls"] == 2
    assert status["counters"]["facts_superseded"] == 1
    assert status["tokens"] == status["counters"]["extraction_tokens"] > 1_000
    assert json.loads(extracting.ltm("profile", "anna"))["known"]["home"]["value"] == "Lisbon"
    assert {request.authorization for request in llm.requests} == {f"Bearer {KEY}"}


def test_a_kill_within_a_call_costs_a_call_and_no_fact(extracting: Extracting, llm: LLMServer) -> None:
    """Given a provider that hangs, I expect every message searchable meanwhile; given a kill of the extractor in that
    call, each fact once, by another call."""
    calls = llm.calls
    llm.then(Hang())
    extracting.say("ben", "I live in Rome.", "I have a cat called Mochi.")
    wait_until(lambda: llm.calls == calls + 1, FOUND_WITHIN_S, "the call")
    wait_until(lambda: "I live in Rome." in extracting.found("ben", "Where do I live?"), FOUND_WITHIN_S, "the message")
    assert extracting.facts("ben") == []

    os.kill(extracting.pid(), signal.SIGKILL)

    wait_until(lambda: extracting.facts("ben"), FOUND_WITHIN_S, "the facts")
    extracting.wait_until_read()
    facts = extracting.facts("ben")
    assert [sum(name in fact for fact in facts) for name in ("Rome", "Mochi")] == [1, 1]
    assert llm.calls == calls + 2


def test_a_key_that_is_refused_stops_it_until_it_is_resumed(extracting: Extracting, llm: LLMServer) -> None:
    """Given a provider that answers 401, I expect extraction stopped and said so, without the key in any log, and after
    `ltm extract resume` the facts."""
    llm.behaviour = Status(401)
    extracting.say("cora", "I live in Paris.")
    extracting.say("dora", "I live in Bern.")
    wait_until(lambda: extracting.report().state == "stopped", FOUND_WITHIN_S, "the stop")
    assert "401" in str(extracting.report().reason)
    assert extracting.ltm("extract", "list").count("20 messages") == 2
    llm.behaviour = RULES

    assert extracting.ltm("extract", "resume") == "resumed\n"

    for user, city in (("cora", "Paris"), ("dora", "Bern")):
        wait_until(lambda: any(city in fact for fact in extracting.facts(user)), FOUND_WITHIN_S, city)  # noqa: B023 - at once
    assert extracting.status()["state"] == "working"
    logs = Path(extracting.stack.printed().split("  logs        ")[1].splitlines()[0])
    assert not any(KEY in log.read_text() for log in logs.glob("*.log"))


def test_a_rebuild_finds_the_facts_again(extracting: Extracting) -> None:
    """Given the facts of a user, I expect a rebuild to say what it takes, and to find them anew, once."""
    extracting.say("emil", "I live in Vienna.")
    wait_until(lambda: extracting.facts("emil"), FOUND_WITHIN_S, "the fact")
    before = extracting.facts("emil")

    said = extracting.ltm("extract", "rebuild", "emil", "--yes")

    assert said.startswith(f"{len(before)} facts are deleted")
    assert said.endswith("20 messages wait to be read again\n")
    wait_until(lambda: extracting.facts("emil") == before, FOUND_WITHIN_S, "the facts again")


def test_switching_it_off_and_backfills_cost_no_second_call(place: Path) -> None:
    """Given messages with an LLM, without one and with one again, then `ltm backfill` twice, I expect one call for the
    first and one for the last of them, none for those between, and each message stored once."""
    with LLMServer() as llm:
        on = {"LTM_LLM_PROVIDER": "openai", "LTM_LLM_BASE_URL": llm.url, "LTM_LLM_API_KEY": KEY}
        for number, (city, variables) in enumerate({"Oslo": on, "Rome": {}, "Lisbon": on}.items(), start=1):
            directory = place / city
            directory.mkdir()
            stack = start_ltm_up(
                directory, "--data-dir", str(place / "data"), *without("chat-ai", "gateway"), **variables
            )
            try:
                extracting = Extracting(stack, llm)
                extracting.chat("anna", f"I live in {city}.")
                wait_until(lambda: extracting.messages() == BATCH_MESSAGES * number, FOUND_WITHIN_S, "the messages")  # noqa: B023 - at once
                extracting.wait_until_read()
                if city == "Lisbon":
                    for _ in range(2):
                        assert f"{3 * BATCH_MESSAGES} messages" in extracting.ltm("backfill")
                        wait_until(extracting.indexed, FOUND_WITHIN_S, "the indexer")
                    extracting.wait_until_read()
                    assert extracting.messages() == 3 * BATCH_MESSAGES
            finally:
                stack.end(signal.SIGTERM)
            assert llm.calls == (2 if city == "Lisbon" else 1)
