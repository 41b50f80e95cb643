"""Routing table of the workers: which actor serves what, on which queue, with which time limit and messages.

The adapters address actors by these names and never import them. A time limit interrupts an actor at its next line of
Python; while C code runs (the embedder, a wait for PostgreSQL) it does not. PostgreSQL's statement_timeout and the
providers' own time-outs end those waits.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple, TypeVar, cast

from dramatiq import Message
from keepsake_client.protocol import (
    LTMRequest,
    MemoryDeleteData,
    MemoryFilters,
    MemoryListData,
    MemoryListFilters,
    MemoryUpdateMessage,
    RequestType,
    SearchData,
    SearchFilters,
    Speaker,
    WireModel,
)

from services.runtime.queues import EXTRACT_QUEUE, INDEX_QUEUE, INTERACTIVE_QUEUE, WRITES_QUEUE

#: Longer than any asker waits for a search, whose thread is needed.
INTERACTIVE_TIME_LIMIT_MS = 5_000
WRITE_TIME_LIMIT_MS = 30_000
#: A user may have a million memories.
FORGET_TIME_LIMIT_MS = 600_000
#: An embedder over HTTP may be slow, and one batch waits for another.
INDEX_TIME_LIMIT_MS = 120_000
#: What extraction does besides its call: reads the batch, embeds its facts with the slowest engine, commits.
EXTRACT_BESIDES_CALL_MS = 60_000

#: Marks what an adapter has validated. A message without it comes from a version before 0.2.
_VALIDATED = "validated"
#: The time of an event's arrival, in its actor message. Messages of a version before 0.3 have none.
ARRIVED_AT = "arrived_at"
_NO_FILTERS = SearchFilters()
#: The filters of other requests than searches, by the model of their data.
_FILTERS: dict[type[WireModel], type[MemoryFilters]] = {
    MemoryListData: MemoryListFilters,
    MemoryDeleteData: MemoryFilters,
}

Data = TypeVar("Data", bound=WireModel)


class Route(NamedTuple):
    """An actor's name and its queue."""

    actor: str
    queue: str


INDEX = Route("memory.index", INDEX_QUEUE)
EXTRACT = Route("memory.extract", EXTRACT_QUEUE)
BY_TYPE: dict[RequestType, Route] = {
    "search": Route("memory.search", INTERACTIVE_QUEUE),
    "context": Route("memory.context", INTERACTIVE_QUEUE),
    "add": Route("memory.add", WRITES_QUEUE),
    "profile_get": Route("profile.get", INTERACTIVE_QUEUE),
    "profile_update": Route("profile.update", WRITES_QUEUE),
    "memory_list": Route("memory.list", INTERACTIVE_QUEUE),
    "memory_get": Route("memory.get", INTERACTIVE_QUEUE),
    "memory_update": Route("memory.update", WRITES_QUEUE),
    "memory_delete": Route("memory.delete", WRITES_QUEUE),
    "user_forget": Route("user.forget", WRITES_QUEUE),
    "user_export": Route("user.export", INTERACTIVE_QUEUE),
    "user_import": Route("user.import", INDEX_QUEUE),
    "user_list": Route("user.list", INTERACTIVE_QUEUE),
}


def request_message(request: LTMRequest, received_at: float, enqueued_at: float | None = None) -> Message[Any]:
    """The actor message for a request as `parse_request` returns it, with validated data.

    Args:
        received_at, enqueued_at: in seconds since 1970; now by default.
    """
    validated = {**request.to_fields(), _VALIDATED: True}
    moments = {"received_at": received_at, "enqueued_at": time.time() if enqueued_at is None else enqueued_at}
    return _message(BY_TYPE[request.type], {"request": validated, **moments})


def index_message(update: MemoryUpdateMessage, arrived_at: float | None = None) -> Message[Any]:
    """The actor message that indexes one event.

    Args:
        arrived_at: in seconds since 1970. It is among the event's fields, where indexers of version 0.2 ignore it.
    """
    return _message(INDEX, {"update": {**update.model_dump(), _VALIDATED: True, ARRIVED_AT: arrived_at}})


def extract_message(user_number: int, lease: str) -> Message[Any]:
    """The actor message that extracts facts from the messages of one owner, under a lease."""
    return _message(EXTRACT, {"user_number": user_number, "lease": lease})


def read_data(request: dict[str, Any], model: type[Data]) -> Data:
    """The data of a request's actor message, built without validating once more what an adapter has validated.

    Raises:
        pydantic.ValidationError: no adapter has validated it, and it is invalid.
    """
    data = request["data"]
    if not request.get(_VALIDATED):
        return model.model_validate(data)
    data = _with_speaker(data)
    filters = data.get("filters")
    if issubclass(model, SearchData):
        # The default is given, because pydantic would copy it each time: 10 us.
        filters = SearchFilters.model_construct(**_with_speaker(filters)) if filters else _NO_FILTERS
        data = {**data, "filters": filters}
    elif filters is not None and model in _FILTERS:
        data = {**data, "filters": _FILTERS[model].model_construct(**_with_speaker(filters))}
    # pydantic's mypy plugin types `model_construct` by the bound of the type variable.
    return cast(Data, model.model_construct(**data))


def read_update(raw: dict[str, Any]) -> MemoryUpdateMessage:
    """The event of an actor message, built without validating once more what an adapter has validated.

    Raises:
        pydantic.ValidationError: no adapter has validated it, and it is invalid.
    """
    if not raw.get(_VALIDATED):
        return MemoryUpdateMessage.model_validate(raw)
    # Whole seconds are integers on the wire.
    return MemoryUpdateMessage.model_construct(**{**_with_speaker(raw), "timestamp": float(raw["timestamp"])})


def _with_speaker(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a model, their speaker as its model."""
    speaker = fields.get("speaker")
    return {**fields, "speaker": Speaker.model_construct(**speaker)} if speaker else fields


def _message(route: Route, kwargs: dict[str, Any]) -> Message[Any]:
    return Message(queue_name=route.queue, actor_name=route.actor, args=(), kwargs=kwargs, options={})
