"""Effect of the cutoff `min_score`: `python -m bench.retrieval.cutoff --data FILE [--json PATH]`.

The questions of each conversation of a LoCoMo file are asked of that conversation, and of the next one, which is
similar but does not answer them. "kept" is hit@5 and recall@10 of the former, "empty" the share of the latter without
results. Three sets of users: each conversation as one user; every 20 turns of a conversation as one user, with the
questions that they answer, and those that the same turns of the next conversation answer; and the users of
tests/data/chats-unseen.json, each with the questions of the next user of the same language.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keepsake_client.protocol import SearchData

from bench.harness.databases import scratch_database
from bench.harness.statistics import mean
from bench.harness.tables import show, track, write_json
from bench.retrieval.chats import UNSEEN, updates
from bench.retrieval.locomo import ANSWERABLE, Conversation, Question, read
from services.long_term_memory.factory import open_long_term_memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.retrieval.ranking import DEFAULT_MIN_SCORE
from services.runtime.settings import load_settings

FEW = 20
CUTOFFS = (0.0, 0.05, DEFAULT_MIN_SCORE, 0.12, 0.2)


@dataclass(frozen=True)
class Answer:
    """The result of one search: id and score of each memory, best first."""

    question: Question
    found: list[tuple[str, float]]

    def share(self, cutoff: float, first: int) -> float:
        """Recall of the evidence among the first results whose score is at least `cutoff`."""
        ids = {memory_id for memory_id, score in self.found[:first] if score >= cutoff}
        return len(self.question.evidence & ids) / len(self.question.evidence)


def few_at_a_time(conversation: Conversation) -> list[Conversation]:
    """Split a conversation: every `FEW` turns are one user, with the questions that these turns alone answer."""
    parts = []
    for begin in range(0, len(conversation.turns), FEW):
        user_id = f"{conversation.user_id} from {begin}"
        turns = [turn.model_copy(update={"user_id": user_id}) for turn in conversation.turns[begin : begin + FEW]]
        known = {turn.message_id for turn in turns}
        questions = [question for question in conversation.questions if question.evidence <= known]
        parts.append(Conversation(user_id, turns, questions))
    return parts


def by_language(path: Path) -> list[list[Conversation]]:
    """The users of a file in the format of tests/data/bilingual.json, grouped by language."""
    groups: dict[str, list[Conversation]] = defaultdict(list)
    for user in json.loads(path.read_text())["users"]:
        questions = [Question(q["question"], frozenset(q["answers"]), ANSWERABLE[0]) for q in user["questions"]]
        groups[user["language"]].append(Conversation(user["user_id"], updates(user), questions))
    return list(groups.values())


def each_with_the_next(conversations: Sequence[Conversation]) -> list[tuple[Conversation, Conversation]]:
    """Pairs of each conversation and the next, the last and the first; none of a single one."""
    following = [*conversations[1:], *conversations[:1]]
    return list(zip(conversations, following, strict=True)) if len(conversations) > 1 else []


def ask(memories: MemoryService, conversation: Conversation, questions: Sequence[Question]) -> list[Answer]:
    """Search the conversation for each question of an answerable category."""
    answers = []
    for question in questions:
        if question.category in ANSWERABLE:
            search = SearchData(query=question.text, limit=10, min_score=0.0)
            found = memories.search(conversation.user_id, search, now=conversation.ends_at + 3_600)
            answers.append(Answer(question, [(str(m.metadata["message_id"]), m.score or 0.0) for m in found]))
    return answers


def measure(memories: MemoryService, users: Sequence[tuple[Conversation, Conversation]]) -> dict[str, dict[str, float]]:
    """The figures by cutoff.

    Args:
        users: a conversation, and another one whose questions it does not answer.
    """
    own, others = [], []
    for user, other in track(users, "asking"):
        memories.index_many(user.turns)
        own += ask(memories, user, user.questions)
        others += ask(memories, user, other.questions)
    return {
        f"{cutoff:.2f}": {
            "kept, hit@5": mean([float(answer.share(cutoff, 5) > 0) for answer in own]),
            "kept, recall@10": mean([answer.share(cutoff, 10) for answer in own]),
            "empty": mean([float(all(score < cutoff for _, score in answer.found)) for answer in others]),
        }
        for cutoff in CUTOFFS
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a file in LoCoMo's format: two conversations or more")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    whole = each_with_the_next(read(given.data))
    few = [
        pair
        for conversation, other in whole
        for pair in zip(few_at_a_time(conversation), few_at_a_time(other), strict=False)
    ]
    chats = [pair for users in by_language(UNSEEN) for pair in each_with_the_next(users)]
    with scratch_database() as url:
        ltm = open_long_term_memory(load_settings(database_url=url), 1)
        figures = {
            f"{given.data.name}, whole conversations": measure(ltm.memories, whole),
            f"{given.data.name}, {FEW} memories a user": measure(ltm.memories, few),
            UNSEEN.name: measure(ltm.memories, chats),
        }
        ltm.close()
    for title, table in figures.items():
        show(f"{title}, by min_score", table)
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
