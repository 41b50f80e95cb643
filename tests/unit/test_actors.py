"""The actors make one service call each, with what their message carries, and return the fields of the response."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import TimeLimit
from keepsake_client.protocol import (
    AddData,
    ContextData,
    ContextParts,
    Memory,
    MemoryDeleteData,
    MemoryListData,
    MemoryUpdateData,
    ProfileChange,
    SearchData,
    UserListData,
    UserSummary,
    WireModel,
)
from keepsake_client.turns import Candidate, Cut

from services.long_term_memory.context_service import ContextResult
from services.long_term_memory.explaining import Explained
from services.long_term_memory.extraction.service import Outcome
from services.long_term_memory.memory_management import Page
from services.long_term_memory.memory_service import IndexedIds, SearchResult
from services.long_term_memory.profile_service import HistoryPage, Profile
from services.runtime.metrics import NO_METRICS, Metrics
from services.runtime.prometheus import PrometheusMetrics
from services.runtime.settings import Settings
from tasks import actors, management
from tasks.middleware.resources import Resources
from tasks.middleware.retries import Retries

MEMORY = Memory(id="m1", content="I like tea", timestamp=1.0)
MOMENT = datetime(2024, 5, 1, tzinfo=UTC)


class Services:
    """Services that note what they are called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.partial = False
        self.explain: Callable[[], Explained] | None = None
        self.reused_id = self.deleted = False
        self.settings = Settings()
        self.memories = SimpleNamespace(search=self._search, add=self._add, index=self._index)
        self.count = self._note("count")
        self.extract_next = self._note("extract_next")

        self.extraction = SimpleNamespace()
        self.metrics: Metrics = NO_METRICS
        self.contexts = self.management = self.forgetting = SimpleNamespace()
        self.profiles = SimpleNamespace(get=self._profile("get"), update=self._profile("update"))

    def _search(self, user_id: str, data: SearchData, *, now: float, deadline: float) -> SearchResult:
        self.calls.append(("search", user_id, data.query, now))
        return SearchResult([MEMORY], partial=self.partial, timings={"embed_ms": 2.0}, explain=self.explain)

    def _add(self, *arguments: Any) -> list[Memory]:
        self.calls.append(("add", *arguments))
        return [MEMORY]

    def _index(self, *arguments: Any) -> IndexedIds:
        self.calls.append(("index", *arguments))
        return IndexedIds(["m1"], reused_id=self.reused_id, deleted=self.deleted)

    def _note(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))

    def noting(self, name: str, result: Any) -> Any:
        """A call that is noted, and what it returns."""

        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append((name, *arguments, *named.items()))
            return result

        return call

    def _profile(self, name: str) -> Any:
        return self.noting(name, Profile(values={"name": "Lin"}, version=3, updated_at=MOMENT))


class Worker:
    """The actors on those services."""

    def __init__(self, **settings: Any) -> None:
        self.services = Services()
        self.services.settings = Settings(**settings)
        self.broker = StubBroker(middleware=[TimeLimit(), Retries()])
        self.host: Callable[[], float] = time.time
        actors.declare(self.broker, cast(Resources, self.services), self._clock)

    def _clock(self) -> float:
        return self.host()

    def run(self, actor: str, request_id: str = "r1", **data: Any) -> dict[str, Any]:
        request = {"request_id": request_id, "type": "any", "user_id": "u1", "data": data}
        response: dict[str, Any] = self.broker.get_actor(actor).fn(request, received_at=100.0, enqueued_at=101.0)
        return response


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.broker.close()


@pytest.mark.parametrize(("partial", "field"), [(False, None), (True, True)])
def test_a_search_returns_what_is_found(worker: Worker, partial: bool, field: bool | None) -> None:
    """Given a search, I expect its memories, its stages, `partial` only where it is, and no timings."""
    worker.services.partial = partial

    response = worker.run("memory.search", query="tea?")

    assert worker.services.calls == [("search", "u1", "tea?", 100.0)]
    assert response.pop("stages")["embed_ms"] == 2.0
    assert response == {"memories": [MEMORY], "partial": field, "explain": None}


def test_a_search_is_explained_where_that_is_asked_for(worker: Worker) -> None:
    """Given a search, I expect what explains it left to its record; given `explain`, the fields, and that done once."""
    candidate = Candidate(id="m1", score=0.5, verdict="returned", timestamp=1)
    explained = Explained([candidate], Cut(min_score=0.09, limit=5, ranked=1))
    explanations = iter([explained])
    worker.services.explain = lambda: next(explanations)

    plain, asked = (worker.run("memory.search", query="tea?", explain=explain) for explain in (False, True))

    assert (plain["explain"], "candidates" in plain, "cut" in plain) == (worker.services.explain, False, False)
    assert (asked["candidates"], asked["cut"], asked["explain"]()) == ([candidate], explained.cut, explained)


def test_a_search_with_timings_returns_its_moments(worker: Worker) -> None:
    """Given `timings`, I expect receipt, enqueueing, start and response in order, and the durations of the search."""
    timings = worker.run("memory.search", query="tea?", timings=True)["timings"]

    assert (timings["received_at"], timings["enqueued_at"], timings["embed_ms"]) == (100.0, 101.0, 2.0)
    assert 101.0 < timings["started_at"] <= timings["responded_at"]


@pytest.mark.parametrize(("partial", "field"), [(False, None), (True, True)])
def test_a_context_returns_its_text_and_parts(worker: Worker, partial: bool, field: bool | None) -> None:
    """Given a context, I expect its text, parts, memories and stages, within nine tenths of its deadline."""
    parts = ContextParts(memories=[{"quote": "I like tea"}])
    result = ContextResult("the text", parts, [MEMORY], partial, {"context_ms": 2.0})
    worker.services.contexts = SimpleNamespace(context=worker.services.noting("context", result))

    response = worker.run("memory.context", query="tea?", deadline_ms=1_000, timings=True)

    asked = ContextData(query="tea?", deadline_ms=1_000, timings=True)
    assert worker.services.calls == [("context", "u1", asked, ("now", 100.0), ("deadline", 100.9))]
    assert response.pop("timings")["context_ms"] == response.pop("stages")["context_ms"] == 2.0
    assert response == {
        "memories": [MEMORY],
        "context": "the text",
        "context_parts": parts,
        "partial": field,
        "explain": None,
    }


def test_a_context_that_an_adapter_has_validated_is_what_the_service_gets(worker: Worker) -> None:
    """Given validated data, with filters and a speaker as models within it, I expect the service to get its model."""
    result = ContextResult("", ContextParts(), [], False, {})
    worker.services.contexts = SimpleNamespace(context=worker.services.noting("context", result))
    data = {"query": "x", "max_chars": 900, "speaker": {"name": "Wei"}, "filters": {"speaker": {"id": "7"}}}
    request = {"request_id": "r1", "type": "context", "user_id": "u1", "data": data, "validated": True}

    worker.broker.get_actor("memory.context").fn(request, received_at=100.0, enqueued_at=101.0)

    [(_, _, asked, *_)] = worker.services.calls
    assert asked == ContextData.model_validate(data)


def test_an_add_returns_its_memory(worker: Worker) -> None:
    """Given an add under an id that PostgreSQL cannot hold, I expect the memory stored with a clean one."""
    response = worker.run("memory.add", "r\0\ud800", content="I like tea", metadata={"a": 1})

    assert worker.services.calls == [("add", "u1", AddData(content="I like tea", metadata={"a": 1}), "r\ufffd", 100.0)]
    assert response == {"memories": [MEMORY]}


def test_a_profile_is_returned_with_its_version_and_time(worker: Worker) -> None:
    """Given a profile_get, I expect the profile's fields of the response."""
    response = worker.run("profile.get")

    assert worker.services.calls == [("get", "u1", None)]
    assert response == {
        "user_profile": {"name": "Lin"},
        "profile_version": 3,
        "profile_updated_at": MOMENT.timestamp(),
    }


def test_a_profile_is_returned_with_its_history_where_it_is_asked_for(worker: Worker) -> None:
    """Given `history` and a cursor, I expect the page of changes beside the profile."""
    change = ProfileChange(version=2, changed_at=1.0, source="service", patch={"name": "Lin"})
    worker.services.profiles.history = worker.services.noting("history", HistoryPage([change], "2"))

    response = worker.run("profile.get", agent_id="luna", history=True, cursor="3")

    assert worker.services.calls == [("get", "u1", "luna"), ("history", "u1", "luna", "3")]
    assert (response["profile_history"], response["next_cursor"]) == ([change], "2")
    assert response["profile_version"] == 3


def test_users_are_returned_with_the_cursor_of_the_next_page(worker: Worker) -> None:
    """Given a user_list, I expect its data passed on, and the page in the response."""
    user = UserSummary(user_id="anna", memories=3)
    worker.services.management = SimpleNamespace(users=worker.services.noting("users", ([user], "anna")))

    response = worker.run("user.list", prefix="an", limit=1)

    assert worker.services.calls == [("users", UserListData(prefix="an", limit=1))]
    assert response == {"users": [user], "next_cursor": "anna"}


def test_a_profile_update_expects_the_version_that_was_sent(worker: Worker) -> None:
    """Given a profile_update, I expect its updates, expected version and request id passed on."""
    response = worker.run("profile.update", updates={"name": "Lin"}, expected_version=2)

    assert worker.services.calls == [("update", "u1", {"name": "Lin"}, 2, "r1", None, ("arrived_at", 100.0))]
    assert response["profile_version"] == 3


def test_a_characters_profile_is_asked_for_by_its_id(worker: Worker) -> None:
    """Given requests with an agent_id, I expect it passed on; without `updates` it is a field of the profile."""
    worker.run("profile.get", agent_id="luna")
    worker.run("profile.update", agent_id="luna", updates={"mood": "shy"})
    worker.run("profile.update", agent_id="luna")

    assert worker.services.calls == [
        ("get", "u1", "luna"),
        ("update", "u1", {"mood": "shy"}, None, "r1", "luna", ("arrived_at", 100.0)),
        ("update", "u1", {"agent_id": "luna"}, None, "r1", None, ("arrived_at", 100.0)),
    ]


@pytest.mark.parametrize("arrived_at", [None, 7.5], ids=["of version 0.2", "of this version"])
def test_an_event_is_indexed_and_returns_nothing(worker: Worker, arrived_at: float | None) -> None:
    """Given an event, I expect it passed to the memory service, with the time of its arrival where that is known."""
    event = {"user_id": "u1", "content": "I like tea", "source": "user", "timestamp": 1}
    if arrived_at is not None:
        event["arrived_at"] = arrived_at

    assert worker.broker.get_actor("memory.index").fn(event) is None
    [(name, update, arrival)] = worker.services.calls
    assert (name, update.content, update.timestamp, arrival) == ("index", "I like tea", 1.0, arrived_at)


def test_an_event_whose_message_id_was_used_is_counted(worker: Worker) -> None:
    """Given that another event had the message_id, I expect that counted, and otherwise not."""
    for reused in (True, False):
        worker.services.reused_id = reused
        worker.broker.get_actor("memory.index").fn({"user_id": "u1", "content": "x", "source": "ai", "timestamp": 1})

    assert [call for call in worker.services.calls if call[0] == "count"] == [("count", "message_ids_reused")]


def test_an_event_that_was_deleted_before_is_counted(worker: Worker) -> None:
    """Given that an event was deleted before it was indexed, I expect that counted, and otherwise not."""
    for deleted in (True, False):
        worker.services.deleted = deleted
        worker.broker.get_actor("memory.index").fn({"user_id": "u1", "content": "x", "source": "ai", "timestamp": 1})

    assert [call for call in worker.services.calls if call[0] == "count"] == [("count", "events_deleted")]


@pytest.mark.parametrize(
    ("actor", "model", "data"),
    [
        ("memory.list", MemoryListData, {"order": "oldest", "limit": 3, "cursor": "c", "agent_id": "a"}),
        ("memory.list", MemoryListData, {"filters": {"speaker": {"name": "Wei"}, "contains": "tea", "since": 5.0}}),
        ("memory.list", MemoryListData, {"filters": {}}),
        ("memory.update", MemoryUpdateData, {"id": "m1", "metadata": {"a": None}}),
        ("memory.delete", MemoryDeleteData, {"filters": {"speaker": {"id": "7"}}, "dry_run": True}),
        ("memory.delete", MemoryDeleteData, {"ids": ("m1", "m2"), "all_agents": True}),
    ],
)
def test_what_an_adapter_has_validated_is_what_the_service_gets(
    worker: Worker, actor: str, model: type[WireModel], data: dict[str, Any]
) -> None:
    """Given validated data, with filters and a speaker as models within it, I expect the service to get its model."""
    got: list[Any] = []
    answers = {"page": Page([], None), "update": MEMORY, "delete": 2}

    def note(name: str) -> Any:
        def call(*arguments: Any) -> Any:
            got.append(arguments)
            return answers[name]

        return call

    worker.services.management = SimpleNamespace(**{name: note(name) for name in answers})
    request = {"request_id": "r1", "type": "any", "user_id": "u1", "data": data, "validated": True}
    worker.broker.get_actor(actor).fn(request, received_at=100.0, enqueued_at=101.0)

    at = [] if actor == "memory.list" else [100.0]
    assert got == [("u1", model.model_validate(data), *at)]


@pytest.mark.parametrize(
    ("actor", "data", "settles"),
    [
        ("user.forget", {}, True),
        ("user.forget", {"dry_run": True}, False),
        ("memory.delete", {"filters": {"source": "ai"}}, True),
        ("memory.delete", {"filters": {"source": "ai"}, "dry_run": True}, False),
        ("memory.delete", {"ids": ("m1",)}, False),
    ],
)
def test_a_deletion_waits_for_what_was_published_before_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, actor: str, data: dict[str, Any], settles: bool
) -> None:
    """Given a deletion of what arrived before it, I expect it to go by a moment later, and to be run then; no other."""
    now, got = [100.0], list[tuple[float, float]]()

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def delete(_: str, *arguments: Any, **__: Any) -> int:
        got.append((next(at for at in arguments if isinstance(at, float)), now[0]))
        return 0

    worker.host = lambda: now[0]
    monkeypatch.setattr("tasks.management.time.sleep", sleep)
    worker.services.management = worker.services.forgetting = SimpleNamespace(delete=delete, forget=delete)

    worker.run(actor, **data)

    settled = pytest.approx(100.0 + management.SETTLE_S if settles else 100.0)
    [(by, run_at)] = got
    assert by == settled
    assert run_at == settled


def test_a_deletion_that_is_delivered_again_does_not_wait(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a deletion whose moment is long past, I expect it run at once, by the same time as before."""
    slept, by = list[float](), list[float]()

    def forget(_: str, at: float, **__: Any) -> int:
        by.append(at)
        return 0

    monkeypatch.setattr("tasks.management.time.sleep", slept.append)
    worker.services.forgetting = SimpleNamespace(forget=forget)

    worker.run("user.forget")

    assert slept == [0.0]
    assert by[0] == pytest.approx(100.0 + management.SETTLE_S)


def extractor(**counts: int) -> Worker:
    """A worker with an LLM, each of whose calls has this outcome."""
    worker = Worker(ltm_llm_provider="openai", ltm_llm_timeout_s=30)

    def extract(*arguments: Any) -> Outcome:
        worker.services.calls.append(("extract", *arguments))
        return Outcome(**counts)

    worker.services.extraction = SimpleNamespace(extract=extract)
    return worker


@pytest.mark.parametrize(
    ("counts", "outcome"),
    [({}, "stored"), ({"failed": 1}, "failed"), ({"discarded": 1}, "discarded")],
)
def test_a_call_of_the_llm_is_observed_by_its_outcome(counts: dict[str, int], outcome: str) -> None:
    """Given a call that was stored, failed or discarded, I expect it observed as that, with its tokens."""
    worker = extractor(calls=1, tokens=1_500, **counts)
    metrics = PrometheusMetrics()
    worker.services.metrics = metrics

    worker.broker.get_actor("memory.extract").fn(user_number=7, lease="token")

    assert metrics.registry.get_sample_value("keepsake_extraction_calls_total", {"outcome": outcome}) == 1
    assert metrics.registry.get_sample_value("keepsake_extraction_tokens_total") == 1_500
    worker.broker.close()


def test_a_lease_is_extracted_and_what_came_of_it_is_counted() -> None:
    """Given a lease, I expect one call of the service, and every number of its outcome counted by its name."""
    worker = extractor(
        calls=1,
        tokens=1_500,
        failed=2,
        discarded=3,
        facts_stored=4,
        facts_superseded=5,
        facts_confirmed=6,
        facts_dropped=7,
        messages_set_aside=8,
    )

    assert worker.broker.get_actor("memory.extract").fn(user_number=7, lease="token") is None

    call, *counts = worker.services.calls
    assert call == ("extract", 7, "token")
    assert {name: number for _, name, number in counts} == {
        "extraction_calls": 1,
        "extraction_tokens": 1_500,
        "extraction_failed": 2,
        "extraction_discarded": 3,
        "facts_stored": 4,
        "facts_superseded": 5,
        "facts_confirmed": 6,
        "facts_dropped": 7,
        "messages_set_aside": 8,
    }
    worker.broker.close()


@pytest.mark.parametrize(
    ("counts", "next_ones"), [({}, 1), ({"failed": 1}, 0), ({"discarded": 1}, 0), ({"calls": 0}, 0)]
)
def test_after_a_batch_that_is_stored_the_next_is_leased_at_once(counts: dict[str, int], next_ones: int) -> None:
    """Given a batch that is stored, I expect the next one looked for, however many owners are due; after a call that
    failed the ticker's interval, so that failures are not repeated as fast as they come."""
    worker = extractor(**{"calls": 1, **counts})

    worker.broker.get_actor("memory.extract").fn(user_number=7, lease="token")

    assert worker.services.calls.count(("extract_next",)) == next_ones
    worker.broker.close()


def test_a_call_that_fails_by_a_fault_is_counted() -> None:
    """Given a service that fails, I expect the failure counted, and passed on to the middleware."""
    worker = extractor()

    def fail(*_: Any) -> None:
        raise ValueError("no")

    worker.services.extraction = SimpleNamespace(extract=fail)
    with pytest.raises(ValueError, match="no"):
        worker.broker.get_actor("memory.extract").fn(user_number=7, lease="token")

    assert worker.services.calls == [("count", "extraction_failed")]
    worker.broker.close()


def test_extraction_has_the_time_of_its_call_and_more() -> None:
    """Given a time-out of 30 s, I expect the actor to have that, and a minute for the rest."""
    worker = extractor()

    assert worker.broker.get_actor("memory.extract").options["time_limit"] == 90_000
    worker.broker.close()


def test_without_an_llm_there_is_no_such_actor(worker: Worker) -> None:
    """Given no LLM, I expect neither the actor nor its queue declared."""
    assert "memory.extract" not in worker.broker.actors
    assert "extract" not in worker.broker.queues
