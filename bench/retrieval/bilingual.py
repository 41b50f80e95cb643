"""hit@1 and hit@5 on chats in Chinese, English and both.

`python -m bench.retrieval.bilingual [--data FILE] [--misses] [--json PATH]`.

tests/data/bilingual.json holds memories of six users, and questions about them, each of one kind. A question is a hit
at k if one of the memories that answer it is among the first k results. chats-seen.json, beside it, is sixteen times as
large; the ranking's constants and the projection of queries were chosen on these two (`bench.retrieval.projection` has
the leave-users-out cross-validation). chats-unseen.json measures how they generalize.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

from keepsake_client.protocol import SearchData
from rich.console import Console

from bench.harness.databases import scratch_database
from bench.harness.statistics import mean
from bench.harness.tables import show, track, write_json
from bench.retrieval.chats import BILINGUAL, read_users, updates
from bench.retrieval.variants import VARIANTS
from services.long_term_memory.factory import open_long_term_memory
from services.runtime.settings import load_settings


def measure(users: list[dict[str, Any]], database_url: str) -> tuple[dict[str, dict[str, float]], list[str]]:
    """hit@1 and hit@5 by kind of question for each variant, and the misses of the full ranking, as text."""
    settings = load_settings(database_url=database_url)
    opened = {name: open_long_term_memory(settings, 1, weights) for name, weights in VARIANTS.items()}
    for user in track(users, "indexing"):
        opened["full"].memories.index_many(updates(user))
    places: dict[str, dict[str, list[int]]] = {name: defaultdict(list) for name in VARIANTS}
    misses = []
    for user in track(users, "asking"):
        contents = {memory["id"]: memory["content"] for memory in user["memories"]}
        now = max(update.timestamp for update in updates(user)) + 3_600
        for question in user["questions"]:
            search = SearchData(query=question["question"], limit=100, min_score=0.0)
            for name, ltm in opened.items():
                found = ltm.memories.search(user["user_id"], search, now=now)
                ids = [memory.metadata["message_id"] for memory in found]
                place = min((ids.index(a) for a in question["answers"] if a in ids), default=len(contents))
                language = "across languages" if question["kind"] == "cross" else "own language"
                for group in (question["kind"], f"chats in {user['language']}", language, "all"):
                    places[name][group].append(place)
                if name == "full" and place >= 5:
                    wanted = " | ".join(contents[answer] for answer in question["answers"])
                    misses.append(
                        f"{question['id']} ({question['kind']}), place {place + 1}: {question['question']} -> {wanted}"
                    )
    for ltm in opened.values():
        ltm.close()
    figures = {
        name: {
            f"{group} @{k}": mean([float(place < k) for place in found])
            for group, found in sorted(groups.items())
            for k in (1, 5)
        }
        for name, groups in places.items()
    }
    return figures, misses


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=BILINGUAL, help="a file that bench.retrieval.chats reads")
    parser.add_argument("--misses", action="store_true", help="print the questions without a hit@5 in the full ranking")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    users = read_users(given.data)
    with scratch_database() as url:
        figures, misses = measure(users, url)
    columns = {group: {name: figures[name][group] for name in figures} for group in figures["full"]}
    show(f"{given.data.name}: hit@k by kind of question", columns)
    if given.misses:
        Console().print(*misses, sep="\n", markup=False)
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
