"""Results of a search: a fact and the messages that say it are one, which the better of them stands for."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import numpy as np

from services.long_term_memory.retrieval.columns import MemoryColumns
from services.long_term_memory.retrieval.facts import ColumnsWithFacts
from services.long_term_memory.retrieval.ranking import Ranking

#: Facts that go with each message, as (row, score), best first.
Attached = dict[int, list[tuple[int, float]]]
_NO_FACTS: Final[Attached] = {}


def depth_for(columns: MemoryColumns, limit: int) -> int:
    """How many memories of a ranking hold so many results, however many of them are one."""
    if not isinstance(columns, ColumnsWithFacts) or not len(columns.said_rows):
        return limit
    return limit * (1 + int(np.bincount(columns.said_rows.ravel()).max()))


def results(ranking: Ranking, columns: MemoryColumns, limit: int) -> tuple[Ranking, Attached]:
    """The first `limit` results of a ranking, and the facts that go with the messages among them.

    A message that is shown says all that its facts say, so they go with it. A fact that is shown stands for the
    messages that say it, but not for what else these say: where two facts of one message are better than it, they are
    two results.
    """
    if not isinstance(columns, ColumnsWithFacts):
        return ranking.first(limit), _NO_FACTS
    said = defaultdict(list)
    for fact, message in columns.said_rows[np.isin(columns.said_rows[:, 0], ranking.rows)].tolist():
        said[fact].append(message)
    shown, stood_for, attached = np.zeros(len(ranking), np.bool_), set[int](), defaultdict(list)
    messages = set[int]()
    for place, (row, score) in enumerate(zip(ranking.rows.tolist(), ranking.score.tolist(), strict=True)):
        if row in stood_for:
            continue
        if with_message := [message for message in said[row] if message in messages]:
            attached[with_message[0]].append((row, score))
        elif limit > 0:
            limit -= 1
            shown[place] = True
            if row < columns.message_count:
                messages.add(row)
            else:
                stood_for.update(said[row])
    return ranking.where(shown), attached
