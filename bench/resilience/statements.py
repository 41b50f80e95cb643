"""Statements whose facts the rule-based model gives whatever the batch, and the facts that are stored for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import psycopg

from bench.harness.rule_model import find

#: Of every eight, one is replaced by a later one of its kind, one says two things, and one nothing.
_FORMS: Final = (
    "I like tea number {n}.",
    "I can't stand noise number {n}.",
    "I moved to town {n}.",
    "I have a cat called Mochi {n}.",
    "我喜欢第{n}首歌。",
    "We painted the kitchen of house {n} together.",
    "I like song {n}. I am allergic to nuts of kind {n}.",
    "Do you remember topic {n}?",
)
#: Where a user lives now: of two such in one batch, the model gives the later one alone.
_REPLACED: Final = "lives in"

_FACTS: Final = (
    "SELECT o.user_id, m.content, m.payload ? 'request_id', f.content, fo.user_id FROM memories m"
    " JOIN users o ON o.number = m.user_number LEFT JOIN fact_evidence e ON e.memory_number = m.number"
    " LEFT JOIN memories f ON f.number = e.fact_number LEFT JOIN users fo ON fo.number = f.user_number"
    " WHERE o.kind = 'message' ORDER BY m.said_at, m.number"
)
_KINDS: Final = (
    "SELECT kind, count(*), count(*) FILTER (WHERE NOT EXISTS (SELECT FROM fact_evidence WHERE fact_number = m.number))"
    " FROM memories m JOIN users u ON u.number = user_number WHERE kind <> 'message' GROUP BY kind"
)
_SET_ASIDE: Final = "SELECT count(*) FILTER (WHERE set_aside IS NULL), count(set_aside) FROM to_extract"


def statement(number: int) -> str:
    """What a user says; no other number's facts are the same."""
    return _FORMS[number % len(_FORMS)].format(n=f"{number:06d}")


def expected_facts(content: str) -> list[str]:
    """The texts of the facts that the rule-based model gives for one message alone."""
    message = {"n": 1, "at": "2026-01-01 Thu 00:00", "by": "user", "text": content}
    return [fact["text"] for fact in find({"profile": {}, "facts": [], "before": [], "new": [message]})["facts"]]


@dataclass(frozen=True)
class Said:
    """A stored message, and the facts that it is evidence of.

    Args:
        added: it was added by a request, and so is not read.
        facts: the owner's id and the text of each.
    """

    user: str
    content: str
    added: bool
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class StoredFacts:
    """All messages, in the order in which they were said, and numbers of facts.

    Args:
        kinds: facts by kind.
        without_evidence: facts that no message is evidence of.
        waiting: messages that have not been read.
    """

    said: list[Said]
    kinds: Mapping[str, int]
    without_evidence: int
    waiting: int
    set_aside: int


def read_facts(database_url: str) -> StoredFacts:
    """What is stored."""
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(_FACTS).fetchall()
        kinds = connection.execute(_KINDS).fetchall()
        waiting, set_aside = connection.execute(_SET_ASIDE).fetchone() or (0, 0)
    by_message: dict[tuple[str, str, bool], list[tuple[str, str]]] = {}
    for user, content, added, fact, owner in rows:
        by_message.setdefault((user, content, added), []).extend([(owner, fact)] if fact else [])
    said = [Said(*key, tuple(facts)) for key, facts in by_message.items()]
    numbers = {kind: number for kind, number, _ in kinds}
    return StoredFacts(said, numbers, sum(without for *_, without in kinds), waiting, set_aside)


def verify_facts(stored: StoredFacts) -> dict[str, float]:
    """The figures, by name. Those in capitals are to be 0."""
    said = [one for one in stored.said if not one.added]
    last_home = {one.user: place for place, one in enumerate(said) if _replaced(expected_facts(one.content))}
    lost = doubled = corrected = expected = 0
    for place, one in enumerate(said):
        due, found = Counter(expected_facts(one.content)), Counter(text for _, text in one.facts)
        missing = (due - found).total()
        replaced = missing and _replaced(due) and last_home[one.user] > place
        expected += due.total()
        corrected += missing if replaced else 0
        lost += 0 if replaced else missing
        doubled += (found - due).total()
    return {
        "facts stated": expected,
        "  stored, superseded ones included": sum(stored.kinds.values()),
        "  superseded": stored.kinds.get("superseded", 0),
        "  replaced by a later message of their batch": corrected,
        "  FACTS LOST": lost,
        "  FACTS DOUBLED": doubled,
        "  FACTS OF THE WRONG USER": sum(owner != one.user for one in said for owner, _ in one.facts),
        "  FACTS WITHOUT EVIDENCE": stored.without_evidence,
        "  FACTS OF WHAT WAS ADDED": sum(len(one.facts) for one in stored.said if one.added),
        "  MESSAGES NOT READ": stored.waiting,
        "  MESSAGES SET ASIDE": stored.set_aside,
    }


def _replaced(facts: Iterable[str]) -> bool:
    return any(_REPLACED in fact for fact in facts)
