"""Data sets of retrieval: users with messages and questions, from files in three forms.

* LoCoMo's (Maharana et al., ACL 2024, arXiv:2402.17753);
* that of tests/data: `{"users": [{user_id, language, memories, questions}]}`;
* a list of users: `{user, messages: [{id, text, source, timestamp, session}], questions: [{text, evidence, kind,
  asked_at}]}`, where evidence is a list of message ids. The id of a whole chat, "chat:10", names all of its turns,
  "chat:10#1" and so on. A question without evidence is unanswerable.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from keepsake_client.protocol import MemoryUpdateMessage, Speaker

from bench.retrieval import locomo
from bench.retrieval.chats import updates

#: The kind that is left out of a set's figures, because its questions are wrong on purpose; by kind it is shown.
ADVERSARIAL = locomo.CATEGORIES[5]
#: Of tests/data: a question in another language than its answer.
ACROSS_LANGUAGES = "cross"
#: A caption, as `locomo` appends it.
_CAPTION = re.compile(r" \[photo: .*\]$", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """A question.

    Args:
        evidence: for each part of the answer, the message_ids that hold it: any of them is enough. None: unanswerable.
        asked_at: in seconds since 1970.
        asker: who of several people asks.
    """

    text: str
    kind: str
    evidence: tuple[frozenset[str], ...]
    asked_at: float
    asker: Speaker | None = None


@dataclass(frozen=True)
class User:
    """One user's messages, in the order of their arrival, and questions."""

    name: str
    messages: list[MemoryUpdateMessage]
    questions: list[Question]


def read(path: Path) -> list[User]:
    """The users of a file in any of the three forms."""
    stored = json.loads(path.read_text())
    if isinstance(stored, dict):
        return [_of_chats(user) for user in stored["users"]]
    if "conversation" in stored[0]:
        return [_of_locomo(conversation) for conversation in locomo.read(path)]
    return [_of_list(user) for user in stored]


def without_captions(user: User) -> User:
    """The user with messages that lack the captions of shared photos."""
    bare = [m.model_copy(update={"content": _CAPTION.sub("", m.content)}) for m in user.messages]
    return replace(user, messages=bare)


def _of_locomo(conversation: locomo.Conversation) -> User:
    now = conversation.ends_at + 3_600
    questions = [
        Question(q.text, locomo.CATEGORIES[q.category], tuple(frozenset([e]) for e in sorted(q.evidence)), now)
        for q in conversation.questions
    ]
    return User(conversation.user_id, conversation.turns, questions)


def _of_chats(user: dict[str, Any]) -> User:
    messages = updates(user)
    now = max(message.timestamp for message in messages) + 3_600
    # Any of the answers is enough: each says it all.
    questions = [
        Question(
            q["question"],
            q["kind"],
            (frozenset(q["answers"]),),
            now,
            Speaker(**q["asker"]) if "asker" in q else None,
        )
        for q in user["questions"]
    ]
    return User(user["user_id"], messages, questions)


def _of_list(user: dict[str, Any]) -> User:
    messages = [
        MemoryUpdateMessage(
            user_id=user["user"],
            content=message["text"],
            source=message["source"],
            timestamp=message["timestamp"],
            meta={"session_id": message["session"]} if message["session"] is not None else {},
            message_id=message["id"],
        )
        for message in user["messages"]
    ]
    turns: dict[str, set[str]] = defaultdict(set)
    for message in user["messages"]:
        turns[message["id"]].add(message["id"])
        turns[message["id"].partition("#")[0]].add(message["id"])
    questions = [
        Question(q["text"], q["kind"], tuple(frozenset(turns[e]) for e in q["evidence"]), q["asked_at"])
        for q in user["questions"]
    ]
    return User(user["user"], messages, questions)
