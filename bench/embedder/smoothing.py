"""Fit of the smoothing of the default embedder's 8-bit engine: `python -m bench.embedder.smoothing [--write]`.

The inputs of a matrix are quantized to 8 bits with one scale for all channels, and a few channels are much larger than
the others, which then lose their precision. So each channel is divided by a power of two, and the matrix's column
multiplied by it (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438). The power is the largest value of the channel,
raised to `STRENGTH`, over the texts of tests/data/chats-seen.json, computed in 32 bits.

Prints the cosines of the 8-bit vectors to those of 32 bits, without smoothing and with the one fitted, for generated
texts (bench/harness/texts.py). `--write` writes the file of the smoothing.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bench.embedder.graph import build_graph
from bench.harness.tables import show, track
from bench.harness.texts import TextGenerator
from bench.retrieval.chats import SEEN
from services.long_term_memory.embeddings.e5_model import E5ModelFile, model_path
from services.long_term_memory.embeddings.e5_tokenizer import E5Tokenizer
from services.long_term_memory.embeddings.onnx_e5 import (
    SMOOTHING,
    TokenVectors,
    graph_path,
    load_smoothing,
    open_session,
    weights,
)

#: By input of a layer: of attention, of the feed-forward network's two matrices. The last has the largest outliers.
STRENGTH = (0.5, 0.5, 0.7)
#: How many texts, half of them as queries; four times as many change hardly an exponent.
TEXTS = 400


class _Inputs:
    """The graphs' inputs for texts with their prefixes, each of a window at most."""

    def __init__(self, model: E5ModelFile) -> None:
        self._model, self._tokenizer, self._vectors = model, E5Tokenizer(model), TokenVectors(model)

    def of(self, text: str) -> dict[str, NDArray[np.float32]]:
        content = self._tokenizer.content_ids(text)[: self._model.max_tokens - 2]
        return {"embedded": self._vectors.of([self._model.bos, *content, self._model.eos])}


def seen_texts() -> list[str]:
    """Passages and queries of tests/data/chats-seen.json, with their prefixes; the same ones each time."""
    users = json.loads(SEEN.read_text())["users"]
    passages = [f"passage: {memory['content']}" for user in users for memory in user["memories"]]
    queries = [f"query: {question['question']}" for user in users for question in user["questions"]]
    drawn = random.Random(0)
    return drawn.sample(passages, TEXTS // 2) + drawn.sample(queries, TEXTS // 2)


def fit(model: E5ModelFile, inputs: _Inputs) -> NDArray[np.int8]:
    """The exponents, (layers, channels) int8, by which the channels of each layer's inputs are scaled."""
    session = open_session(build_graph(32).SerializeToString(), weights(model, 32, load_smoothing()))
    outputs = [output.name for output in session.get_outputs() if output.name != "mean"]
    largest = [np.full(1, 1e-2, np.float32)] * len(outputs)  # a channel that is never used must not be scaled up
    for text in track(seen_texts(), "embedding"):
        for n, output in enumerate(session.run(outputs, inputs.of(text))):
            largest[n] = np.maximum(largest[n], np.abs(output[0]).max(axis=0))
    powers = [STRENGTH[n % len(STRENGTH)] * np.log2(channels) for n, channels in enumerate(largest)]
    centered = [np.rint(power - power.mean()) for power in powers]
    layers = [centered[n : n + len(STRENGTH)] for n in range(0, len(centered), len(STRENGTH))]
    return np.array([np.concatenate(layer) for layer in layers], np.int8)


def cosines(model: E5ModelFile, inputs: _Inputs, smoothing: NDArray[np.int8]) -> dict[str, float]:
    """The cosines of 8-bit vectors to those of 32 bits."""
    exact = open_session(build_graph(32).SerializeToString(), weights(model, 32, load_smoothing()))
    quantized = open_session(graph_path(8).read_bytes(), weights(model, 8, smoothing))
    found = []
    for text in _generated():
        a, b = (session.run(["mean"], inputs.of(text))[0][0] for session in (exact, quantized))
        found.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    return {"min": min(found), "mean": float(np.mean(found))}


def _generated() -> Iterator[str]:
    texts = TextGenerator(0)
    for user in range(100):
        yield f"query: {texts.query(user)}"
        yield f"passage: {texts.statement(user)}"


def main() -> None:
    """Fit and print; write the smoothing if `--write` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the file of the smoothing")
    given = parser.parse_args()
    model = E5ModelFile(model_path())
    inputs = _Inputs(model)
    smoothing = fit(model, inputs)
    kinds = {"without smoothing": np.zeros_like(smoothing), "fitted": smoothing}
    show("cosine to 32 bits", {name: cosines(model, inputs, kind) for name, kind in kinds.items()}, 5)
    if given.write:
        np.save(SMOOTHING, smoothing)


if __name__ == "__main__":
    main()
