"""Memories as responses have them."""

from __future__ import annotations

from datetime import tzinfo
from typing import Any

from keepsake_client.protocol import Memory, decode_user_id, json_number

from services.long_term_memory.postgres.facts import FACT_METADATA
from services.long_term_memory.retrieval.dates import iso_dates
from services.long_term_memory.retrieval.ranking import Ranking


def memory_of(
    memory_id: str,
    payload: dict[str, Any],
    zone: tzinfo,
    score: float | None = None,
    parts: dict[str, float] | None = None,
) -> Memory:
    """A memory as responses have it.

    Args:
        payload: as `stored_memory` gives it.
        zone: of the users, for the dates that it names.
        parts: of its score.
    """
    fact: dict[str, Any] | None = payload.get("fact")
    meta = {name: value for name, value in payload["meta"].items() if fact is None or name not in FACT_METADATA}
    known = {name: payload[name] for name in ("session_id", "message_id", "request_id") if name in payload}
    explained = {} if parts is None else {"score_parts": parts}
    # Under these names Mem0's clients look for them; what the publisher has put there is kept.
    own = {"source": payload["source"], "timestamp": json_number(float(payload["timestamp"]))}
    if dates := iso_dates(payload["data"], float(payload["timestamp"]), zone):
        own["dates"] = dates
    return Memory(
        id=memory_id,
        content=payload["data"],
        score=None if score is None else round(score, 4),
        source=payload["source"],
        timestamp=payload["timestamp"],
        updated_at=str(payload.get("updated_at") or ""),
        metadata={**own, **meta, **known, **(fact or {}), **explained},
        user_id=decode_user_id(payload["user_id"]),
        agent_id=decode_user_id(agent) if (agent := payload.get("agent_id")) else None,
        speaker=payload.get("speaker"),
        kind="message" if fact is None else "fact",
        when=None if fact is None else payload.get("when"),
        about=None if fact is None else payload.get("about"),
    )


def as_attached(fact: Memory) -> dict[str, Any]:
    """A fact as `metadata.facts` of its message has it."""
    fields = {"id": fact.id, "content": fact.content, "score": fact.score, "when": fact.when, "about": fact.about}
    superseded = {name: value for name, value in fact.metadata.items() if name.startswith("superseded_")}
    return {**{name: value for name, value in fields.items() if value is not None}, **superseded}


def score_parts(ranking: Ranking, place: int) -> dict[str, float]:
    """The parts of a score, as `metadata.score_parts` has them."""
    return {
        name: round(float(getattr(ranking, name)[place]), 3) for name in ("meaning", "words", "session", "utterance")
    }
