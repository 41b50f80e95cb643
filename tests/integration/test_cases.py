"""Cases that the console saved are searched as they were asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.retrieval.cases import figures_of, measure
from bench.retrieval.chats import read_users
from services.long_term_memory.factory import open_long_term_memory
from services.runtime.settings import load_settings

SAID = ("My cat is called Mochi", "I moved to Porto in spring", "My sister keeps bees", "The train was late again")


def line(question: str, answer: int, **options: Any) -> str:
    memories = [
        {"id": f"m{n}", "session": None, "timestamp": 1_700_000_000 + n, "source": "user", "content": text}
        for n, text in enumerate(SAID)
    ]
    asked = {"id": "req-1", "question": question, "kind": "case", "answers": [f"m{answer}"]}
    questions = [{**asked, "asked_at": 1_700_009_000.0, "options": options}]
    return json.dumps({"user_id": "case", "language": "en", "memories": memories, "questions": questions})


def test_a_case_says_where_its_answer_ranks_and_whether_it_was_returned(database: str, tmp_path: Path) -> None:
    """Given a case whose answer is first, and one that its min_score cut off, I expect where both rank, and the cut."""
    path = tmp_path / "cases.jsonl"
    path.write_text("\n".join([line("What is my cat called?", 0), line("Where did I move to?", 1, min_score=1)]) + "\n")
    ltm = open_long_term_memory(load_settings(database_url=database), 1)

    found, cut = measure(ltm.memories, read_users(path))
    ltm.close()

    assert (found.place, found.returned) == (0, True)
    assert (cut.place, cut.returned) == (0, False)
    assert figures_of([found, cut]) == {"cases": 2, "first": 1.0, "within 5": 1.0, "returned": 0.5}
