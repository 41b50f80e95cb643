"""Figures of extraction in Redis: the extractor publishes them, for who has no access to PostgreSQL."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final, Literal

import redis
import redis.asyncio
from pydantic import BaseModel, ValidationError

from services.runtime.id_matcher import decoded

#: Of the messages that were set aside, the newest that are listed.
MAX_SET_ASIDE: Final = 50
#: The key expires so long after its last writing. It names users, and a user may be forgotten while no extractor runs.
KEPT_S: Final = 60
EXTRACTION_KEY: Final = "ltm:extraction"


class SetAsideMessage(BaseModel):
    """A message that no usable answer was had for, without its content.

    Args:
        user: the user id or, with LTM_LOG_USER_IDS=false, its hash.
        said_at: in seconds since 1970.
    """

    user: str
    agent_id: str | None = None
    memory_id: str
    said_at: float
    reason: str


class ExtractionFigures(BaseModel):
    """How extraction is.

    Args:
        at: when the figures were read.
        state: `waiting` for a provider that does not answer; `stopped` by one that refuses.
        since, reason: of a state other than `working`.
        messages, users: that wait to be read, the oldest of them since `oldest`; a character is a user of its own.
        set_aside: messages that no usable answer was had for; the newest of them are in `newest_set_aside`.
        calls, tokens: today (UTC).
        tokens_per_day, tokens_per_user: the bounds of a day, for all and for one user.
    """

    at: datetime
    state: Literal["working", "waiting", "stopped", "over budget", "paused"]
    since: datetime | None = None
    reason: str | None = None
    messages: int = 0
    users: int = 0
    oldest: datetime | None = None
    set_aside: int = 0
    newest_set_aside: list[SetAsideMessage] = []
    calls: int = 0
    tokens: int = 0
    tokens_per_day: int | None = None
    tokens_per_user: int | None = None


def publish_figures(client: redis.Redis, figures: ExtractionFigures) -> None:
    """Put the figures into Redis, for a minute.

    Raises:
        redis.RedisError: Redis does not answer, or permits it not.
    """
    # Not by pydantic, which refuses lone surrogates: any text is a user id.
    client.set(EXTRACTION_KEY, json.dumps(figures.model_dump(mode="json")), ex=KEPT_S)


async def read_figures(client: redis.asyncio.Redis) -> ExtractionFigures | None:
    """The figures; None where no extractor has published any within a minute.

    Raises:
        redis.RedisError: Redis does not answer, or permits it not.
    """
    raw: Any = await client.get(EXTRACTION_KEY)
    if raw is None:
        return None
    try:
        return ExtractionFigures.model_validate(decoded(raw))
    except ValidationError:
        return None  # of a later version
