"""Turns of a conversation as columns, as the store would have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from keepsake_client.protocol import Speaker

from services.long_term_memory.retrieval.columns import MemoryColumns, hashed, hashed_terms
from services.long_term_memory.retrieval.fingerprints import fingerprint
from services.long_term_memory.retrieval.speakers import speaker_hash
from services.long_term_memory.retrieval.tokenizer import terms
from services.long_term_memory.retrieval.utterances import asks, script, speaker
from services.long_term_memory.retrieval.weights import Weights

# Cosines, by how many deviations they exceed those of unrelated texts.
UNRELATED, RELATED, VERY_NEAR = (
    Weights().unrelated_cosine[0][0] + deviations * Weights().cosine_deviation for deviations in (-1, 3, 5)
)


@dataclass(frozen=True)
class Turn:
    """One memory.

    Args:
        cosine: to the query.
        timestamp: seconds since 1970.
        speaker: who of several people said it, where that is known from more than the text.
    """

    text: str
    cosine: float = UNRELATED
    session: int = 1
    from_ai: bool = False
    added: bool = False
    timestamp: float = 0.0
    speaker: Speaker | None = None


def columns_of(turns: Sequence[Turn]) -> MemoryColumns:
    """The turns, numbered from 0, as columns."""
    words = [terms(turn.text) for turn in turns]
    return MemoryColumns(
        number=np.arange(len(turns)),
        session=np.array([turn.session for turn in turns], np.int64),
        timestamp=np.array([turn.timestamp for turn in turns], np.float64),
        from_ai=np.array([turn.from_ai for turn in turns], np.bool_),
        added=np.array([turn.added for turn in turns], np.bool_),
        asks=np.array([asks(turn.text, from_ai=turn.from_ai) for turn in turns], np.int64),
        script=np.array([script(turn.text) for turn in turns], np.int64),
        speaker=np.array([_speaker(turn) for turn in turns], np.int64),
        fingerprint=np.array([hashed(fingerprint(turn.text)) for turn in turns], np.int64),
        length=np.array([len(w) for w in words], np.int64),
        terms=hashed_terms([word for w in words for word in w]).astype(np.uint32),
        cosine=np.array([turn.cosine for turn in turns], np.float64),
    )


def _speaker(turn: Turn) -> int:
    return speaker_hash(turn.speaker.model_dump(exclude_none=True) if turn.speaker else None, speaker(turn.text))
