"""Facts among the memories of a search: which messages each was found in, and which of them another has replaced.

A fact is ranked by the same evidence as a message that stands alone, and measured by the statistics of the messages,
which therefore rank among themselves as if there were no facts. It and the messages that say it are one result.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Final

import numpy as np

from services.long_term_memory.retrieval.columns import Booleans, Floats, Integers, MemoryColumns
from services.long_term_memory.retrieval.features import Features

#: A message with up to so much more evidence than its fact, in log-odds, is found for what the fact says; one with more
#: is found for something else that it says. For nineteen in twenty first answers of the chats it is 5.7 at most; for a
#: message that stands alone, whose own meaning counts by half as much again, up to 8.
FOUND_FOR_IT: Final = 8.0


@dataclass(frozen=True)
class ColumnsWithFacts(MemoryColumns):
    """Memories of which the last ones are facts, in any order; the others are messages, as `MemoryColumns` has them.

    Args:
        first_fact: the row of the first fact.
        said: (e, 2) int64, the number of a fact, and that of a message that says it.
        replaced: (r, 2) int64, the number of a superseded fact, and that of the fact that replaced it.
    """

    first_fact: int
    said: Integers
    replaced: Integers

    @classmethod
    def of(
        cls, messages: MemoryColumns, facts: Sequence[MemoryColumns], said: Integers, replaced: Integers
    ) -> ColumnsWithFacts:
        """Messages, and facts behind them."""
        parts = [messages, *facts]
        together = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(MemoryColumns)}
        return cls(**together, first_fact=len(messages), said=said, replaced=replaced)

    @property
    def message_count(self) -> int:
        """How many of the memories are messages."""
        return self.first_fact

    @property
    def messages(self) -> slice:
        """The rows of messages, which statistics are of."""
        return slice(self.first_fact)

    @property
    def without_facts(self) -> MemoryColumns:
        """The messages alone."""
        return MemoryColumns.where(self, ~self.is_fact)

    @property
    def only_facts(self) -> MemoryColumns:
        """The facts alone."""
        return MemoryColumns.where(self, self.is_fact)

    @cached_property
    def is_fact(self) -> Booleans:
        """(n,) bool."""
        return np.arange(len(self)) >= self.first_fact

    @cached_property
    def said_rows(self) -> Integers:
        """(e', 2) int64, the rows of `said`, of messages that are among these memories."""
        return self._rows(self.said)

    @cached_property
    def replaced_rows(self) -> Integers:
        """(r', 2) int64, the rows of `replaced`; of a chain, as Oslo, Bergen, Lisbon, the first one first."""
        pairs = self._rows(self.replaced)
        old, new = pairs.T
        steps_left = np.zeros(len(self), np.int64)
        for _ in pairs:  # as often as the longest chain is long; a circle would be a fault of what wrote it
            further = steps_left[new] + 1
            if (steps_left[old] == further).all():
                break
            steps_left[old] = further
        return pairs[np.argsort(-steps_left[old], kind="stable")]

    @cached_property
    def statements(self) -> Booleans:
        """(n,) bool, whether it is a message that states something: statistics are of these alone."""
        return super().statements & ~self.is_fact

    @cached_property
    def turns(self) -> Integers:
        """(n,) int64, the sessions in which turns next to each other are neighbours; a fact has none."""
        return np.where(self.is_fact, np.arange(len(self)), self.session)

    @cached_property
    def session_index(self) -> Integers:
        """(n,) int64, the sessions of the messages numbered from 0, and for a fact that of one of its evidence."""
        index = np.zeros(len(self), np.int64)
        session = self.session[self.messages]
        index[1 : self.first_fact] = np.cumsum(session[1:] != session[:-1])
        index[self.said_rows[:, 0]] = index[self.said_rows[:, 1]]
        return index

    def where(self, kept: Booleans) -> ColumnsWithFacts:
        """The memories of the mask `kept`, (n,) bool, in the same order."""
        left = super().where(kept)
        count = int(np.count_nonzero(kept[self.messages]))
        return ColumnsWithFacts(
            **{f.name: getattr(left, f.name) for f in fields(MemoryColumns)},
            first_fact=count,
            said=self.said,
            replaced=self.replaced,
        )

    def _rows(self, pairs: Integers) -> Integers:
        """The rows of pairs of numbers, without those of which one is not among these memories."""
        if not len(self):
            return np.zeros((0, 2), np.int64)
        order = np.argsort(self.number)
        places = np.minimum(np.searchsorted(self.number, pairs, sorter=order), len(self) - 1)
        rows: Integers = order[places]
        found: Integers = rows[(self.number[rows] == pairs).all(axis=1)]
        return found


def with_facts(columns: MemoryColumns, features: Features, *, include_superseded: bool) -> Features:
    """The features, those of facts by those of the messages that say them.

    A fact is out where no message that says it passes the filters, and a superseded one unless it is asked for. It is
    an echo, or repeats the query, where all of them do, and of the times that they are of.
    """
    if not isinstance(columns, ColumnsWithFacts):
        return features
    fact, message = columns.said_rows.T

    def any_of(of: Booleans) -> Booleans:
        """Whether any message that says a fact is of the mask; where none was read, whether the fact itself is."""
        found = of.copy()
        found[fact] = False
        np.logical_or.at(found, fact, of[message])
        return found

    eligible = features.eligible & any_of(features.eligible)
    if not include_superseded:
        eligible &= ~np.isin(columns.number, columns.replaced[:, 0])
    then = None if features.then is None else features.then.copy()
    if then is not None:
        np.maximum.at(then, fact, then[message])
    echoes = np.where(columns.is_fact, ~any_of(~features.echoes), features.echoes)
    said_anew = any_of(~features.echoes & ~features.repeats)
    repeats = np.where(columns.is_fact, ~said_anew & ~echoes, features.repeats)
    return replace(features, eligible=eligible, echoes=echoes, repeats=repeats, then=then)


def ahead_of_what_they_replaced(columns: ColumnsWithFacts, evidence: Floats) -> Floats:
    """The evidence, (n,) float64, of facts at least that of the facts which they have replaced, and of their messages.

    The old fact is often worded like the question, and the new one is not: "lives in Oslo", "has moved to Lisbon". Of a
    message that says several facts, that counts for the one which answers best: who asks for the cat of "I live in Oslo
    and have a cat" is not told of Lisbon.
    """
    fact, message = columns.said_rows.T
    best_fact = np.full(len(columns), -np.inf)
    np.maximum.at(best_fact, message, evidence[fact])
    found_for = (evidence[fact] == best_fact[message]) & (evidence[message] <= evidence[fact] + FOUND_FOR_IT)
    said = defaultdict[int, set[int]](set)
    found_for_it = defaultdict[int, set[int]](set)
    for one, of_message, found in zip(fact.tolist(), message.tolist(), found_for.tolist(), strict=True):
        said[one].add(of_message)
        if found:
            found_for_it[one].add(of_message)
    lifted = evidence.tolist()
    for old, new in columns.replaced_rows.tolist():
        best = max([lifted[old], *(lifted[one] for one in found_for_it[old] - said[new])])
        lifted[new] = max(lifted[new], math.nextafter(best, math.inf))
    return np.array(lifted)
