"""Neighbours: how much of the turns around a turn counts as its own, in a conversation and in a stream of notes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.long_term_memory.retrieval.columns import Floats, MemoryColumns
from services.long_term_memory.retrieval.utterances import Question

#: Turns before and after a turn that are its neighbours.
NEIGHBOUR_DISTANCES: Final = (1, 2)
#: Shares of a weight: half of the memory of float64, which took most of the time, is enough.
Halves = NDArray[np.float32]
#: For each distance d: d, and the weights of row i in row i + d and of row i + d in row i, both (n - d,) float64.
Shares = list[tuple[int, Floats, Floats]]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Which turns are neighbours, for every kernel.

    * Neighbours are of one session, and both with a speaker's name or both without, unless one is the AI's: between
      "Anna: ..." and "Ben: ...", a line without a name is a note that has come in between.
    * A turn that only asks takes nothing: a row of questions would lift one another above every answer.
    * The AI takes nothing of what the user states, which its reply repeats, and then the reply would come before the
      fact; but of a question directly before it, because then the reply alone is the answer.
    * Where one speaker goes on, a turn takes less: it is often about something else.

    Args:
        forward: for each distance d: (n - d,) float32, how much of its weight in the kernel row i has in row i + d.
        backward: for each distance d: (n - d,) float32, how much of its weight row i + d has in row i.
        answers: (n - 1,) float32, how much of the follow-up boost row i + 1 has, because row i asks and it may answer.
        lacking: for each distance d: (n,) int8, how many of its two neighbours each turn lacks; 0 if it only asks.
    """

    forward: tuple[Halves, ...]
    backward: tuple[Halves, ...]
    answers: Halves
    lacking: tuple[NDArray[np.int8], ...]

    @classmethod
    def of(cls, columns: MemoryColumns, same_speaker: float) -> Neighbours:
        """The neighbours among these memories.

        Args:
            same_speaker: how much of its weight a turn has in the next turn of the same speaker.
        """
        ai, states, named = columns.from_ai, columns.statements, columns.speaker != 0
        changes = (columns.speaker[1:] != columns.speaker[:-1]) | (ai[1:] != ai[:-1])
        step = np.where(changes, np.float32(1), np.float32(same_speaker))
        share = {1: step, 2: np.minimum(step[1:], step[:-1])}  # both steps between must let it through
        forward, backward, lacking = [], [], []
        for d in NEIGHBOUR_DISTANCES:
            joined = columns.turns[d:] == columns.turns[:-d]
            joined &= (ai[d:] != ai[:-d]) | (named[d:] == named[:-d])
            replies = ai[d:] & ~ai[:-d]
            if d == 1:
                replies &= states[:-1]
            forward.append(share[d] * (joined & states[d:] & ~replies))
            backward.append(share[d] * (joined & states[:-d] & ~(ai[:-d] & ~ai[d:])))
            lacks = np.full(len(columns), 2, np.int8)
            lacks[d:] -= joined
            lacks[:-d] -= joined
            lacking.append(lacks * states)
        answers = forward[0] * ((columns.asks[:-1] > Question.NOTHING) & (~ai[1:] | ~states[:-1]))
        return cls(tuple(forward), tuple(backward), answers, tuple(lacking))

    def shares(self, kernel: tuple[float, float], follow_up_boost: float) -> Shares:
        """Weights of neighbouring turns in each other.

        Args:
            kernel: the weights of turns one and two away.
            follow_up_boost: added for a turn that follows directly on one which asks: it is often the answer.
        """
        each = zip(NEIGHBOUR_DISTANCES, kernel, self.forward, self.backward, strict=True)
        shares = [(d, _weighted(forward, weight), _weighted(backward, weight)) for d, weight, forward, backward in each]
        onward = shares[0][1]
        onward += _weighted(self.answers, follow_up_boost)
        return shares

    def own(self, kernel: tuple[float, float]) -> Floats:
        """The weight of each turn in itself, (n,) float64: 1, and that of the neighbours that its session lacks.

        Nothing around a note that stands alone supports it; every turn of a long chat, which has neighbours, would come
        before it.
        """
        weights = np.ones(len(self.lacking[0]))
        for weight, lacking in zip(kernel, self.lacking, strict=True):
            weights += weight * lacking
        return weights


def _weighted(share: Halves, weight: float) -> Floats:
    return np.multiply(share, weight, dtype=np.float64)


def passages(values: Floats, own: Floats, shares: Shares) -> Floats:
    """The value of each turn and its neighbours by weight, (n,) float64."""
    total = values * own
    for d, forward, backward in shares:
        total[d:] += forward * values[:-d]
        total[:-d] += backward * values[d:]
    return total
