"""What the page of a turn tells, computed from its records: the timeline, the search that counts, and the cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from keepsake_client.protocol import TRACE_FIELD, TRACES_STREAM, TraceRecord
from keepsake_client.turns import Candidate, Cut, TurnRecord
from pydantic import ValidationError
from redis.asyncio import Redis

from services.gateway.visibility import Visibility
from services.runtime.id_matcher import decoded
from services.runtime.turn import Search, Turn

#: Records of either side of a turn that are looked at for the user's next ones.
MAX_LOOKED_AT: Final = 500
PARTS: Final = ("meaning", "words", "session", "utterance", "recency")


@dataclass(frozen=True)
class Step:
    """One line of the timeline.

    Args:
        of: what it happened to: the message, its search, the reply, or the reply's own event.
        name: of the stage.
        at: in seconds since 1970.
        after_ms: since the first step.
    """

    of: Literal["message", "search", "reply", "reply_event"]
    name: str
    at: float
    after_ms: float


def timeline_of(turn: Turn) -> list[Step]:
    """The steps of a turn, in the order of time."""
    found: list[tuple[float, Literal["message", "search", "reply", "reply_event"], str]] = []
    for record in turn.trace.records:
        of: Literal["message", "search", "reply", "reply_event"] = "message"
        if record.kind == "request":
            of = "search"
        elif record.kind == "reply":
            of = "reply"
        elif turn.message is None or record.message_id != turn.message.message_id:
            of = "reply_event"
        # `said` is by the clock of the user's program, which may be any.
        found += [(at, of, name) for name, at in record.times.items() if name != "said"]
    found.sort(key=lambda step: step[0])
    return [Step(of, name, at, (at - found[0][0]) * 1000) for at, of, name in found]


def search_of_reply(turn: Turn) -> Search | None:
    """The search whose memories the reply was made with; without a reply, the last one."""
    ids = [one.request_id for one in (turn.reply_record, turn.reply_trace) if one is not None]
    named = [search for search in turn.searches if search.request_id in ids]
    return next(reversed(named or turn.searches), None)


def options_of(record: TurnRecord, *, names: bool) -> dict[str, Any]:
    """What a search asked for besides its query; the names of speakers are contents, as in the record itself."""
    if names:
        return record.options
    options = {name: value for name, value in record.options.items() if name != "speaker"}
    if isinstance(filters := options.get("filters"), dict):
        options["filters"] = {name: value for name, value in filters.items() if name != "speaker"}
    return options


def returned(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that the search returned."""
    return [one for one in candidates if one.verdict == "returned"]


def place_of_cut(candidates: Sequence[Candidate]) -> int:
    """Behind how many candidates the cut fell: behind the last that was returned."""
    return max((place for place, one in enumerate(candidates, 1) if one.verdict == "returned"), default=0)


CutReason = Literal["nothing_ranked", "limit", "min_score", "none_reached", "all"]


def reason_of_cut(candidates: Sequence[Candidate], cut: Cut) -> CutReason:
    """Why the cut fell where it did."""
    if not candidates:
        return "nothing_ranked" if not cut.ranked else "none_reached"
    verdicts = {one.verdict for one in candidates[place_of_cut(candidates) :]}
    if "over_limit" in verdicts:
        return "limit"
    if "below_min_score" in verdicts:
        return "min_score" if returned(candidates) else "none_reached"
    return "all"


def main_part(candidate: Candidate) -> str | None:
    """The part that speaks most for a candidate; None where none does."""
    known = [(candidate.parts[name], name) for name in PARTS if name in candidate.parts]
    value, name = max(known, default=(0.0, ""))
    return name if value > 0 else None


@dataclass(frozen=True)
class Neighbours:
    """The ids of the user's turns before and after one, as far as they are near."""

    earlier: str | None = None
    later: str | None = None


async def neighbours_of(turn: Turn, redis: Redis, visible: Visibility) -> Neighbours:
    """The user's turns before and after this one.

    Raises:
        RedisError: Redis does not answer.
    """
    if turn.at is None or not turn.user or not visible.sees(turn.user):
        return Neighbours()
    at_ms, client = int(turn.at * 1000), _client(redis)
    own = {value for one in turn.trace.records for value in (one.message_id, one.request_id) if value}
    before = await client.xrevrange(TRACES_STREAM, max=at_ms, min="-", count=MAX_LOOKED_AT)
    after = await client.xrange(TRACES_STREAM, min=at_ms, max="+", count=MAX_LOOKED_AT)
    return Neighbours(
        earlier=next(_turns_in(before, turn.user, own), None), later=next(_turns_in(after, turn.user, own), None)
    )


def _client(redis: Redis) -> Any:  # redis-py's types of replies are those of every protocol at once
    return redis


def _turns_in(entries: Any, user: str, own: set[str]) -> Iterator[str]:
    for _, fields in entries:
        try:
            record = TraceRecord.model_validate(decoded(fields.get(TRACE_FIELD.encode(), b"")))
        except ValidationError:
            continue  # of a later version
        is_turn = record.kind == "reply" or (record.kind == "message" and record.reply_to is None)
        if is_turn and record.user == user and record.message_id and record.message_id not in own:
            yield record.message_id
