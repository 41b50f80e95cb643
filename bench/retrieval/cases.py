"""Where the right memory ranks in cases that the console has saved: `python -m bench.retrieval.cases FILE...`.

Each line of a file is one user's messages and one question whose answer should have been first; the console's page Ask
downloads them. A case is searched as it was asked: with its options, at its time. Facts are not in it, only messages.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keepsake_client.protocol import SearchData
from rich.console import Console

from bench.harness.databases import scratch_database
from bench.harness.statistics import mean
from bench.harness.tables import show, track, write_json
from bench.retrieval.chats import read_users, updates
from services.long_term_memory.factory import open_long_term_memory
from services.long_term_memory.memory_service import MemoryService
from services.runtime.settings import load_settings

#: Results that are looked at for the answer.
DEPTH = 100


@dataclass(frozen=True)
class Case:
    """What became of one question.

    Args:
        place: of the first memory that answers it, 0 for the first; None where it is not among `DEPTH`.
        score: of that memory.
        returned: whether it is returned by the limit and min_score that the question was asked with.
    """

    id: str
    question: str
    place: int | None
    score: float
    returned: bool


def measure(memories: MemoryService, users: Iterable[dict[str, Any]]) -> list[Case]:
    """What becomes of the questions of these users, whose messages are stored first."""
    cases = []
    for user in users:
        memories.index_many(updates(user))
        now = max(update.timestamp for update in updates(user)) + 3_600
        for question in user["questions"]:
            cases.append(_asked(memories, str(user["user_id"]), question, now))
    return cases


def _asked(memories: MemoryService, user_id: str, question: Mapping[str, Any], now: float) -> Case:
    asked = SearchData.model_validate({**question.get("options", {}), "query": question["question"]})
    at, right = question.get("asked_at", now), frozenset(question["answers"])
    everything = asked.model_copy(update={"limit": DEPTH, "min_score": 0.0})
    found = memories.search(user_id, everything, now=at)
    places = [place for place, memory in enumerate(found) if memory.metadata["message_id"] in right]
    returned = memories.search(user_id, asked, now=at)
    return Case(
        id=str(question.get("id", "")),
        question=str(question["question"]),
        place=places[0] if places else None,
        score=(found[places[0]].score or 0.0) if places else 0.0,
        returned=any(memory.metadata["message_id"] in right for memory in returned),
    )


def figures_of(cases: list[Case]) -> dict[str, float]:
    """The shares of the cases whose answer is first, among the first five, and returned."""
    return {
        "cases": float(len(cases)),
        "first": mean([float(case.place == 0) for case in cases]),
        "within 5": mean([float(case.place is not None and case.place < 5) for case in cases]),
        "returned": mean([float(case.returned) for case in cases]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="lines of JSON")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    users = [user for path in given.files for user in read_users(path)]
    users = [{**user, "user_id": f"case {number}"} for number, user in enumerate(users)]  # each with its own memories
    with scratch_database() as url:
        ltm = open_long_term_memory(load_settings(database_url=url), 1)
        cases = measure(ltm.memories, track(users, "cases"))
        ltm.close()
    for case in cases:
        where = "not found" if case.place is None else f"place {case.place + 1}, score {case.score:.2f}"
        missed = "" if case.returned else ", not returned"
        Console().print(f"{case.id}: {where}{missed}: {case.question}", markup=False, highlight=False)
    show("cases", {"full": figures_of(cases)})
    write_json(given.json, figures_of(cases))


if __name__ == "__main__":
    main()
