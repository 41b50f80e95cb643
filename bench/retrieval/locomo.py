"""Recall and hit rate on LoCoMo conversations: `python -m bench.retrieval.locomo --data FILE [--echo] [--json PATH]`.

Each conversation is one user, each turn one memory. The turns that a question's evidence names answer it.
LoCoMo: Maharana et al., ACL 2024, arXiv:2402.17753.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from keepsake_client.protocol import Memory, MemoryUpdateMessage, SearchData

from bench.harness.databases import scratch_database
from bench.harness.statistics import mean, quantile, timed
from bench.harness.tables import show, track, write_json
from bench.retrieval.variants import VARIANTS
from services.long_term_memory.factory import open_long_term_memory
from services.runtime.settings import load_settings

CUTS = (1, 5, 10, 20)
SESSION_CUTS = (5, 10)
ANSWERABLE = (1, 2, 3, 4)
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}


@dataclass(frozen=True)
class Question:
    """A question, the turns that answer it, and its category."""

    text: str
    evidence: frozenset[str]
    category: int


@dataclass(frozen=True)
class Conversation:
    """One user's turns and questions."""

    user_id: str
    turns: list[MemoryUpdateMessage]
    questions: list[Question]

    @property
    def ends_at(self) -> float:
        """The last turn's time, in seconds since 1970."""
        return max(turn.timestamp for turn in self.turns)


def read(path: Path) -> list[Conversation]:
    """Read the conversations of a file in LoCoMo's format."""
    samples = json.loads(path.read_text())
    return [_conversation(sample, f"{sample.get('sample_id', 'user')}-{n}") for n, sample in enumerate(samples)]


def _conversation(sample: dict[str, Any], user_id: str) -> Conversation:
    turns = list(_turns(sample["conversation"], user_id))
    known = {turn.message_id for turn in turns}
    questions = []
    for qa in sample["qa"]:
        # Some evidence strings hold several ids.
        named = {found for entry in qa.get("evidence") or [] for found in re.findall(r"D\d+:\d+", entry)}
        if evidence := frozenset(named & known):
            questions.append(Question(str(qa["question"]), evidence, int(qa["category"])))
    return Conversation(user_id, turns, questions)


def _turns(conversation: dict[str, Any], user_id: str) -> Iterator[MemoryUpdateMessage]:
    numbers = sorted(int(name.split("_")[1]) for name in conversation if re.fullmatch(r"session_\d+", name))
    for number in numbers:
        begin = datetime.strptime(conversation[f"session_{number}_date_time"], "%I:%M %p on %d %B, %Y")
        for place, turn in enumerate(conversation[f"session_{number}"]):
            photo = f" [photo: {turn['blip_caption']}]" if turn.get("blip_caption") else ""
            yield MemoryUpdateMessage(
                user_id=user_id,
                content=f"{turn['speaker']}: {turn.get('text') or ''}{photo}",
                source="user",
                timestamp=begin.replace(tzinfo=UTC).timestamp() + 30 * place,
                meta={"session_id": f"session_{number}"},
                message_id=turn["dia_id"],
            )


@dataclass
class Tally:
    """The results of one ranking variant.

    Args:
        found: each question with the message_ids found, best first.
        ms: how long each search took.
    """

    found: list[tuple[Question, list[str]]]
    ms: list[float]

    def figures(self) -> dict[str, float]:
        """Recall, hit rates and times by name."""
        asked = [(q, ids) for q, ids in self.found if q.category in ANSWERABLE]
        figures = {f"recall@{k}": mean([_share(q, ids[:k]) for q, ids in asked]) for k in CUTS}
        figures |= {f"hit@{k}": mean([float(_share(q, ids[:k]) > 0) for q, ids in asked]) for k in CUTS}
        by_category: dict[int, list[float]] = defaultdict(list)
        for question, ids in self.found:
            by_category[question.category].append(_share(question, ids[:10]))
        figures |= {f"recall@10 {CATEGORIES[c]}": mean(by_category[c]) for c in sorted(by_category)}
        for k in SESSION_CUTS:
            hits = [float(bool({_session(e) for e in q.evidence} & set(_sessions(ids)[:k]))) for q, ids in self.found]
            figures[f"session_hit@{k}"] = mean(hits)
        return figures | {"ms_median": quantile(self.ms, 0.5), "ms_p95": quantile(self.ms, 0.95)}


def _share(question: Question, ids: list[str]) -> float:
    return len(question.evidence & set(ids)) / len(question.evidence)


def _session(turn_id: str) -> str:
    return turn_id.partition(":")[0]


def _sessions(ids: list[str]) -> list[str]:
    """The sessions of turns, each at the rank of its first turn."""
    return list(dict.fromkeys(_session(turn_id) for turn_id in ids))


def _ids(memories: list[Memory]) -> list[str]:
    return [str(memory.metadata.get("message_id")) for memory in memories]


def measure(conversations: list[Conversation], database_url: str, *, echo: bool) -> dict[str, dict[str, float]]:
    """The figures of each ranking variant by name, and the embedder's time.

    Args:
        echo: index every question as a message just before its search.
    """
    settings = load_settings(database_url=database_url)
    tallies = {name: Tally([], []) for name in VARIANTS}
    embedding_ms: list[float] = []
    opened = {name: open_long_term_memory(settings, 1, weights) for name, weights in VARIANTS.items()}
    full = opened["full"]
    turns = [turn for conversation in conversations for turn in conversation.turns]
    for begin in track(range(0, len(turns), 32), "indexing"):
        full.memories.index_many(turns[begin : begin + 32])
    asked = [(conversation, question) for conversation in conversations for question in conversation.questions]
    for number, (conversation, question) in enumerate(track(asked, "asking")):
        now = conversation.ends_at + 3_600 + number
        if echo:
            full.memories.index(
                MemoryUpdateMessage(
                    user_id=conversation.user_id,
                    content=question.text,
                    source="user",
                    timestamp=now,
                    meta={"session_id": "asking"},
                    message_id=f"asked-{number}",
                )
            )
        search = SearchData(query=question.text, limit=100, min_score=0.0)
        embedding_ms.append(timed(lambda: full.embedder.embed(question.text, "search"))[1])  # noqa: B023 - called at once
        for name, ltm in opened.items():
            found, ms = timed(lambda: ltm.memories.search(conversation.user_id, search, now=now))  # noqa: B023 - at once
            tallies[name].found.append((question, _ids(found)))
            tallies[name].ms.append(ms)
    for ltm in opened.values():
        ltm.close()
    figures = {name: tally.figures() for name, tally in tallies.items()}
    figures["embedding"] = {"ms_median": quantile(embedding_ms, 0.5), "ms_p95": quantile(embedding_ms, 0.95)}
    figures["full"]["ms_ratio"] = figures["full"]["ms_median"] / figures["embedding"]["ms_median"]
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a file in LoCoMo's format")
    parser.add_argument("--echo", action="store_true", help="index every question as a message just before it is asked")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    conversations = read(given.data)
    with scratch_database() as url:
        figures = measure(conversations, url, echo=given.echo)
    turns, questions = (
        sum(map(len, part)) for part in zip(*((c.turns, c.questions) for c in conversations), strict=True)
    )
    show(f"{given.data.name}: {turns} turns, {questions} questions{', with echo' if given.echo else ''}", figures)
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
