"""Neighbours: how much of the turns around a turn counts as its own, in a conversation and in a stream of notes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from services.long_term_memory.retrieval.columns import Booleans, Floats, MemoryColumns
from services.long_term_memory.retrieval.utterances import Question

#: Turns before and after a turn that are its neighbours.
NEIGHBOUR_DISTANCES: Final = (1, 2)
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
        joined: for each distance d: (n - d,) bool, whether rows i and i + d are neighbours.
        forward: for each distance d: (n - d,) float64, how much of its weight in the kernel row i has in row i + d.
        backward: for each distance d: (n - d,) float64, how much of its weight row i + d has in row i.
        answered: (n - 1,) bool, whether row i asks and row i + 1 may answer.
        statements: (n,) bool, MemoryColumns.statements.
    """

    joined: tuple[Booleans, ...]
    forward: tuple[Floats, ...]
    backward: tuple[Floats, ...]
    answered: Booleans
    statements: Booleans

    @classmethod
    def of(cls, columns: MemoryColumns, same_speaker: float) -> Neighbours:
        """The neighbours among these memories.

        Args:
            same_speaker: how much of its weight a turn has in the next turn of the same speaker.
        """
        ai, states, named, only_asks = columns.from_ai, columns.statements, columns.speaker != 0, ~columns.statements
        changes = (columns.speaker[1:] != columns.speaker[:-1]) | (ai[1:] != ai[:-1])
        step = np.where(changes, 1.0, same_speaker)
        share = {1: step, 2: np.minimum(step[1:], step[:-1])}  # both steps between must let it through
        joined, forward, backward = [], [], []
        for d in NEIGHBOUR_DISTANCES:
            alike = (ai[d:] != ai[:-d]) | (named[d:] == named[:-d])
            both = (columns.session[d:] == columns.session[:-d]) & alike
            replies = ai[d:] & ~ai[:-d]
            if d == 1:
                replies &= states[:-1]
            joined.append(both)
            forward.append(np.where(both & states[d:] & ~replies, share[d], 0.0))
            backward.append(np.where(both & states[:-d] & ~(ai[:-d] & ~ai[d:]), share[d], 0.0))
        answered = (columns.asks[:-1] > Question.NOTHING) & (~ai[1:] | only_asks[:-1])
        return cls(tuple(joined), tuple(forward), tuple(backward), answered, states)

    def shares(self, kernel: tuple[float, float], follow_up_boost: float) -> Shares:
        """Weights of neighbouring turns in each other.

        Args:
            kernel: the weights of turns one and two away.
            follow_up_boost: added for a turn that follows directly on one which asks: it is often the answer.
        """
        shares = []
        for d, weight, forward, backward in zip(NEIGHBOUR_DISTANCES, kernel, self.forward, self.backward, strict=True):
            onward = weight + follow_up_boost * self.answered if d == 1 else weight
            shares.append((d, onward * forward, weight * backward))
        return shares

    def own(self, kernel: tuple[float, float]) -> Floats:
        """The weight of each turn in itself, (n,) float64: 1, and that of the neighbours that its session lacks.

        Nothing around a note that stands alone supports it; every turn of a long chat, which has neighbours, would come
        before it.
        """
        lacking = np.full(len(self.statements), 2.0 * sum(kernel))
        for d, weight, joined in zip(NEIGHBOUR_DISTANCES, kernel, self.joined, strict=True):
            lacking[d:] -= weight * joined
            lacking[:-d] -= weight * joined
        weights: Floats = 1.0 + np.where(self.statements, lacking, 0.0)
        return weights


def passages(values: Floats, own: Floats, shares: Shares) -> Floats:
    """The value of each turn and its neighbours by weight, (n,) float64."""
    total = values * own
    for d, forward, backward in shares:
        total[d:] += forward * values[:-d]
        total[:-d] += backward * values[d:]
    return total
