"""An actor message carries what the adapter has validated, and the worker builds the same models from it."""

from __future__ import annotations

import json
from typing import Any

import dramatiq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keepsake_client.protocol import (
    AddData,
    LTMRequest,
    MemoryUpdateMessage,
    ProfileGetData,
    ProfileUpdateData,
    SearchData,
    SearchFilters,
    WireModel,
    parse_request,
    parse_update,
)
from pydantic import ValidationError

from tasks.queues import index_message, read_data, read_update, request_message

MODELS: dict[str, type[WireModel]] = {
    "search": SearchData,
    "add": AddData,
    "profile_get": ProfileGetData,
    "profile_update": ProfileUpdateData,
}

texts = st.text(min_size=1, max_size=30).filter(str.strip)
ids = st.one_of(texts.filter(lambda text: text.replace("\0", "").strip()), st.integers(0, 10**6))
times = st.one_of(
    st.integers(0, 2 * 10**9),
    st.floats(0, 2e9),
    st.integers(10**12, 2 * 10**12),
    st.sampled_from(["2024-05-01", "2024-05-01T10:00:00Z", "1712345678", "9000-01-01T00:00:00Z"]),
)
metas = st.dictionaries(st.text(max_size=5), st.one_of(st.none(), st.integers(), texts, st.lists(texts)), max_size=3)
contents = texts.filter(lambda text: text.replace("\0", "").strip())
optional_deadline = {"deadline_ms": st.one_of(st.integers(1, 600_000), st.just("300"), st.none())}
data = {
    "search": st.fixed_dictionaries(
        {"query": contents},
        optional={
            "limit": st.one_of(st.integers(1, 100), st.just("5"), st.none()),
            "min_score": st.one_of(st.floats(0, 1), st.just(0), st.none()),
            "filters": st.fixed_dictionaries(
                {},
                optional={
                    "session_id": st.one_of(texts, st.integers(0, 9), st.none()),
                    "source": st.sampled_from(["user", "ai", None]),
                    "since": times,
                    "until": times,
                },
            )
            | st.none(),
            "exclude_session": st.one_of(texts, st.integers(0, 9)),
            "recency_half_life_days": st.integers(1, 30),
            "explain": st.booleans(),
            "timings": st.booleans(),
            **optional_deadline,
        },
    ),
    "add": st.fixed_dictionaries({"content": contents}, optional={"metadata": metas, **optional_deadline}),
    "profile_get": st.fixed_dictionaries({}, optional={"unknown": texts, **optional_deadline}),
    "profile_update": st.one_of(
        st.fixed_dictionaries(
            {"updates": metas}, optional={"expected_version": st.sampled_from([0, 3, "3", None]), **optional_deadline}
        ),
        st.fixed_dictionaries({"name": texts}, optional={"expected_version": st.sampled_from([0, "3"])}),
    ),
}
requests = st.sampled_from(sorted(MODELS)).flatmap(
    lambda kind: st.fixed_dictionaries(
        {"request_id": ids, "type": st.just(kind), "user_id": ids, "data": data[kind]},
        optional={"validated": st.just(True), "priority": texts},
    )
)
events = st.fixed_dictionaries(
    {"user_id": ids, "content": contents, "source": st.sampled_from(["user", "ai"]), "timestamp": times},
    optional={"meta": metas, "message_id": ids, "task_id": st.none(), "validated": st.just(True)},
)


def delivered(message: dramatiq.Message[Any], name: str) -> dict[str, Any]:
    """An argument of a message as the actor receives it: through JSON."""
    argument: dict[str, Any] = dramatiq.Message.decode(message.encode()).kwargs[name]
    return argument


def same(built: WireModel, validated: WireModel) -> bool:
    """Whether two models are equal, the types of their numbers included."""
    return built == validated and repr(built) == repr(validated)


@given(requests)
def test_the_worker_builds_what_the_adapter_validated(sent: dict[str, Any]) -> None:
    """Given any valid request, I expect ids and data as validation makes them of the bytes on the list."""
    model = MODELS[sent["type"]]

    request = delivered(request_message(parse_request(json.dumps(sent).encode(), 1_000), 1.5), "request")

    validated = LTMRequest.model_validate(sent)
    assert (request["request_id"], request["user_id"]) == (validated.request_id, validated.user_id)
    assert same(read_data(request, model), model.model_validate(validated.data))


@given(events)
def test_the_worker_builds_the_event_that_was_validated(sent: dict[str, Any]) -> None:
    """Given any valid event, I expect it as validation makes it of the bytes in the stream."""
    parsed = parse_update(json.dumps(sent).encode(), 1_000)

    built = read_update(delivered(index_message(parsed), "update"))

    assert same(built, parsed)
    assert isinstance(built.timestamp, float)


@given(requests)
def test_a_request_of_the_previous_version_still_runs(sent: dict[str, Any]) -> None:
    """Given a message as version 0.1 enqueued it, with data as it came, I expect it validated, and the same models."""
    model = MODELS[sent["type"]]
    validated = LTMRequest.model_validate(sent)
    queued = json.loads(json.dumps(validated.model_dump()))

    assert same(read_data(queued, model), model.model_validate(validated.data))


@given(requests)
def test_the_previous_version_runs_a_request_of_this_one(sent: dict[str, Any]) -> None:
    """Given a message of this version, I expect the worker of 0.1, which validates it, to read it too."""
    model = MODELS[sent["type"]]
    if "9000-01-01T00:00:00Z" in json.dumps(sent):
        return  # 0.1 takes these seconds for milliseconds when it validates them once more
    queued = delivered(request_message(parse_request(json.dumps(sent).encode(), 1_000), 1.5), "request")

    request = LTMRequest.model_validate(queued)

    assert model.model_validate(request.data) == model.model_validate(LTMRequest.model_validate(sent).data)


def test_an_event_of_the_previous_version_still_runs() -> None:
    """Given an event as version 0.1 enqueued it, I expect it validated."""
    update = MemoryUpdateMessage(user_id="u1", content="I like tea", source="user", timestamp=1_712_345_678)

    assert same(read_update(json.loads(json.dumps(update.model_dump()))), update)


def test_what_no_adapter_has_validated_is_validated() -> None:
    """Given messages that were put on a queue by hand, I expect invalid ones refused."""
    with pytest.raises(ValidationError):
        read_update({"user_id": "anna"})
    with pytest.raises(ValidationError):
        read_data({"request_id": "r1", "type": "search", "user_id": "u1", "data": {"limit": 5}}, SearchData)


def test_nothing_is_validated_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given what an adapter has validated, I expect the worker not to call a validator."""
    raw = {"request_id": "r1", "type": "search", "user_id": "u1", "data": {"query": "tea?", "filters": {"since": 1}}}
    request = delivered(request_message(parse_request(json.dumps(raw).encode(), 1_000), 1.5), "request")
    update = MemoryUpdateMessage(user_id="u1", content="I like tea", source="user")
    event = delivered(index_message(update), "update")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it was validated")

    for model in (LTMRequest, SearchData, SearchFilters, MemoryUpdateMessage):
        monkeypatch.setattr(model, "model_validate", refuse)

    assert read_data(request, SearchData).filters == SearchFilters.model_construct(since=1.0)
    assert read_update(event).content == "I like tea"


def test_the_message_of_a_request_keeps_its_shape() -> None:
    """Given a request, I expect the arguments that version 0.1 has, and two fields that it ignores."""
    parsed = parse_request(b'{"request_id": "r1", "type": "profile_get", "user_id": 7}', 1_000)

    kwargs = request_message(parsed, 1.5).kwargs

    assert set(kwargs) == {"request", "received_at", "enqueued_at"}
    assert kwargs["request"] == {
        "request_id": "r1",
        "type": "profile_get",
        "user_id": "7",
        "data": {},
        "pushed_at": None,
        "validated": True,
    }
