"""Mem0Memory: Mem0's `Memory` with injected parts. The module that relies on Mem0's internals.

Mem0 constructs all of its parts itself, from provider names, and always needs an LLM and a SQLite file. `Mem0Memory`
sets the same attributes to parts that are passed to it; tests/unit/test_mem0.py fails when Mem0 uses others.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from keepsake_client.errors import Unavailable
from mem0.configs.base import MemoryConfig
from mem0.embeddings.base import EmbeddingBase
from mem0.exceptions import LLMError
from mem0.llms.base import LLMBase
from mem0.memory.main import Memory
from mem0.utils.factory import LlmFactory
from mem0.vector_stores.base import VectorStoreBase

from services.long_term_memory.embeddings.providers import base_url_option
from services.long_term_memory.postgres.history import PostgresHistory
from services.runtime.errors import InvalidSetting
from services.runtime.settings import Settings

#: While this variable is set, Mem0's OpenAI client, at its construction and at every call, uses OpenRouter instead.
OPENROUTER = "OPENROUTER_API_KEY"


class Mem0Memory(Memory):  # type: ignore[misc]  # Mem0 has no types
    """Mem0's `Memory` on injected parts.

    Args:
        llm: extracts facts on Mem0's own `add(infer=True)`; None for the services, which never call that.
    """

    def __init__(
        self, embedder: EmbeddingBase, store: VectorStoreBase, history: PostgresHistory, llm: LLMBase | None
    ) -> None:
        self.config = MemoryConfig()
        self.embedding_model = embedder
        self.vector_store = store
        self.llm = llm
        self.db = history
        self.collection_name = "memories"
        self.api_version = self.config.version
        self.custom_instructions = None
        self.reranker = None
        self._entity_store = None


def build_llm(settings: Settings) -> LLMBase | None:
    """The LLM that extracts facts, or None where the settings name none.

    Raises:
        InvalidSetting: the provider does not exist, takes no base URL, or the environment would override that.
    """
    provider = settings.ltm_llm_provider
    if provider is None:
        return None
    if provider not in LlmFactory.provider_to_class:
        allowed = ", ".join(sorted(LlmFactory.provider_to_class))
        raise InvalidSetting(f"LTM_LLM_PROVIDER is {provider!r}; allowed: {allowed}")
    if provider == "openai" and os.environ.get(OPENROUTER):
        raise InvalidSetting(
            f"{OPENROUTER} is set, and Mem0 would send what people say to OpenRouter, not to LTM_LLM_BASE_URL; "
            "unset it (to use OpenRouter, give its address and key as LTM_LLM_BASE_URL and LTM_LLM_API_KEY)"
        )
    config: dict[str, Any] = {}
    if settings.ltm_llm_model:
        config["model"] = settings.ltm_llm_model
    if settings.ltm_llm_api_key:
        config["api_key"] = settings.ltm_llm_api_key.get_secret_value()
    if settings.ltm_llm_base_url:
        _, config_class = LlmFactory.provider_to_class[provider]
        option = base_url_option("LTM_LLM_BASE_URL", provider, config_class)
        config[option] = settings.ltm_llm_base_url.get_secret_value()
    return LlmFactory.create(provider, config)


@contextmanager
def provider_errors() -> Iterator[None]:
    """Raise `Unavailable` for transient errors of an embedder or LLM; others pass unchanged."""
    try:
        yield
    except (LLMError, *_openai_errors("APIError")) as error:
        cause = error.__cause__ if isinstance(error, LLMError) else error
        if isinstance(cause, _openai_errors("APIConnectionError", "RateLimitError", "InternalServerError")):
            raise Unavailable(f"the provider does not answer: {type(cause).__name__}") from error
        raise


def _openai_errors(*names: str) -> tuple[type[Exception], ...]:
    """Exception classes of the OpenAI client; none before Mem0 has imported that client, which takes 0.3 s."""
    client = sys.modules.get("openai")
    return tuple(getattr(client, name) for name in names) if client else ()
