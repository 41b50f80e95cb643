"""Bodies of Mem0's requests: what its clients send, in the shapes of all its versions."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo
from typing import Annotated, Any, Final

from keepsake_client.errors import InvalidMessage
from keepsake_client.fields import readable_id
from keepsake_client.protocol import REMEMBER, Source
from keepsake_client.times import EARLIEST_S, MAX_AHEAD_S, parse_timestamp
from keepsake_client.tolerance import MAX_TTL_DAYS, as_text
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from services.gateway.mem0_api.filters import Group, parse_filters

#: Messages of one `add`.
MAX_MESSAGES: Final = 100
#: Memories in one batch of updates or deletions, as on Mem0's platform.
MAX_BATCH: Final = 1_000
#: Names of fields without effect that an answer lists; a request may hold any number of its own.
MAX_IGNORED: Final = 20
_DAY_S: Final = 86_400
#: Who speaks by role; messages of other roles, such as `system` and `tool`, are said by neither.
_SOURCES: Final[dict[str, Source]] = {"user": "user", "human": "user", "assistant": "ai", "ai": "ai", "model": "ai"}
#: What Mem0 calls who and what a memory is of.
ENTITIES: Final = ("user_id", "agent_id", "app_id", "run_id")
#: Fields of searches and lists that select nothing, and have no effect. What has expired is deleted, and the ranking
#: always looks at words and meaning.
_WITHOUT_EFFECT: Final = frozenset(
    {"enable_graph", "explain", "keyword_search", "reference_date", "rerank", "show_expired"}
)
#: Fields that say how Mem0's platform works or answers, which is nothing to lose here.
OF_THE_PLATFORM: Final = frozenset({"api_version", "async_mode", "org_id", "project_id", "version"})

EntityId = Annotated[str, BeforeValidator(readable_id)]


class Mem0Body(BaseModel):
    """Base of the bodies: a field that is not known is reported as ignored.

    Attributes:
        user_id, agent_id, app_id, run_id: whose and what the memories are. Some versions of Mem0 have them here, others
            in `filters`.
        output_format: `v1.1` where an object is wanted of the routes that answered with a list before.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    user_id: EntityId | None = None
    agent_id: EntityId | None = None
    app_id: EntityId | None = None
    run_id: EntityId | None = None
    filters: Any = None
    output_format: str | None = None

    @property
    def ignored(self) -> list[str]:
        """Names of fields that have a value and no effect, as many as a header may be long."""
        extra = self.model_extra or {}
        return sorted(
            name
            for name, value in extra.items()
            if value is not None and name not in OF_THE_PLATFORM and re.fullmatch("[a-z_]{1,40}", name)
        )[:MAX_IGNORED]

    def entities(self) -> list[dict[str, Any]]:
        """Conditions on what stands at the top of the body."""
        return [{name: value} for name in ENTITIES if (value := getattr(self, name)) is not None]


@dataclass(frozen=True)
class Said:
    """One message of an `add`."""

    content: str
    source: Source
    speaker: str | None


class AddBody(Mem0Body):
    """The body of an `add`."""

    messages: Any
    metadata: dict[str, Any] | None = None
    timestamp: Any = None
    expiration_date: str | None = None

    @property
    def ignored(self) -> list[str]:
        """Names of fields that have a value and no effect; `infer` is one of them where it is not true."""
        return [name for name in super().ignored if name != "infer" or (self.model_extra or {})["infer"] is not True]

    def owner(self, zone: tzinfo) -> dict[str, str]:
        """The user, agent, app and run that the memories are to be of.

        Raises:
            InvalidMessage: `filters` has more than that, or says otherwise than the field beside it.
        """
        named: dict[str, str] = {}
        conditions = self.entities() + ([] if self.filters is None else [self.filters])
        group = parse_filters(conditions, zone)
        for each in group.conditions():
            if each.name not in ENTITIES or each.operator != "eq" or each.value is None:
                raise InvalidMessage("filters of an add take user_id, agent_id, app_id and run_id, each with one value")
            if named.setdefault(each.name, each.value) != each.value:
                raise InvalidMessage(f"{each.name} is named twice, with different values")
        if len(list(group.required())) != len(list(group.conditions())):
            raise InvalidMessage("filters of an add take no OR and no NOT")
        return named

    def said(self) -> list[Said]:
        """The messages that are to be remembered, in their order.

        Raises:
            InvalidMessage: there is none with a text, or too many, or one is no message.
        """
        messages = self.messages
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        elif isinstance(messages, dict):
            messages = [messages]
        if not isinstance(messages, list):
            raise InvalidMessage("messages: a list of messages is needed, each with role and content")
        said = [each for number, message in enumerate(messages) for each in _said(number, message)]
        if not said:
            raise InvalidMessage("messages: none of a user or an assistant has a text")
        if len(said) > MAX_MESSAGES:
            raise InvalidMessage(
                f"messages: {len(said)} are more than {MAX_MESSAGES} of one add; send the rest in another"
            )
        return said

    def meta(self, owner: dict[str, str]) -> dict[str, Any]:
        """The metadata of each memory.

        Raises:
            InvalidMessage: it says that nothing is to be remembered.
        """
        meta = dict(self.metadata or {})
        if meta.get(REMEMBER) is False:
            raise InvalidMessage(f"metadata.{REMEMBER}: false says that the messages become no memories")
        return meta | ({"app_id": owner["app_id"]} if "app_id" in owner else {})

    def said_at(self, zone: tzinfo) -> float:
        """When the first message was said, in seconds since 1970: now where it does not say.

        Raises:
            InvalidMessage: the timestamp is no time, or one that no message can have.
        """
        now = time.time()
        if self.timestamp is None:
            return now
        try:
            at = parse_timestamp(self.timestamp, zone)
        except (ValueError, OverflowError) as error:
            raise InvalidMessage(f"timestamp: {error}") from None
        if not EARLIEST_S <= at <= now + MAX_AHEAD_S:
            raise InvalidMessage("timestamp: lies before the year 2000, or more than a day ahead")
        return at

    def ttl_days(self, at: float) -> float | None:
        """For how many days the memories are kept from `at` on: through their last day, in UTC; None for ever.

        Raises:
            InvalidMessage: the last day is none, or over.
        """
        if self.expiration_date is None:
            return None
        try:
            last = datetime.combine(date.fromisoformat(self.expiration_date), datetime.min.time(), UTC)
        except ValueError:
            raise InvalidMessage("expiration_date: a date is needed, as 2030-12-31") from None
        end = last.timestamp() + _DAY_S
        if end <= max(at, time.time()):
            raise InvalidMessage("expiration_date: is over; what is added would be deleted at once")
        days = (end - at) / _DAY_S
        return days if days <= MAX_TTL_DAYS else None


def _said(number: int, message: Any) -> Iterator[Said]:
    """The message, where it is one of a user or an assistant with a text."""
    role = message.get("role", "user") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(role, str):
        raise InvalidMessage(f"messages.{number}: an object with role and content is needed")
    text = _text(message.get("content"))
    name = message.get("name")
    if text.strip() and (source := _SOURCES.get(role.strip().lower())) is not None:
        yield Said(text, source, name if isinstance(name, str) and name.strip() else None)


def _text(content: Any) -> str:
    """The text of a content, which may be of parts, as OpenAI's are; pictures have none."""
    parts = content if isinstance(content, list) else [content]
    texts = [as_text(part.get("text") if isinstance(part, dict) else part) or "" for part in parts]
    return "\n".join(text for text in texts if text.strip())


class ListBody(Mem0Body):
    """The body of a `get_all`. A field that is not known is refused: it could be one that selects."""

    metadata: dict[str, Any] | None = None
    categories: list[str] | None = None
    keywords: str | None = None
    start_date: Any = None
    end_date: Any = None
    fields: list[str] | None = None

    def parsed(self, zone: tzinfo, *, any_field: bool = False) -> Group:
        """All that a memory must meet: `filters`, and what stands beside it.

        Raises:
            InvalidMessage: it is none that can be tested, or a field is not known.
        """
        if unknown := [name for name in self.model_extra or {} if name not in _WITHOUT_EFFECT | OF_THE_PLATFORM]:
            raise InvalidMessage(f"{unknown[0][:64]!r} is no field of this request that Keepsake knows")
        beside = [
            {"metadata": self.metadata} if self.metadata else {},
            {"categories": {"in": self.categories}} if self.categories else {},
            {"keywords": {"icontains": self.keywords}} if self.keywords else {},
            {} if self.start_date is None else {"created_at": {"gte": self.start_date}},
            {} if self.end_date is None else {"created_at": {"lte": self.end_date}},
        ]
        # What stands at the top names one entity; in a filter a list is several.
        return parse_filters(
            [*self.entities(), *beside, {} if self.filters is None else self.filters], zone, any_field=any_field
        )


class SearchBody(ListBody):
    """The body of a search."""

    query: Any
    top_k: Any = None
    limit: Any = None
    threshold: Annotated[float, Field(le=1)] | None = None
    latest_only: bool | None = None


class UpdateBody(BaseModel):
    """The body of an update; Mem0's versions have the text under different names."""

    model_config = ConfigDict(extra="allow", frozen=True)

    memory_id: str | None = None
    text: str | None = None
    memory: str | None = None
    data: str | None = None
    metadata: dict[str, Any] | None = None

    @property
    def content(self) -> str | None:
        """The new text, where there is one.

        Raises:
            InvalidMessage: it asks for what cannot be changed.
        """
        for name in ("timestamp", "expiration_date"):
            if name in (self.model_extra or {}):
                raise InvalidMessage(f"{name}: cannot be changed; delete the memory, and add it again with another")
        return next((text for text in (self.text, self.memory, self.data) if text is not None), None)


class BatchBody(BaseModel):
    """The body of a batch: what to update, or, by their ids, what to delete."""

    memories: list[UpdateBody] = Field(min_length=1, max_length=MAX_BATCH)


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """The header that names the fields which had no effect, where there are some."""
    return {"X-Keepsake-Ignored": ", ".join(names)} if names else {}
