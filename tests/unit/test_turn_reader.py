"""TurnReader: one turn by any of its ids, what is missing of it and why, and the latest records."""

from __future__ import annotations

from typing import Any

import fakeredis
import pytest
import redis
from keepsake_client.protocol import TRACE_FIELD, TRACES_STREAM, UPDATES_STREAM, MemoryUpdateMessage
from keepsake_client.turns import TURNS_STREAM, Candidate, Cut

from services.cli.output import Output
from services.cli.turn import show_turn
from services.long_term_memory.explaining import Explained
from services.runtime.settings import load_settings
from services.runtime.traces import Traces
from services.runtime.turn import Turn
from services.runtime.turn_reader import TurnReader
from services.runtime.turns import Turns

QUERY, REPLY = "What is my cat called?", "Mochi \x1b[31m!"
CUT = Cut(min_score=0.09, limit=5, ranked=7, filtered=2, echoes=1)
TRACES, TURNS = Traces(1_000, "some-process"), Turns(1_000, contents=True)


class Pipeline:
    """Writes the records of a turn: a message, the context for its reply, the reply, and that as a message."""

    def __init__(self) -> None:
        self.client: Any = fakeredis.FakeRedis()
        self.now = 1_800_000_000.0

    def trace(self, kind: str, **fields: Any) -> None:
        self.now += 1
        times = {"indexed" if kind == "message" else "answered" if kind == "request" else "replied": self.now}
        record = TRACES.record(kind, "anna", **{"times": times, **fields})
        self.client.xadd(TRACES_STREAM, {TRACE_FIELD: record}, id=f"{int(self.now * 1000)}-*")

    def turn(self, record: bytes) -> None:
        self.client.xadd(TURNS_STREAM, {"turn": record}, id=f"{int(self.now * 1000)}-*")

    def search(self, turns: Turns = TURNS, request_id: str = "r1") -> None:
        self.trace("request", request_id=request_id, type="context")
        if turns.wanted:
            request = {"request_id": request_id, "user_id": "anna", "type": "context", "data": {"query": QUERY}}
            candidate = Candidate(id="c1", content="Mochi", score=0.5, verdict="over_limit", timestamp=1)
            self.turn(turns.search(request, Explained([candidate], CUT)))

    def reply(self, turns: Turns = TURNS, **more: Any) -> None:
        ids = {"message_id": "m1", "request_id": "r1", "task_id": "t1"}
        self.trace("reply", **ids)
        if turns.wanted:
            prompt = [("system", "Be brief."), ("user", QUERY)]
            self.turn(turns.reply("anna", text=QUERY, prompt=prompt, reply=REPLY, model="a-model", **ids, **more))

    def all(self, turns: Turns = TURNS) -> None:
        self.trace("message", message_id="m1", task_id="t1")
        self.search(turns)
        self.reply(turns)
        self.trace("message", message_id="m2", reply_to="m1")

    def follow(self, identifier: str, **settings: Any) -> Turn:
        return TurnReader(self.client, self.client, load_settings(**settings)).follow(identifier)


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline()


@pytest.mark.parametrize("identifier", ["m1", "r1", "t1", "m2"])
def test_a_turn_is_found_by_any_of_its_ids(pipeline: Pipeline, identifier: str) -> None:
    """Given the id of the message, the request, the task or the reply's own message, I expect the whole turn."""
    pipeline.all()
    pipeline.search(request_id="of another turn")

    turn = pipeline.follow(identifier)

    assert (turn.user, turn.text, turn.reply, turn.message and turn.message.message_id) == ("anna", QUERY, REPLY, "m1")
    assert [(search.request_id, search.record and search.record.query) for search in turn.searches] == [("r1", QUERY)]
    assert [message.role for message in turn.prompt or ()] == ["system", "user"]
    assert (turn.reply_memory.state, turn.reply_memory.message_id) == ("remembered", "m2")
    assert (turn.missing, turn.users, len(turn.trace.records)) == ([], {"anna"}, 4)


def test_a_turn_of_the_proxy_is_linked_by_its_record(pipeline: Pipeline) -> None:
    """Given a reply without a trace record, I expect message, context and the reply's memory found from its request."""
    pipeline.trace("message", message_id="m1")
    pipeline.search()
    ids = {"message_id": "m1", "request_id": "r1", "reply_message_id": "m2"}
    pipeline.turn(TURNS.reply("anna", text=QUERY, prompt=[], reply=REPLY, model=None, **ids))
    pipeline.trace("message", message_id="m2")

    for identifier in ("r1", "m1", "m2"):
        turn = pipeline.follow(identifier)

        assert (turn.message and turn.message.message_id, turn.reply, len(turn.searches)) == ("m1", REPLY, 1)
        assert (turn.reply_memory.state, turn.reply_memory.message_id) == ("remembered", "m2")


@pytest.mark.parametrize("link", [{"reply_to": "m1"}, {}], ids=["chat service", "proxy"])
def test_the_users_message_is_told_from_the_replys(pipeline: Pipeline, link: dict[str, str]) -> None:
    """Given a reply whose event was indexed before the user's message, I expect each taken for what it is."""
    pipeline.trace("message", message_id="m2", **link)
    pipeline.reply(reply_message_id=None if link else "m2")
    pipeline.trace("message", message_id="m1")

    turn = pipeline.follow("m1")

    assert (turn.message and turn.message.message_id, turn.reply_memory.message_id) == ("m1", "m2")


def test_an_id_that_is_not_known_has_no_turn(pipeline: Pipeline) -> None:
    """Given an id of nothing, I expect a turn that is not known and lacks nothing."""
    pipeline.all()

    turn = pipeline.follow("m9")

    assert (turn.is_known, turn.missing, turn.user, turn.searches) == (False, [], "", [])


def test_without_turn_records_the_traces_are_shown(pipeline: Pipeline) -> None:
    """Given LTM_TURNS=off, I expect times, ids and whether the reply was remembered, and the reason for the rest."""
    pipeline.all(Turns())

    turn = pipeline.follow("m1", ltm_turns="off")

    assert (turn.text, turn.prompt, turn.reply, turn.reply_memory.state) == (None, None, None, "remembered")
    assert [search.request_id for search in turn.searches] == ["r1"]
    assert [(missing.what, missing.why) for missing in turn.missing] == [
        ("candidates", "off"),
        ("prompt and reply", "off"),
    ]
    assert str(turn.missing[0]) == "candidates of r1: LTM_TURNS is off"


@pytest.mark.parametrize(("later", "why"), [(True, "gone"), (False, "not_written")])
def test_a_record_that_is_gone_is_told_from_one_that_never_was(pipeline: Pipeline, later: bool, why: str) -> None:
    """Given a stream that begins after the turn, I expect its records gone; one that reaches back, never written."""
    if not later:
        pipeline.search(request_id="before")
    pipeline.all(Turns())
    pipeline.trace("message", message_id="after")
    pipeline.search(request_id="after")

    assert [missing.why for missing in pipeline.follow("m1").missing] == [why, why]


def test_records_without_contents_say_so(pipeline: Pipeline) -> None:
    """Given LTM_TURNS=ids, I expect candidates and model, and that the contents were left out."""
    pipeline.all(Turns(1_000))

    turn = pipeline.follow("m1")

    assert turn.searches[0].record is not None
    assert [candidate.id for candidate in turn.searches[0].record.candidates] == ["c1"]
    assert (turn.reply_record and turn.reply_record.model, turn.reply) == ("a-model", None)
    assert [(missing.what, missing.why) for missing in turn.missing] == [("contents", "ids")]


def test_a_search_of_busy_workers_says_why_it_has_no_candidates(pipeline: Pipeline) -> None:
    """Given a record that was written while others waited, I expect its query, and why its candidates are missing."""
    pipeline.trace("request", request_id="r1", type="search")
    request = {"request_id": "r1", "user_id": "anna", "type": "search", "data": {"query": QUERY}}
    pipeline.turn(TURNS.search(request, None))

    turn = pipeline.follow("r1")

    assert (turn.text, next((one.what, one.why) for one in turn.missing)) == (QUERY, ("candidates", "busy"))


def test_a_search_that_failed_says_why_it_has_no_candidates(pipeline: Pipeline) -> None:
    """Given a search that expired, and no reply, I expect its error in place of its candidates."""
    pipeline.trace("request", request_id="r1", type="search", outcome="expired")

    missing = pipeline.follow("r1").missing

    assert [(one.what, one.why, one.detail) for one in missing] == [
        ("candidates", "failed", "expired"),
        ("prompt and reply", "no_reply", ""),
    ]


@pytest.mark.parametrize(
    ("event", "state", "why"),
    [
        ({"memories": 0}, "not_remembered", "not_to_be_remembered"),
        ({"outcome": "unavailable"}, "not_remembered", "failed"),
        (None, "unknown", "gone"),
    ],
)
def test_a_reply_may_not_be_remembered(pipeline: Pipeline, event: dict[str, Any] | None, state: str, why: str) -> None:
    """Given a reply that is not to be remembered, failed to be, or left no trace, I expect that said."""
    pipeline.search()
    pipeline.reply()
    if event is not None:
        pipeline.trace("message", message_id="m2", reply_to="m1", **event)

    memory = pipeline.follow("m1").reply_memory

    assert (memory.state, memory.why) == (state, why)


def test_a_reply_on_its_way_is_waiting(pipeline: Pipeline) -> None:
    """Given a reply in the stream that no adapter has read, I expect it found by the message that it answers."""
    pipeline.search()
    pipeline.reply()
    meta = {"original_message_id": "m1"}
    event = MemoryUpdateMessage(user_id="anna", content=REPLY, source="ai", message_id="m2", meta=meta)
    pipeline.client.xadd(UPDATES_STREAM, {"event": event.to_wire(logged=True)})
    pipeline.client.xgroup_create(UPDATES_STREAM, "indexers", id="0")

    memory = pipeline.follow("m1").reply_memory

    assert (memory.state, memory.why, memory.message_id) == ("waiting", "waits", "m2")
    assert memory.detail == "memory_updates:log: waits to be read"


def test_a_reply_says_itself_that_it_is_not_to_be_remembered(pipeline: Pipeline) -> None:
    """Given a reply that was made with `remember` false and has no message yet, I expect that said."""
    pipeline.reply(remember=False)

    assert pipeline.follow("m1").reply_memory.why == "not_to_be_remembered"


def test_another_programs_stream_is_named(pipeline: Pipeline) -> None:
    """Given something else under the stream's key, I expect the traces, and the stream among what was not seen."""
    pipeline.trace("message", message_id="m1")
    pipeline.client.set(TURNS_STREAM, "x")

    turn = pipeline.follow("m1")

    assert (turn.message and turn.message.message_id, len(turn.trace.unseen)) == ("m1", 1)
    assert turn.trace.unseen[0].startswith("ltm:turns: ")


def test_a_stream_that_may_not_be_read_is_named_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a user of Redis without the right to the turns, I expect the traces, and the stream named once."""
    pipeline.trace("message", message_id="m1")
    pipeline.trace("reply", message_id="m1", request_id="r1")
    read = pipeline.client.xrevrange

    def refusing(name: str, *args: Any, **options: Any) -> Any:
        if name == TURNS_STREAM:
            raise redis.exceptions.NoPermissionError("this user has no permissions")
        return read(name, *args, **options)

    monkeypatch.setattr(pipeline.client, "xrevrange", refusing)

    assert pipeline.follow("r1").trace.unseen == ["ltm:turns: no permission"]


def test_turns_that_were_not_looked_at_are_told(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given more records than are looked at for one turn, I expect that said; given as many, all of them looked at."""
    monkeypatch.setattr("services.runtime.turn_reader.MAX_LOOKED_AT", 100)
    pipeline.search()
    for _ in range(99):
        pipeline.search(request_id="later")
    assert (len(pipeline.follow("r1").searches), pipeline.follow("r1").trace.unseen) == (1, [])

    pipeline.search(request_id="one more")

    turn = pipeline.follow("r1")
    assert turn.searches[0].record is None
    assert turn.trace.unseen == ["ltm:turns: the newest 100 records alone were looked at"]


def test_the_command_prints_a_turn(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """Given a turn, I expect search, candidates with verdicts, prompt, reply and its memory, controls escaped."""
    pipeline.all()
    settings = load_settings()

    show_turn(pipeline.follow("m1"), Output(), settings.timezone)

    printed = capsys.readouterr().out
    assert f"context r1: {QUERY}" in printed
    assert "limit 5, min_score 0.09, 7 ranked, 2 filtered out, 1 are the query itself" in printed
    assert "0.50  1970-01-01  user  Mochi" in printed
    assert ": behind the last place  c1" in printed
    assert "prompt for a-model" in printed
    assert "  system: Be brief." in printed
    assert "  replied: Mochi \\u001b[31m!" in printed
    assert "the reply was remembered, as message m2" in printed
    assert "\x1b" not in printed


def test_the_command_says_that_several_users_have_the_id(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given two users whose messages have one id, I expect a line that names both; given one user, none."""
    pipeline.reply()
    show_turn(pipeline.follow("m1"), Output(), load_settings().timezone)
    assert "several users" not in capsys.readouterr().out

    pipeline.turn(TURNS.reply("ben", text="Hi", prompt=[], reply="Hello", model=None, message_id="m1"))
    show_turn(pipeline.follow("m1"), Output(), load_settings().timezone)

    printed = capsys.readouterr().out
    assert "this id is one of several users; what follows is of all of them: anna, ben" in printed


@pytest.mark.parametrize("odd", ['"漢" \\ \n', "\ud800", "\x00", "🐈\u202e", "'"])
def test_a_turn_is_found_by_an_odd_id(pipeline: Pipeline, odd: str) -> None:
    """Given a request whose id has quotes, controls, lone surrogates and what is not of ASCII, I expect its turn."""
    pipeline.search(request_id=odd)

    (search,) = pipeline.follow(odd).searches

    assert search.trace is not None
    assert search.record is not None
