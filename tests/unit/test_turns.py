"""Turn records: what is recorded of a search and a reply, within which bounds, and that recording fails nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import fakeredis
import pytest
import redis
from keepsake_client.errors import Unavailable
from keepsake_client.fields import MAX_ID_BYTES
from keepsake_client.protocol import COUNTERS, TRACES_STREAM, parse_request
from keepsake_client.turns import TURN_FIELD, TURNS_STREAM, Candidate, Cut, PromptMessage, TurnRecord

from adapters.ltm_responses import ResponsePublisher
from services.long_term_memory.explaining import Explained
from services.runtime.id_matcher import decoded
from services.runtime.logging import user_id_hasher
from services.runtime.settings import load_settings
from services.runtime.traces import Traces
from services.runtime.turns import (
    MAX_PROMPT_CHARS,
    MAX_RECORD_BYTES,
    MAX_TEXT_CHARS,
    MIN_TEXT_CHARS,
    NO_TURNS,
    Turns,
)
from tasks.queues import request_message
from tests.unit.test_token_buckets import Clock
from tests.unit.test_traces import proxy

QUERY, CONTENT = "What is my cat called?", "My cat is called Mochi <b>喵</b>"
CANDIDATE = Candidate(id="m1", content=CONTENT, score=0.87, parts={"words": 1.5}, verdict="returned", timestamp=1)
EXPLAINED = Explained([CANDIDATE], Cut(min_score=0.09, limit=5, ranked=7))
CONTENTS, IDS = Turns(1_000, contents=True), Turns(1_000)
PROMPT = [("system", "Be brief."), ("user", QUERY)]


@pytest.fixture
def client() -> Any:
    return fakeredis.FakeRedis()


def records(client: Any) -> list[TurnRecord]:
    return [parsed(fields[TURN_FIELD.encode()]) for _, fields in client.xrange(TURNS_STREAM)]


def parsed(raw: bytes) -> TurnRecord:
    return TurnRecord.model_validate(decoded(raw))


def answer(client: Any, turns: Turns, error: Exception | None = None, *, waited_s: float = 0.01, **data: Any) -> None:
    """What the middleware does around the actor that searches."""
    respond(publisher_of(client, turns), asked(waited_s, **data), lambda: EXPLAINED, error)


def publisher_of(client: Any, turns: Turns, clock: Callable[[], float] = time.monotonic) -> ResponsePublisher:
    traces = Traces(1_000, "some-worker")
    return ResponsePublisher(client, "ltm_responses", traces, turns=turns, monotonic=clock)


def asked(waited_s: float = 0.01, **data: Any) -> Any:
    """The message of a context that an adapter took so long ago."""
    request = {"request_id": "r1", "type": "context", "user_id": "anna", "data": {"query": QUERY, "limit": 5, **data}}
    return proxy(request_message(parse_request(json.dumps(request).encode(), 1_000), time.time() - waited_s))


def respond(publisher: Any, message: Any, explain: Callable[[], Explained], error: Exception | None = None) -> None:
    message.failed = error is not None
    result = None if error else {"memories": [], "stages": {}, "explain": explain}
    publisher.before_process_message(None, message)
    publisher.after_process_message(None, message, result=result, exception=error)


def test_an_answered_search_has_one_record(client: Any) -> None:
    """Given a context that was answered, I expect its query, its options, its candidates and where the results end."""
    answer(client, CONTENTS, speaker="Anna", also=["ben"], filters={"source": "user"}, deadline_ms=600)

    (record,) = records(client)
    assert (record.kind, record.type, record.request_id, record.user) == ("search", "context", "r1", "anna")
    assert record.query == QUERY
    assert record.options == {
        "limit": 5,
        "speaker": {"name": "Anna"},
        "also": ["ben"],
        "filters": {"source": "user"},
        "deadline_ms": 600,
    }
    assert (record.candidates, record.cut, record.shortened) == ([CANDIDATE], EXPLAINED.cut, False)


def test_a_record_may_go_without_contents(client: Any) -> None:
    """Given LTM_TURNS=ids, I expect ids, scores and verdicts, and neither a text nor a name."""
    answer(client, IDS, speaker="Anna Secret", filters={"speaker": "Ben Secret", "source": "ai"})

    (record,) = records(client)
    assert record.candidates == [CANDIDATE.model_copy(update={"content": None})]
    assert (record.query, record.options) == (None, {"limit": 5, "filters": {"source": "ai"}})
    reply = parsed(IDS.reply("anna", text=QUERY, prompt=PROMPT, reply=CONTENT, model="a-model", message_id="m"))
    assert (reply.text, reply.prompt, reply.reply, reply.model) == (None, None, None, "a-model")
    assert "Secret" not in str(client.xrange(TURNS_STREAM))


@pytest.mark.parametrize("turns", [NO_TURNS, Turns.of(load_settings(ltm_turns="off"))], ids=["none", "off"])
def test_no_turns_may_be_wanted(client: Any, turns: Turns) -> None:
    """Given LTM_TURNS=off, I expect the trace, and no stream of turns."""
    answer(client, turns)

    assert (client.xlen(TRACES_STREAM), client.exists(TURNS_STREAM)) == (1, 0)


def test_a_search_that_waited_for_a_worker_is_not_explained(client: Any) -> None:
    """Given workers that are behind, I expect the query recorded, and no time spent on candidates."""
    answer(client, CONTENTS, waited_s=1.0)

    (record,) = records(client)
    assert (record.query, record.candidates, record.cut) == (QUERY, [], None)


def test_a_process_records_ten_searches_a_second(client: Any) -> None:
    """Given thirty searches at once and one a second later, I expect a burst of twenty recorded and the last, and the
    others neither explained nor recorded, but counted with it."""
    clock, explained = Clock(), []

    def explain() -> Explained:
        explained.append(1)
        return EXPLAINED

    publisher = publisher_of(client, CONTENTS, clock)
    for _ in range(30):
        respond(publisher, asked(), explain)
    assert (len(records(client)), client.hget(COUNTERS, "turns_left_out")) == (20, None)

    clock.now += 1
    respond(publisher, asked(), explain)
    assert (len(records(client)), len(explained)) == (21, 21)

    respond(publisher, asked(), explain)  # which writes the counts
    assert client.hget(COUNTERS, "turns_left_out") == b"10"


def test_a_search_that_fails_has_no_record(client: Any) -> None:
    """Given a search that failed, I expect its trace alone, which says why."""
    answer(client, CONTENTS, redis.ConnectionError("away"))

    assert (client.xlen(TRACES_STREAM), client.exists(TURNS_STREAM)) == (1, 0)


def test_a_stream_that_cannot_be_written_fails_no_search(client: Any) -> None:
    """Given another program's value where the stream should be, I expect the response and its trace all the same."""
    client.set(TURNS_STREAM, "x")
    heard = client.pubsub()
    heard.subscribe("ltm_responses")
    heard.get_message(timeout=5)

    answer(client, CONTENTS)

    assert json.loads(heard.get_message(timeout=5)["data"])["success"]
    assert client.xlen(TRACES_STREAM) == 1


def unavailable() -> Explained:
    raise Unavailable("the database does not answer")


@pytest.mark.parametrize(("refused", "explain"), [(True, lambda: EXPLAINED), (False, unavailable)])
def test_a_search_that_cannot_be_recorded_is_counted(
    client: Any, refused: bool, explain: Callable[[], Explained]
) -> None:
    """Given a stream that cannot be written, or a database that goes away after the response, I expect that counted
    with the next response."""
    if refused:
        client.set(TURNS_STREAM, "x")
    publisher = publisher_of(client, CONTENTS)
    respond(publisher, asked(), explain)
    client.delete(TURNS_STREAM)

    respond(publisher, asked(), lambda: EXPLAINED)

    assert client.hget(COUNTERS, "turns_not_recorded") == b"1"
    assert len(records(client)) == 1


def test_a_response_that_another_worker_has_published_has_no_second_record(client: Any) -> None:
    """Given a message that two workers ran, I expect one record."""
    message = asked()
    respond(publisher_of(client, CONTENTS), message, lambda: EXPLAINED)

    respond(publisher_of(client, CONTENTS), message, lambda: EXPLAINED)

    assert len(records(client)) == 1


def test_users_are_written_as_in_traces() -> None:
    """Given LTM_LOG_USER_IDS=false, I expect hashes, of the further users of a search too, and no id."""
    settings = load_settings(ltm_log_user_ids=False, ltm_log_key="secret")
    data = {"query": "q", "also": ["ben"]}
    request = {"request_id": "r", "user_id": "anna", "type": "search", "data": data}

    raw = Turns.of(settings).search(request, Explained([], EXPLAINED.cut))

    hashed = user_id_hasher(settings)
    assert (parsed(raw).user, parsed(raw).options) == (hashed("anna"), {"also": [hashed("ben")]})
    assert b"anna" not in raw
    assert b"ben" not in raw


def test_a_reply_has_one_record() -> None:
    """Given a reply, I expect what was said, the prompt and the reply, with their ids."""
    ids = {"message_id": "m", "request_id": "r", "task_id": None, "reply_message_id": "m2", "remember": False}

    record = parsed(CONTENTS.reply("anna", text=QUERY, prompt=PROMPT, reply=CONTENT, model="a-model", **ids))

    assert (record.text, record.reply, record.model) == (QUERY, CONTENT, "a-model")
    assert record.prompt == [PromptMessage(role=role, content=content) for role, content in PROMPT]
    assert {name: getattr(record, name) for name in ids} == ids


@pytest.mark.parametrize(
    "char", ["x", "猫", "\x01", "\ud800", "🐈"], ids=["ascii", "han", "control", "surrogate", "emoji"]
)
def test_a_record_is_bounded(char: str) -> None:
    """Given texts of 30,000 characters and a prompt of a hundred of them, I expect a record of 64 kB at most that can
    be read, says that it is shortened, and has the beginning of what was said."""
    long = char * 30_000
    request = {"request_id": "r", "user_id": "anna", "type": "search", "data": {"query": long}}
    many = [CANDIDATE.model_copy(update={"content": char * 1_000})] * 20

    raw = [
        CONTENTS.reply("anna", text=long, prompt=[("system", long)] * 100, reply=long, model=None),
        CONTENTS.search(request, Explained(many, EXPLAINED.cut)),
    ]

    assert max(map(len, raw)) <= MAX_RECORD_BYTES
    reply, search = map(parsed, raw)
    assert (reply.shortened, search.shortened) == (True, True)
    assert (len(reply.text or ""), len(search.query or "")) == (MAX_TEXT_CHARS, MAX_TEXT_CHARS)
    assert [candidate.score for candidate in search.candidates] == [0.87] * 20


@pytest.mark.parametrize("data", [{"exclude_session": "s" * 500_000}, {"filters": {"session_id": "喵" * 100_000}}])
def test_long_ids_do_not_make_a_long_record(client: Any, data: dict[str, Any]) -> None:
    """Given a search that names a session by as many characters as a request holds, I expect a record of 64 kB at
    most, with the query and where the results end."""
    answer(client, CONTENTS, **data)

    (record,) = records(client)
    ((_, fields),) = client.xrange(TURNS_STREAM)
    assert len(fields[TURN_FIELD.encode()]) <= MAX_RECORD_BYTES
    assert (record.query, record.cut, record.shortened) == (QUERY, EXPLAINED.cut, True)


def test_a_reply_of_long_ids_is_bounded() -> None:
    """Given texts of controls, which JSON escapes, and ids that are as long as ids may be, I expect 64 kB at most, and
    the beginning of what was said."""
    text, long_id = "\x01" * 30_000, "\x01" * (MAX_ID_BYTES // 3)
    names = ("message_id", "request_id", "task_id", "reply_message_id")

    raw = CONTENTS.reply(long_id, text=text, prompt=[], reply=text, model="m" * 9_000, **dict.fromkeys(names, long_id))

    assert len(raw) <= MAX_RECORD_BYTES
    record = parsed(raw)
    assert (record.message_id, record.text, record.shortened) == (long_id, "\x01" * MIN_TEXT_CHARS, True)


def test_of_a_long_prompt_the_instructions_and_the_end_are_kept() -> None:
    """Given a prompt with no room for its middle, I expect its first message and its last ones, in their order."""
    prompt = [("system", "Be brief."), *(("user", f"{n} {'x' * 5_000}") for n in range(9)), ("user", QUERY)]

    record = parsed(CONTENTS.reply("anna", text=QUERY, prompt=prompt, reply="Mochi", model=None))

    kept = [message.content for message in record.prompt or ()]
    assert (kept[0], kept[-1], record.shortened) == ("Be brief.", QUERY, True)
    assert [content.split()[0] for content in kept[1:-1]] == ["4", "5", "6", "7", "8"]
    assert sum(map(len, kept)) <= MAX_PROMPT_CHARS


def test_the_stream_is_capped(client: Any) -> None:
    """Given more records than LTM_TURNS_MAX, I expect about as many; Redis trims whole nodes of a hundred."""
    turns = Turns(100, contents=True)
    for _ in range(350):
        with client.pipeline(transaction=False) as pipeline:
            turns.add(pipeline, turns.reply("anna", text="", prompt=[], reply="", model=None))
            pipeline.execute()

    assert 100 <= client.xlen(TURNS_STREAM) <= 200
