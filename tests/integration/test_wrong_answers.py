"""Every way in which an LLM answers wrongly, over HTTP: never taken for an answer without facts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC

import pytest
from pydantic import SecretStr

from bench.harness.llm_server import Behaviour, LLMServer
from bench.harness.wrong_answers import NO_COMPLETIONS, PARTLY, REPAIRED, TEXT, UNUSABLE
from services.long_term_memory.extraction.answers import DROPPED
from services.long_term_memory.extraction.batch import Batch, FoundFact, Message
from services.long_term_memory.extraction.provider import FactFinder
from services.long_term_memory.mem0_bridge import build_llm
from services.long_term_memory.postgres.scope import Owner
from services.runtime.errors import ProviderWaits, UnusableAnswer
from services.runtime.settings import Settings

BATCH = Batch(Owner("u"), 1, [Message(48, "id", "I moved to Lisbon.", "user", 1_710_158_400.0)], [], [], {}, UTC)
FOUND = FoundFact(TEXT, "user", (48,), None, "state")


@pytest.fixture(scope="module")
def server() -> Iterator[LLMServer]:
    with LLMServer() as running:
        yield running


@pytest.fixture
def finder(server: LLMServer, monkeypatch: pytest.MonkeyPatch) -> FactFinder:
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    settings = Settings(
        ltm_llm_provider="openai",
        ltm_llm_model="m",
        ltm_llm_base_url=SecretStr(server.url),
        ltm_llm_api_key=SecretStr("k"),
    )
    llm = build_llm(settings)
    assert llm is not None
    return FactFinder(llm, ("home",))


def test_there_are_more_than_forty_kinds() -> None:
    """Given the lists, I expect at least the 40 kinds by which facts were lost before."""
    assert len(UNUSABLE) > 40


def test_every_reason_has_its_answer() -> None:
    """Given the reasons by which items are counted, I expect an answer for each."""
    assert {reason for reason, _ in PARTLY.values()} == set(DROPPED)


@pytest.mark.parametrize("behaviour", UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_answer_is_an_error(server: LLMServer, finder: FactFinder, behaviour: Behaviour) -> None:
    """Given an answer that cannot be read, I expect UnusableAnswer, upon which the batch is halved."""
    server.behaviour = behaviour

    with pytest.raises(UnusableAnswer):
        finder.find(BATCH)


@pytest.mark.parametrize("behaviour", REPAIRED.values(), ids=REPAIRED)
def test_a_clear_answer_is_taken(server: LLMServer, finder: FactFinder, behaviour: Behaviour) -> None:
    """Given an answer whose meaning is clear all the same, I expect its one fact, and nothing counted as left out."""
    server.behaviour = behaviour

    found = finder.find(BATCH)

    assert (found.facts, found.slots, found.dropped) == ([FOUND], [], {})


@pytest.mark.parametrize(("reason", "behaviour"), PARTLY.values(), ids=PARTLY)
def test_what_rules_forbid_is_counted(server: LLMServer, finder: FactFinder, reason: str, behaviour: Behaviour) -> None:
    """Given an item that rules forbid beside a good one, I expect the good one, and the other counted by its reason."""
    server.behaviour = behaviour

    found = finder.find(BATCH)

    assert ([one.text for one in found.facts], found.slots, found.dropped) == ([TEXT], [], {reason: 1})


@pytest.mark.parametrize("behaviour", NO_COMPLETIONS.values(), ids=NO_COMPLETIONS)
def test_what_is_no_llm_is_waited_for(server: LLMServer, finder: FactFinder, behaviour: Behaviour) -> None:
    """Given a page of some network's, I expect to wait: no smaller batch changes it."""
    server.behaviour = behaviour

    with pytest.raises(ProviderWaits, match="no chat completion"):
        finder.find(BATCH)
