"""Bodies, queries and answers of the HTTP API: the wire's own models, with the user in them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from keepsake_client.fields import AskedText, Switch
from keepsake_client.protocol import (
    AddData,
    ContextData,
    ContextParts,
    JSONObject,
    KeptId,
    Memory,
    MemoryChange,
    MemoryDeleteData,
    MemoryUpdateMessage,
    SearchData,
    TraceRecord,
    UserSummary,
    WireModel,
)
from keepsake_client.requests import PAGE, PageLimit
from keepsake_client.turns import Candidate, Cut
from pydantic import BeforeValidator, Field

from services.gateway.api.wire import STRICT, DeadlineMs, OfUser, UserId
from services.runtime.trace_reader import Waiting
from services.runtime.turn import TurnParts

EXAMPLE: Final[dict[str, Any]] = {
    "id": "5d1c2f0e-8c1b-5a55-9a6e-0f8f7f0c3a11",
    "content": "My cat is called Mochi.",
    "memory": "My cat is called Mochi.",
    "score": 0.87,
    "source": "user",
    "timestamp": 1712345678,
    "created_at": "2024-04-05T19:34:38+00:00",
    "updated_at": "2024-04-05T19:34:38+00:00",
    "metadata": {"session_id": "s1"},
    "user_id": "u1",
    "agent_id": None,
    "speaker": None,
    "kind": "message",
}


class SearchBody(SearchData):
    """A search; its fields are those of docs/contract.md."""

    model_config = STRICT
    user_id: UserId = None


class Found(WireModel):
    """What a search has found, best first.

    Attributes:
        partial: true where time was too short to embed the query.
        candidates, cut: with `explain`, the best memories that were ranked, returned or not, and where the results end.
    """

    memories: list[Memory]
    partial: bool | None = None
    timings: dict[str, float] | None = None
    candidates: list[Candidate] | None = None
    cut: Cut | None = None


class AddBody(AddData):
    """A text to be kept as one memory, as it is worded."""

    model_config = STRICT
    user_id: UserId = None


class OneMemory(WireModel):
    """One memory; null where it was deleted since.

    Attributes:
        history: every change of its content, oldest first.
    """

    memory: Memory | None
    history: list[MemoryChange] | None = None


class Page(WireModel):
    """A page of memories.

    Attributes:
        next_cursor: where more follow.
    """

    memories: list[Memory]
    next_cursor: str | None = None


class Counted(WireModel):
    """How many memories were deleted or, with `dry_run`, would be."""

    count: int


class Users(WireModel):
    """A page of users.

    Attributes:
        next_cursor: where more follow.
    """

    users: list[UserSummary]
    next_cursor: str | None = None


class Corrected(WireModel):
    """What is to change of a memory: its content, a JSON Merge Patch of its metadata, or both."""

    model_config = STRICT
    user_id: UserId = None
    content: AskedText | None = None
    metadata: JSONObject | None = None
    deadline_ms: DeadlineMs = None


class DeleteBody(MemoryDeleteData):
    """Which memories to delete: `ids`, or `filters` that select something."""

    model_config = STRICT
    user_id: UserId = None


class ListQuery(OfUser):
    """Which memories to list."""

    agent_id: KeptId | None = None
    all_agents: Switch = False
    order: Literal["newest", "oldest"] = "newest"
    limit: PageLimit = PAGE
    cursor: Annotated[str | None, Field(max_length=200, description="The `next_cursor` of the page before.")] = None
    session_id: str | None = None
    source: Annotated[str | None, Field(description="`user` or `ai`.", examples=["user"])] = None
    since: Annotated[str | None, Field(description="Said then or later.", examples=["2024-04-01"])] = None
    until: Annotated[str | None, Field(description="Said then or earlier.")] = None
    speaker: Annotated[str | None, Field(description="The name of who of several people said it.")] = None
    contains: Annotated[str | None, Field(description="A text that the content has, in any case.")] = None
    kind: Literal["message", "fact", "superseded"] | None = None

    @property
    def filters(self) -> dict[str, str]:
        """The conditions, as the wire has them."""
        names = ("session_id", "source", "since", "until", "speaker", "contains", "kind")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


#: Events in one request.
MAX_EVENTS: Final = 100


class EventBody(MemoryUpdateMessage):
    """What a user or the AI has said; its fields are those of `memory_updates` in docs/contract.md.

    Attributes:
        session: the conversation, as `meta.session_id`.
    """

    model_config = STRICT
    user_id: UserId = None  # type: ignore[assignment]  # the key's user where it is missing
    session: KeptId | None = None


def _one_or_many(schema: dict[str, Any]) -> None:
    many = dict(schema)
    schema.clear()
    schema["anyOf"] = [many["items"], many]


Events = Annotated[
    list[EventBody],
    Field(min_length=1, max_length=MAX_EVENTS, json_schema_extra=_one_or_many),  # first: no more are looked at
    BeforeValidator(lambda events: [events] if isinstance(events, dict) else events),
]


class Published(WireModel):
    """One event of the request, in its order.

    Attributes:
        message_id: by which it can be published again, recognised and traced.
        published: false of one that was not reached, because one before it failed.
    """

    message_id: str
    published: bool = True


class PublishedEvents(WireModel):
    """The events of the request, in its order."""

    events: list[Published]


class ContextBody(ContextData):
    """A context; its fields are those of docs/contract.md."""

    model_config = STRICT
    user_id: UserId = None


class ContextAnswer(WireModel):
    """What is remembered of the user: one text for a prompt, the same as JSON, and the memories of its search."""

    context: str
    context_parts: ContextParts
    memories: list[Memory]
    partial: bool | None = None
    timings: dict[str, float] | None = None
    candidates: list[Candidate] | None = None
    cut: Cut | None = None


class ProfileAnswer(WireModel):
    """A profile, with its version; 0 is that of one that was never written."""

    user_profile: dict[str, Any]
    profile_version: int
    profile_updated_at: float | None = None


class Imported(WireModel):
    """What became of the records.

    Attributes:
        count: memories and facts that are new.
        known: those that were there.
        deleted: those that stay deleted.
        records: how many were read.
    """

    records: int
    count: int
    known: int
    deleted: int


class TraceAnswer(WireModel):
    """What is known of an id, as `ltm trace` shows it.

    Attributes:
        records: of what has come to an end, oldest first.
        waiting: of what has not; empty for a key that is bound to users.
        unseen: places that could not be looked into whole, each with the reason.
        turn: with an id, the turn that it belongs to, contents included, for a key that may also `read`.
    """

    id: str | None = None
    records: list[TraceRecord]
    waiting: list[Waiting] = Field(default_factory=list)
    unseen: list[str] = Field(default_factory=list)
    turn: TurnParts | None = None
