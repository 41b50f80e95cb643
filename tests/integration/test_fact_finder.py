"""FactFinder over HTTP, through Mem0's providers: what it asks, and what becomes of a provider's failures."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from keepsake_client.errors import KeepsakeError
from pydantic import SecretStr

from bench.harness.llm_server import RULES, Behaviour, Choosy, Cut, Drip, Hang, LLMServer, Raw, Reply, Status
from bench.harness.wrong_answers import GOOD, TEXT
from services.long_term_memory.extraction.batch import Batch, KnownFact, Message, Usage
from services.long_term_memory.extraction.provider import MAX_HANGING_CALLS, FactFinder
from services.long_term_memory.extraction.provider_failures import MAX_RETRY_AFTER_S
from services.long_term_memory.mem0_bridge import build_llm
from services.long_term_memory.postgres.scope import Owner
from services.runtime.errors import ProviderRefuses, ProviderWaits, UnusableAnswer
from services.runtime.settings import Settings
from tests.support import PATIENCE_S, wait_until

KEY = "sk-hush-hush-hush-hush"
SAID = "I moved to Lisbon yesterday, hush."
#: 2024-03-11, a Monday.
BATCH = Batch(Owner("u"), 1, [Message(48, "id", SAID, "user", 1_710_158_400.0)], [], [], {}, UTC)
#: Of calls that are to fail by it; whether they do so sooner or later matters to no test.
SHORT_S = 0.3


@pytest.fixture
def server() -> Iterator[LLMServer]:
    with LLMServer(Reply(GOOD)) as running:
        yield running


Find = Callable[..., FactFinder]


@pytest.fixture
def finder(server: LLMServer, monkeypatch: pytest.MonkeyPatch) -> Find:
    """Makes a FactFinder that asks the server."""
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)

    def make(timeout_s: float = PATIENCE_S, url: str | None = None, **given: Any) -> FactFinder:
        settings = {"ltm_llm_provider": "openai", "ltm_llm_model": "m", "ltm_llm_api_key": SecretStr(KEY), **given}
        llm = build_llm(Settings(ltm_llm_base_url=SecretStr(url or server.url), **settings))
        assert llm is not None
        return FactFinder(llm, ("home",), timeout_s)

    return make


def body(server: LLMServer, call: int = -1) -> dict[str, Any]:
    return server.requests[call].body


def test_what_is_asked(server: LLMServer, finder: Find) -> None:
    """Given a batch, I expect one call with key, model, prompt, a JSON schema and a limit of the answer."""
    finder().find(BATCH)

    assert (server.calls, server.requests[0].authorization) == (1, f"Bearer {KEY}")
    asked = body(server)
    assert (asked["model"], asked["max_tokens"], asked["response_format"]["type"]) == ("m", 4_000, "json_schema")
    assert asked["response_format"]["json_schema"]["strict"] is True
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    assert SAID in asked["messages"][1]["content"]


def test_the_answer_is_found(finder: Find) -> None:
    """Given a good answer, I expect its fact."""
    assert [(one.text, one.evidence) for one in finder().find(BATCH).facts] == [(TEXT, (48,))]


def test_the_usage_is_the_providers(server: LLMServer, finder: Find) -> None:
    """Given a provider that counts, I expect its counts."""
    found = finder().find(BATCH)

    assert found.usage == Usage(server.prompt_tokens, server.completion_tokens)


def test_the_usage_is_estimated(server: LLMServer, finder: Find) -> None:
    """Given a provider that does not count, I expect an estimate of what was sent and answered."""
    server.behaviour = Reply(GOOD, counts=False)

    usage = finder().find(BATCH).usage

    assert usage.prompt_tokens > 600
    assert usage.completion_tokens > 20


@pytest.mark.parametrize("count", [-1, True, 10**30, "12", 1.5, None])
def test_a_count_that_cannot_be_one_is_estimated(server: LLMServer, finder: Find, count: Any) -> None:
    """Given counts that are none, or more than a model can read, I expect estimates, which a budget can add up."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": GOOD}}
    usage = {"prompt_tokens": count, "completion_tokens": count, "total_tokens": None}
    server.behaviour = Raw(json.dumps({"id": "1", "object": "x", "choices": [choice], "usage": usage}).encode())

    found = finder().find(BATCH).usage

    assert 600 < found.prompt_tokens < 10_000
    assert type(found.completion_tokens) is int
    assert 20 < found.completion_tokens < 1_000


def test_the_reserve_is_more_than_the_usage(finder: Find) -> None:
    """Given a batch, I expect its estimate to cover what the call cost, apart from the schema."""
    found = finder(ltm_llm_provider="vllm").find(BATCH)

    assert finder().estimate_tokens(BATCH) >= found.usage.prompt_tokens + found.usage.completion_tokens


@pytest.mark.parametrize("provider", ["openai", "openai_structured", "deepseek", "vllm", "lmstudio", "xai"])
def test_providers_of_openais_kind(server: LLMServer, finder: Find, provider: str) -> None:
    """Given a provider of Mem0 whose library is installed, I expect a fact in one call."""
    assert len(finder(ltm_llm_provider=provider).find(BATCH).facts) == 1
    assert server.calls == 1


def test_yesterday_is_the_messages_own(server: LLMServer, finder: Find) -> None:
    """Given a message of 2024 with "yesterday", said after midnight in Shanghai, I expect the day before it there."""
    server.behaviour = RULES
    said_at = datetime(2024, 3, 11, 17, tzinfo=UTC).timestamp()
    said = Message(48, "id", "I flew to Lisbon yesterday with my sister.", "user", said_at)

    found = finder().find(Batch(Owner("u"), 1, [said], [], [], {}, ZoneInfo("Asia/Shanghai")))

    assert [one.when for one in found.facts] == ["2024-03-11"]


def test_from_chat_to_superseded_fact(server: LLMServer, finder: Find) -> None:
    """Given a home that is known and a message that ends it, I expect the new fact to replace it by its number."""
    server.behaviour = RULES
    known = [KnownFact(9_001, "The user lives in Oslo.", "state")]

    found = finder().find(Batch(Owner("u"), 1, BATCH.messages, [], known, {}, UTC))

    assert [(one.text, one.replaces) for one in found.facts] == [("The user lives in Lisbon.", (9_001,))]
    assert [(one.slot, one.value) for one in found.slots] == [("home", "Lisbon")]


REASONING = ["gpt-5", "gpt-5-mini", "gpt-5.4-nano-2026-03-17", "openai/gpt-5-nano", "o1", "o3-mini", "o4-mini"]


@pytest.mark.parametrize("model", REASONING)
def test_reasoning_models_get_what_they_take(server: LLMServer, finder: Find, model: str) -> None:
    """Given a reasoning model, I expect none of the parameters that it refuses, in the first call already."""
    server.behaviour = Choosy(sampling=True, then=Reply(GOOD))

    finder(ltm_llm_model=model).find(BATCH)

    assert not {"temperature", "top_p", "max_tokens"} & set(body(server))
    assert (server.calls, body(server)["response_format"]["type"]) == (1, "json_schema")


@pytest.mark.parametrize("model", ["gpt-4o-mini", "qwen3-30b", "o100-like-llama"])
def test_other_models_are_asked_for_few_variations(server: LLMServer, finder: Find, model: str) -> None:
    """Given another model, I expect a low temperature and a limit of the answer."""
    finder(ltm_llm_model=model).find(BATCH)

    assert {"temperature", "top_p", "max_tokens"} <= set(body(server))


def test_a_reasoning_model_by_another_name(server: LLMServer, finder: Find) -> None:
    """Given a model that refuses the parameters though its name does not say so, I expect a call without, and more."""
    server.behaviour = Choosy(sampling=True, then=Reply(GOOD))
    asking = finder(ltm_llm_model="house-model")

    assert len(asking.find(BATCH).facts) == len(asking.find(BATCH).facts) == 1
    assert server.calls == 3
    assert "temperature" not in body(server)


@pytest.mark.parametrize("status", [400, 422])
def test_without_a_schema(server: LLMServer, finder: Find, status: int) -> None:
    """Given a provider that takes no schema, I expect `json_object`, from the second batch on at once."""
    server.behaviour = Choosy(frozenset({"json_schema"}), status=status, then=Reply(GOOD))
    asking = finder()

    assert len(asking.find(BATCH).facts) == len(asking.find(BATCH).facts) == 1
    assert [body(server, call)["response_format"]["type"] for call in range(3)] == [
        "json_schema",
        "json_object",
        "json_object",
    ]


def test_without_any_format(server: LLMServer, finder: Find) -> None:
    """Given a provider that takes no `response_format`, I expect a call without, from the second batch on at once."""
    server.behaviour = Choosy(frozenset({"json_schema", "json_object"}), then=Reply(GOOD))
    asking = finder()

    assert len(asking.find(BATCH).facts) == len(asking.find(BATCH).facts) == 1
    assert (server.calls, "response_format" in body(server)) == (4, False)


def test_one_refusal_is_not_remembered(server: LLMServer, finder: Find) -> None:
    """Given a provider that refuses one batch in every form, I expect the next one asked for in the first form."""
    asking = finder()
    server.then(*[Status(400)] * 4)
    with pytest.raises(ProviderRefuses):
        asking.find(BATCH)

    asking.find(BATCH)

    assert body(server)["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 422])
def test_a_refusal_says_its_status(server: LLMServer, finder: Find, status: int) -> None:
    """Given a call that is refused in every form, I expect ProviderRefuses with the status."""
    server.behaviour = Status(status)

    with pytest.raises(ProviderRefuses, match=f"answers {status}") as refused:
        finder().find(BATCH)

    assert refused.value.status == status


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_no_call_is_repeated(server: LLMServer, finder: Find, status: int) -> None:
    """Given a failure, I expect one call: the waits between calls are the extractor's, not the library's."""
    server.behaviour = Status(status)

    with pytest.raises((ProviderRefuses, ProviderWaits)):
        finder().find(BATCH)

    assert server.calls == 1


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_an_outage_is_waited_for(server: LLMServer, finder: Find, status: int) -> None:
    """Given a provider that does not serve just now, I expect ProviderWaits, without a time where it says none."""
    server.behaviour = Status(status)

    with pytest.raises(ProviderWaits, match=f"answers {status}") as waits:
        finder().find(BATCH)

    assert waits.value.retry_after_s is None


AFTER = {"7": 7.0, "0.5": 0.5, "-3": 0.0, "1e9": MAX_RETRY_AFTER_S, "nan": None, "inf": None, "soon": None, "": None}


@pytest.mark.parametrize(("header", "seconds"), AFTER.items(), ids=repr)
def test_retry_after_in_seconds(server: LLMServer, finder: Find, header: str, seconds: float | None) -> None:
    """Given a Retry-After header, I expect its seconds within an hour; None where it has none."""
    server.behaviour = Status(429, {"Retry-After": header})

    with pytest.raises(ProviderWaits) as waits:
        finder().find(BATCH)

    assert waits.value.retry_after_s == seconds


@pytest.mark.parametrize(("ahead_s", "least", "most"), [(1_800, 1_000, 1_800), (-1_800, 0, 0), (86_400, 3_600, 3_600)])
def test_retry_after_as_a_date(server: LLMServer, finder: Find, ahead_s: int, least: float, most: float) -> None:
    """Given a Retry-After header with a date, I expect the seconds until then, within an hour."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead_s), usegmt=True)
    server.behaviour = Status(503, {"Retry-After": date})

    with pytest.raises(ProviderWaits) as waits:
        finder().find(BATCH)

    assert waits.value.retry_after_s is not None
    assert least <= waits.value.retry_after_s <= most


SLOW: dict[str, Behaviour] = {
    "late": Reply(GOOD, late_s=PATIENCE_S),
    "never": Hang(),
    "byte by byte": Drip(),
    "byte by byte in a header": Drip(in_headers=True),
}


@pytest.mark.parametrize("behaviour", SLOW.values(), ids=SLOW)
def test_a_provider_that_does_not_end_its_answer(server: LLMServer, finder: Find, behaviour: Behaviour) -> None:
    """Given a provider that accepts a call and does not end its answer, I expect an error at the time limit, and
    the call to be taken for one that may be paid for."""
    server.behaviour = behaviour

    with pytest.raises(ProviderWaits, match=r"does not answer|has not answered within 0\.3 s") as waits:
        finder(SHORT_S).find(BATCH)
    assert waits.value.may_be_paid


def test_a_call_that_was_given_up_ends(server: LLMServer, finder: Find) -> None:
    """Given a drip without end, I expect its connection closed and its thread gone after the time limit."""
    server.behaviour = Drip()

    with pytest.raises(ProviderWaits):
        finder(SHORT_S).find(BATCH)

    wait_until(lambda: "provider-call" not in [thread.name for thread in threading.enumerate()])


def test_a_late_answer_within_the_limit_is_taken(server: LLMServer, finder: Find) -> None:
    """Given an answer that is late, and not too late, I expect its fact."""
    server.behaviour = Reply(GOOD, late_s=0.2)

    assert len(finder().find(BATCH).facts) == 1


@pytest.mark.parametrize("within", [False, True], ids=["before the answer", "within the answer"])
def test_a_cut_connection_is_waited_for(server: LLMServer, finder: Find, within: bool) -> None:
    """Given a connection that is closed, I expect ProviderWaits."""
    server.behaviour = Cut(within)

    with pytest.raises(ProviderWaits, match="does not answer"):
        finder().find(BATCH)


def test_a_provider_that_is_down_is_waited_for(finder: Find) -> None:
    """Given an address where nothing listens, I expect ProviderWaits."""
    with pytest.raises(ProviderWaits, match="does not answer"):
        finder(url="http://127.0.0.1:1/v1").find(BATCH)


def test_calls_that_hang_are_limited(finder: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a library whose calls cannot be ended, I expect no more of them than the limit, and more once they end."""
    released, calls = threading.Event(), []
    asking = finder(0.01)

    def hang(_: Any, **__: Any) -> str:
        calls.append(1)
        released.wait(PATIENCE_S)
        return GOOD

    monkeypatch.setattr("mem0.llms.openai.OpenAILLM.generate_response", hang)
    for _ in range(MAX_HANGING_CALLS + 3):
        with pytest.raises(ProviderWaits):
            asking.find(BATCH)
    assert len(calls) == MAX_HANGING_CALLS

    released.set()
    wait_until(lambda: "provider-call" not in [thread.name for thread in threading.enumerate()])
    monkeypatch.setattr("mem0.llms.openai.OpenAILLM.generate_response", lambda _, **__: GOOD)

    def found() -> bool:
        with suppress(ProviderWaits):  # within so short a limit, a busy machine may not have begun the call
            return len(asking.find(BATCH).facts) == 1
        return False

    wait_until(found, description="a call after the others have ended")


REASONS: dict[str, tuple[Behaviour, str]] = {
    "cut": (Reply(GOOD[:40], finish_reason="length"), "cut at its greatest length"),
    "refused": (Reply(None, refusal="no"), "refuses to answer"),
    "filtered": (Reply("{}", finish_reason="content_filter"), "refuses to answer"),
    "too long": (Status(400, error={"code": "context_length_exceeded"}), "too long for the model"),
    "contents": (Status(400, error={"code": "content_filter"}), "refuses the contents"),
}


@pytest.mark.parametrize(("behaviour", "reason"), REASONS.values(), ids=REASONS)
def test_why_an_answer_is_unusable(server: LLMServer, finder: Find, behaviour: Behaviour, reason: str) -> None:
    """Given an unusable answer, I expect the reason, which is kept with a message that is set aside."""
    server.behaviour = behaviour

    with pytest.raises(UnusableAnswer, match=reason):
        finder().find(BATCH)


def test_an_unusable_answer_costs(server: LLMServer, finder: Find) -> None:
    """Given an answer that is no JSON, I expect its usage: it is paid for all the same."""
    server.behaviour = Reply("no")

    with pytest.raises(UnusableAnswer) as unusable:
        finder().find(BATCH)

    assert unusable.value.usage == Usage(server.prompt_tokens, server.completion_tokens)


QUOTING: dict[str, Behaviour] = {
    "401": Status(401, error={"message": f"Incorrect API key provided: {KEY}"}),
    "400": Status(400, error={"message": f"cannot read {SAID}"}),
    "429": Status(429, error={"message": f"{KEY} asks too often"}),
    "an answer": Reply(f"You said: {SAID}"),
    "a page": Raw(f"<p>{KEY}</p>".encode(), "text/html"),
}


@pytest.mark.parametrize("behaviour", QUOTING.values(), ids=QUOTING)
def test_no_error_quotes(server: LLMServer, finder: Find, behaviour: Behaviour) -> None:
    """Given a failure whose text quotes the key or the chat, I expect neither in the error, nor a cause that has it."""
    server.behaviour = behaviour

    with pytest.raises(KeepsakeError) as failed:
        finder().find(BATCH)

    assert "hush" not in str(failed.value)
    assert failed.value.__cause__ is None
    assert failed.value.__suppress_context__
