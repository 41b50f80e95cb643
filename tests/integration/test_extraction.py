"""Extraction on a real PostgreSQL, with a scripted finder: what it reads, what it stores, and that it does so once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from keepsake_client.errors import Unavailable
from psycopg_pool import ConnectionPool

from services.long_term_memory.extraction import commit as commit_module
from services.long_term_memory.extraction import outbox, service, state
from services.long_term_memory.extraction.batch import Batch, Confirmation, Extraction, FoundFact, SlotChange
from services.long_term_memory.extraction.budget import Budget
from services.long_term_memory.extraction.reading import read_batch
from services.long_term_memory.extraction.service import ExtractionService, Outcome
from services.long_term_memory.forgetting import Forgetting
from services.long_term_memory.known_profile import read_slots
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.pending import BATCH_MESSAGES
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.profile_service import ProfileService
from services.long_term_memory.removal import remove
from tests.integration.scripted_finder import (
    COST,
    LEASE_S,
    ScriptedFinder,
    extraction,
    facts_of,
    found,
    pass_time,
    run_all,
    run_due,
    said,
    select,
)

MARKER = "xylophone"


@pytest.fixture
def chat(mem0: Mem0Memory, store: MemoryStore) -> MemoryService:
    """The service where an LLM is configured."""
    return MemoryService(mem0, store, extract=True)


@pytest.fixture
def finder() -> ScriptedFinder:
    return ScriptedFinder()


@pytest.fixture
def extracting(chat: MemoryService, pool: ConnectionPool, finder: ScriptedFinder) -> ExtractionService:
    """Extraction with a budget that is never used up."""
    return ExtractionService(pool, finder, chat.writer.embed, Budget(10**9, 10**9), capacity=8, call_s=60)


def talk(chat: MemoryService, count: int = BATCH_MESSAGES, user_id: str = "u1", name: str = "message") -> None:
    """Say so many messages: by default a batch that is due at once."""
    for number in range(count):
        chat.index(said(f"{name} {number}", user_id, timestamp=1_712_345_678 + number))


def evidence(pool: ConnectionPool) -> list[Any]:
    """Of each message, how many facts it is the evidence of."""
    return select(
        pool,
        "SELECT m.content, count(e.fact_number) FROM memories m JOIN users u ON u.number = m.user_number"
        " LEFT JOIN fact_evidence e ON memory_number = m.number WHERE kind = 'message' GROUP BY 1 ORDER BY 1",
    )


# What is read


def test_a_batch_is_read_and_what_is_found_is_stored(
    chat: MemoryService, extracting: ExtractionService, pool: ConnectionPool, finder: ScriptedFinder
) -> None:
    """Given a full batch, I expect one call, a fact for each message with it as evidence, and nothing pending."""
    talk(chat)

    outcomes = run_due(extracting)

    assert outcomes == [Outcome(calls=1, tokens=COST, facts_stored=BATCH_MESSAGES)]
    assert finder.sizes == [BATCH_MESSAGES]
    assert {count for _, count in evidence(pool)} == {1}
    assert select(pool, "SELECT FROM to_extract") == select(pool, "SELECT FROM extraction") == []


def test_a_batch_is_in_order_with_what_it_takes_to_understand_it(
    chat: MemoryService, extracting: ExtractionService, pool: ConnectionPool, finder: ScriptedFinder
) -> None:
    """Given a batch after another, I expect the second with its own messages, the four before them, and known facts."""
    talk(chat, name="first")
    run_due(extracting)
    for number in range(BATCH_MESSAGES):
        source = "ai" if number % 2 else "user"
        speaker, meta = {"name": "Anna"}, {"session_id": "s1", "timezone": "Asia/Shanghai"}
        more: dict[str, Any] = {"timestamp": 1_712_349_999 + number, "speaker": speaker, "meta": meta}
        chat.index(said(f"second {number}", source=source, **more))

    run_due(extracting)

    batch = finder.batches[-1]
    assert [message.content for message in batch.messages] == [f"second {number}" for number in range(20)]
    assert [message.content for message in batch.before] == ["first 16", "first 17", "first 18", "first 19"]
    assert (batch.owner, len(batch.facts)) == (Owner("u1"), 12)
    first = batch.messages[0]
    assert (first.source, first.said_at, first.session_id) == ("user", 1_712_349_999, "s1")
    assert (first.speaker, first.timezone) == ({"name": "Anna"}, "Asia/Shanghai")


def test_facts_that_may_be_concerned_are_the_nearest_and_the_newest(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given many facts, I expect among the twelve the one that shares words with the batch, and the newest one."""
    finder.answer = lambda batch: extraction(*(found(m.content, m.number) for m in batch.messages))
    chat.index(said("I live in Oslo near the harbour", timestamp=1_712_000_000))
    talk(chat, 39)
    run_all(extracting, pool)
    chat.index(said("I left Oslo and the harbour", timestamp=1_712_400_000))

    run_all(extracting, pool)

    shown = [fact.content for fact in finder.batches[-1].facts]
    assert len(shown) == 12
    assert {"I live in Oslo near the harbour", "message 38"} <= set(shown)


def test_a_fact_that_one_message_is_about_is_shown_beside_many_that_the_others_are_near_to(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a batch about one matter, of which there are many facts, with one message about another, I expect among the
    twelve the fact that this one changes."""
    finder.answer = lambda batch: extraction(*(found(m.content, m.number) for m in batch.messages))
    chat.index(said("I live in Oslo near the harbour", timestamp=1_712_000_000))
    talk(chat, 39, name="we talked about the same topic today")
    run_all(extracting, pool)
    talk(chat, 19, name="and we talked about the same topic again today")
    chat.index(said("Oslo is over", timestamp=1_712_400_000))

    run_all(extracting, pool)

    assert "I live in Oslo near the harbour" in [fact.content for fact in finder.batches[-1].facts]


def test_a_state_is_shown_beside_events_that_all_messages_are_nearer_to(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given an old state, many events, and a batch in the words of the events that ends the state, I expect it to be
    among the twelve: what a message changes is mostly a state."""

    def answer(batch: Batch) -> Extraction:
        kinds = {m.number: "event" if "topic" in m.content else "state" for m in batch.messages}
        return extraction(*(found(m.content, m.number, kind=kinds[m.number]) for m in batch.messages))

    finder.answer = answer
    chat.index(said("I drive a Honda", timestamp=1_712_000_000))
    talk(chat, 39, name="we talked about the same topic today")
    run_all(extracting, pool)
    talk(chat, 19, name="and we talked about the same topic again today")
    chat.index(said("we talked about the same topic today and the Honda is gone", timestamp=1_712_400_000))

    run_all(extracting, pool)

    assert "I drive a Honda" in [fact.content for fact in finder.batches[-1].facts]


def test_facts_that_slots_come_from_are_shown(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given an old fact in the words that a slot comes from, and newer ones, I expect it beside a message that shares
    no word with it; a service's own slots are of any form."""

    def answer(batch: Batch) -> Extraction:
        homes = [SlotChange("home", "Oslo", (m.number,)) for m in batch.messages if "Oslo" in m.content]
        return extraction(*(found(m.content, m.number) for m in batch.messages), slots=homes)

    finder.answer = answer
    ProfileService(pool).update("u1", {"known": {"pets": {"evidence": ["none", 7, None]}, "name": "Anna", "work": []}})
    chat.index(said("I live in Oslo near the harbour", timestamp=1_712_000_000))
    talk(chat, 39)
    run_all(extracting, pool)
    chat.index(said("moved to Lisbon", timestamp=1_712_400_000))

    run_all(extracting, pool)

    shown = [fact.content for fact in finder.batches[-1].facts]
    assert len(shown) == 12
    assert "I live in Oslo near the harbour" in shown


def test_a_time_zone_that_is_none_is_left_out(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given an unknown zone, I expect the message without one."""
    chat.index(said("Hello", meta={"timezone": "../../etc/passwd"}))

    run_all(extracting, pool)

    assert finder.batches[0].messages[0].timezone is None


def test_a_batch_has_no_more_tokens_than_it_may(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given long messages, I expect as many in a batch as fit, and one that is too long in a batch of its own."""
    for number, words in enumerate((400, 400, 400, 3_000, 10)):
        chat.index(said("word " * words + str(number)))

    run_all(extracting, pool)

    assert finder.sizes == [2, 1, 1, 1]


def test_what_mem0_deleted_is_not_read(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool, mem0: Mem0Memory
) -> None:
    """Given a pending message that was deleted by Mem0's own method, I expect no call, and nothing pending."""
    (memory_id,) = chat.index(said("I live in Oslo"))
    mem0.delete(memory_id)

    run_all(extracting, pool)

    assert (finder.batches, select(pool, "SELECT FROM to_extract")) == ([], [])


# What is stored


def test_a_fact_is_of_its_last_message(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a fact that two messages say, I expect the time, session and speaker of the last, and the owner's."""
    for place, name in enumerate(("Anna", "Ben")):
        more: dict[str, Any] = {"speaker": {"name": name}, "meta": {"session_id": f"s{place}"}, "agent_id": "luna"}
        chat.index(said(f"I am {name}", timestamp=1_712_345_678 + place, **more))
    finder.answer = lambda batch: extraction(
        found("They moved.", *(m.number for m in batch.messages), when="2024-04", about="Anna", kind="event")
    )

    run_all(extracting, pool)

    (row,) = select(
        pool,
        "SELECT agent_id, extract(epoch FROM said_at)::int, payload ->> 'session_id', payload ->> 'speaker',"
        " payload ->> 'when', payload ->> 'about', payload ->> 'fact_kind', source"
        " FROM memories m JOIN users u ON u.number = user_number WHERE kind = 'fact'",
    )
    assert row == ("luna", 1_712_345_679, "s1", '{"name": "Ben"}', "2024-04", "Anna", "event", "user")


def test_what_the_ai_alone_said_is_the_ais(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a promise in a message of the AI, I expect a fact of the AI."""
    chat.index(said("Remind me"))
    chat.index(said("I will.", source="ai"))
    finder.answer = lambda batch: extraction(found("It will.", batch.messages[1].number, about="ai", kind="promise"))

    run_all(extracting, pool)

    assert select(pool, "SELECT source FROM memories WHERE content = 'It will.'") == [("ai",)]


def test_a_slot_of_a_service_s_own_is_dropped_and_counted(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a slot that a service wrote, I expect what is found for it not to be stored, and counted."""
    ProfileService(pool).update("u1", {"known": {"home": "Paris"}})
    chat.index(said("Moved to Lisbon"))
    finder.answer = lambda batch: extraction(slots=[SlotChange("home", "Lisbon", (batch.messages[0].number,))])

    (outcome,) = run_all(extracting, pool)

    assert outcome.facts_dropped == 1
    assert ProfileService(pool).get("u1").values == {"known": {"home": "Paris"}}


def test_a_fact_is_superseded_and_another_confirmed(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given an answer that replaces one fact and confirms another, I expect both done, counted and in the history."""
    chat.index(said("I live in Oslo with a cat"))
    finder.answer = lambda batch: extraction(
        found("Lives in Oslo.", batch.messages[0].number), found("Has a cat.", batch.messages[0].number)
    )
    run_all(extracting, pool)

    def second(batch: Batch) -> Extraction:
        numbers = {fact.content: fact.number for fact in batch.facts}
        message = batch.messages[0].number
        return extraction(
            found("Lives in Lisbon.", message, replaces=(numbers["Lives in Oslo."],)),
            confirmations=[Confirmation(numbers["Has a cat."], (message,))],
        )

    chat.index(said("Moved to Lisbon, cat included", timestamp=1_712_400_000))
    finder.answer = second
    (outcome,) = run_all(extracting, pool)

    assert (outcome.facts_stored, outcome.facts_superseded, outcome.facts_confirmed) == (1, 1, 1)
    assert facts_of(pool) == ["Has a cat.", "Lives in Lisbon."]
    events = "SELECT event, new_memory FROM memory_history WHERE event NOT IN ('ADD') ORDER BY number"
    assert select(pool, events) == [("CONFIRM", "Has a cat."), ("SUPERSEDE", "Lives in Oslo.")]
    assert evidence(pool) == [("I live in Oslo with a cat", 2), ("Moved to Lisbon, cat included", 2)]


def test_slots_are_written_with_their_evidence(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a slot in an answer, I expect it in the profile, by the message that says it, and shown to the next."""
    (memory_id,) = chat.index(said("I moved to Lisbon"))
    finder.answer = lambda batch: extraction(slots=[SlotChange("home", "Lisbon", (batch.messages[0].number,))])
    run_all(extracting, pool)
    chat.index(said("Lovely here"))
    finder.answer = finder.facts_of_all
    run_all(extracting, pool)

    assert select(pool, "SELECT profile -> 'known' -> 'home' ->> 'evidence' FROM profiles") == [(f'["{memory_id}"]',)]
    assert finder.batches[-1].slots == {"home": "Lisbon"}
    with pool.connection() as connection:
        assert read_slots(connection, Owner("u1")) == {"home": "Lisbon"}


# Once


@pytest.mark.parametrize("first", ["the one who outlived the lease", "the next one"])
def test_of_two_who_read_the_same_messages_one_commits(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool, first: str
) -> None:
    """Given a call that outlives its lease, and another of the same messages, I expect the facts of whichever commits
    first, once, and the other discarded."""
    talk(chat)
    asked, answer = [Event(), Event()], [Event(), Event()]

    def wait(batch: Batch) -> Extraction:
        place = len(finder.batches) - 1
        asked[place].set()
        assert answer[place].wait(30)
        return finder.facts_of_all(batch)

    finder.answer = wait
    with ThreadPoolExecutor(2) as threads:
        attempts = []
        for place in range(2):
            (lease,) = extracting.tick()
            attempts.append(threads.submit(extracting.extract, *lease))
            assert asked[place].wait(30)
            pass_time(pool, LEASE_S)
        order = [0, 1] if first == "the one who outlived the lease" else [1, 0]
        outcomes = []
        for place in order:
            answer[place].set()
            outcomes.append(attempts[place].result(30))

    assert [(outcome.facts_stored, outcome.discarded) for outcome in outcomes] == [(BATCH_MESSAGES, 0), (0, 1)]
    assert {count for _, count in evidence(pool)} == {1}
    assert select(pool, "SELECT calls, prompt_tokens, reserved FROM extraction_usage") == [(2, 200, 0)] * 2


def during_the_call(finder: ScriptedFinder, change: Callable[[Batch], object]) -> None:
    """Have something done during the next call, and none of those after it."""

    def answer(batch: Batch) -> Extraction:
        finder.answer = finder.facts_of_all
        change(batch)
        return finder.facts_of_all(batch)

    finder.answer = answer


def test_a_message_that_is_corrected_during_the_call_is_read_again(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a correction during the call, I expect the answer discarded, and facts of the corrected message alone."""
    talk(chat)

    def correct(batch: Batch) -> None:
        with pool.connection() as connection, connection.transaction():
            number = batch.messages[0].number
            connection.execute("UPDATE memories SET content = 'corrected' WHERE number = %s", (number,))
            outbox.add_again(connection, number)

    during_the_call(finder, correct)
    outcomes = run_all(extracting, pool)

    assert [outcome.discarded for outcome in outcomes] == [1, 0]
    assert len(facts_of(pool)) == BATCH_MESSAGES
    assert not [fact for fact in facts_of(pool) if fact.endswith("message 0")]


def test_a_message_that_is_corrected_later_is_read_again(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a message that was read alone, deleted facts and a correction, I expect new facts: none is taken for a
    deleted one."""
    chat.index(said("I live in Oslo"))
    run_all(extracting, pool)
    ((number,),) = select(pool, "SELECT memory_number FROM fact_evidence")
    with pool.connection() as connection, connection.transaction():
        facts = connection.execute("SELECT fact_number FROM fact_evidence").fetchall()
        remove(connection, [fact for (fact,) in facts])
        outbox.add_again(connection, number)

    (outcome,) = run_all(extracting, pool)

    assert (outcome.facts_stored, len(facts_of(pool))) == (1, 1)


def test_a_user_who_is_forgotten_during_the_call_leaves_nothing(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a user who is forgotten while the LLM reads, I expect no fact, no slot and nothing to be read again."""
    for number in range(BATCH_MESSAGES):
        chat.index(said(f"I have a {MARKER} of {number} bars"), 1_712_345_678.0)
    during_the_call(finder, lambda _: Forgetting(pool).forget("u1", 1_712_345_700.0))

    (outcome,) = run_due(extracting)

    assert (outcome.discarded, outcome.facts_stored) == (1, 0)
    assert select(pool, f"SELECT FROM memories WHERE content LIKE '%{MARKER}%'") == []
    run_due(extracting)
    assert (select(pool, "SELECT FROM to_extract"), finder.sizes) == ([], [BATCH_MESSAGES])


def test_a_user_who_is_being_forgotten_is_not_read(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a forgetting that is noted, and messages that are not deleted yet, I expect no call for them, and one for
    what is said after."""
    for number in range(BATCH_MESSAGES):
        chat.index(said(f"message {number}"), 1_712_345_678.0)
    with pool.connection() as connection:
        connection.execute(
            "INSERT INTO deletions (user_digest, everything, deleted_at)"
            " VALUES (sha256('u1'), true, to_timestamp(1712345700))"
        )

    assert run_due(extracting) == [Outcome()]
    assert finder.batches == []


def test_a_message_that_has_expired_is_not_read(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a message whose time is over, and is not deleted yet, I expect no call for it."""
    chat.index(said("Only for today", ttl_days=1))
    pass_time(pool, LEASE_S)

    assert (run_due(extracting), finder.batches) == ([Outcome()], [])


def test_those_who_index_do_not_wait_while_a_batch_is_read(
    chat: MemoryService,
    extracting: ExtractionService,
    finder: ScriptedFinder,
    pool: ConnectionPool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given a message of an owner while the batch is read, and another during the call, I expect both stored then."""
    talk(chat)
    read = read_batch

    def read_and_index(*args: Any) -> Batch | None:
        chat.index(said("while it is read"))
        return read(*args)

    monkeypatch.setattr(service, "read_batch", read_and_index)
    during_the_call(finder, lambda _: chat.index(said("during the call")))

    (outcome,) = run_due(extracting)

    assert (outcome.facts_stored, select(pool, "SELECT pending FROM extraction")) == (BATCH_MESSAGES, [(2,)])


def test_messages_that_come_during_the_call_wait(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given three messages during the call, I expect them counted, and due by their own time."""
    talk(chat)
    during_the_call(finder, lambda _: talk(chat, 3, name="later"))

    run_due(extracting)

    rows = select(pool, "SELECT pending, from_user, round(extract(epoch FROM due_at - now())) FROM extraction")
    assert rows == [(3, 3, 600)]


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (service, "read_batch"),
        (commit_module, "lock_user"),
        (commit_module, "insert_facts"),
        (commit_module, "add_evidence"),
        (commit_module, "write_slots"),
        (commit_module, "settle"),
        (outbox, "recount"),
        (outbox, "release"),
        (state, "succeeded"),
    ],
)
def test_a_crash_at_any_step_costs_no_fact(
    chat: MemoryService,
    extracting: ExtractionService,
    finder: ScriptedFinder,
    pool: ConnectionPool,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    step: str,
) -> None:
    """Given a process that ends at a step, I expect the next attempt to store each message's fact once."""
    talk(chat, name="before")
    run_due(extracting)
    talk(chat)

    def confirming(batch: Batch) -> Extraction:
        answer = finder.facts_of_all(batch)
        first = batch.messages[0].number
        return extraction(
            *answer.facts,
            confirmations=[Confirmation(batch.facts[0].number, (first,))],
            slots=[SlotChange("home", "Lisbon", (first,))],
        )

    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    finder.answer = confirming
    (lease,) = extracting.tick()
    monkeypatch.setattr(module, step, crash)
    with pytest.raises(KeyboardInterrupt):
        extracting.extract(*lease)
    monkeypatch.undo()
    run_all(extracting, pool)

    assert len(facts_of(pool)) == 2 * BATCH_MESSAGES
    counts = select(pool, "SELECT count(*) FROM fact_evidence GROUP BY memory_number")
    assert sorted(counts) == [(1,)] * (2 * BATCH_MESSAGES - 1) + [(2,)]
    assert len(select(pool, "SELECT FROM memory_history WHERE event = 'CONFIRM'")) == 1


def test_an_embedder_that_does_not_answer_costs_no_fact(
    chat: MemoryService, pool: ConnectionPool, finder: ScriptedFinder
) -> None:
    """Given an embedder that is away when the facts are embedded, I expect Unavailable, and the facts later."""

    def away(_: Any) -> Any:
        raise Unavailable("the embedder does not answer")

    talk(chat)
    broken = ExtractionService(pool, finder, away, Budget(10**9, 10**9), capacity=8, call_s=60)
    with pytest.raises(Unavailable):
        run_due(broken)
    assert broken.tick() == []

    run_all(ExtractionService(pool, finder, chat.writer.embed, Budget(10**9, 10**9), capacity=8, call_s=60), pool)
    assert {count for _, count in evidence(pool)} == {1}


def test_off_and_on_again_reads_nothing_twice(
    chat: MemoryService,
    memories: MemoryService,
    extracting: ExtractionService,
    pool: ConnectionPool,
    finder: ScriptedFinder,
) -> None:
    """Given messages with an LLM, without one and with one again, and all of them handed over twice, I expect each of
    the first and the last read once, and those between never."""
    parts = [[said(f"{part} {number}", message_id=f"{part}{number}") for number in range(20)] for part in "abc"]
    for indexing, part in zip((chat, memories, chat), parts, strict=True):
        for message in part:
            indexing.index(message)
        run_due(extracting)
    for part in parts:
        for message in part:
            chat.index(message)

    assert (extracting.tick(), finder.sizes) == ([], [20, 20])
    assert [message.content[0] for batch in finder.batches for message in batch.messages] == ["a"] * 20 + ["c"] * 20


# Leases


@pytest.mark.parametrize("analyzed", [None, "u3", "u2"])
def test_leases_are_no_more_than_can_be_worked_on(
    chat: MemoryService, pool: ConnectionPool, finder: ScriptedFinder, analyzed: str | None
) -> None:
    """Given three users who are due and a capacity of two, I expect the two who wait for the longest, then none, and
    after the leases' time those whose messages were lost, too; however many PostgreSQL takes to be there."""
    for user in ("u3", "u1", "u2"):
        talk(chat, user_id=user)
        if user == analyzed:
            with pool.connection() as connection:
                connection.execute("ANALYZE extraction")
    two = ExtractionService(pool, finder, chat.writer.embed, Budget(10**9, 10**9), capacity=2, call_s=60)
    names = dict(select(pool, "SELECT number, user_id FROM users WHERE kind = 'message'"))

    leases = two.tick()
    assert {names[lease.user_number] for lease in leases} == {"u3", "u1"}
    assert two.tick() == []

    two.extract(*leases[0])
    assert {names[lease.user_number] for lease in two.tick()} == {"u2"}
    pass_time(pool, LEASE_S)
    assert len(two.tick()) == 2


def test_an_outdated_lease_makes_no_call(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a lease that another has by now, or an owner without messages, I expect nothing to be done."""
    talk(chat)
    (lease,) = extracting.tick()
    pass_time(pool, LEASE_S)
    (other,) = extracting.tick()

    assert extracting.extract(*lease) == Outcome()
    extracting.extract(*other)
    assert extracting.extract(*other) == Outcome()
    assert finder.sizes == [BATCH_MESSAGES]


def test_a_fact_that_is_gone_is_not_confirmed(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given a fact that is deleted while the LLM confirms it, I expect the messages to be read again without it."""
    chat.index(said("I live in Oslo"))
    finder.answer = lambda batch: extraction(found("Lives in Oslo.", batch.messages[0].number))
    run_all(extracting, pool)

    def confirm(batch: Batch) -> Extraction:
        number = batch.messages[0].number
        if not batch.facts:
            return extraction(found("Lives in Oslo, still.", number))
        with pool.connection() as connection:
            remove(connection, [batch.facts[0].number])
        return extraction(confirmations=[Confirmation(batch.facts[0].number, (number,))])

    finder.answer = confirm
    chat.index(said("Still in Oslo", timestamp=1_712_400_000))
    outcomes = run_all(extracting, pool)

    assert [outcome.discarded for outcome in outcomes] == [1, 0]
    assert facts_of(pool) == ["Lives in Oslo, still."]


def test_two_facts_may_replace_the_same(
    chat: MemoryService, extracting: ExtractionService, finder: ScriptedFinder, pool: ConnectionPool
) -> None:
    """Given two facts that replace one, I expect both stored and the one superseded once."""
    chat.index(said("I live in Oslo with a cat"))
    finder.answer = lambda batch: extraction(found("Lives in Oslo with a cat.", batch.messages[0].number))
    run_all(extracting, pool)

    def split(batch: Batch) -> Extraction:
        old, number = (batch.facts[0].number,), batch.messages[0].number
        facts: list[FoundFact] = [found(text, number, replaces=old) for text in ("Lives in Rome.", "Has a cat.")]
        return extraction(*facts)

    chat.index(said("To Rome, with the cat", timestamp=1_712_400_000))
    finder.answer = split
    (outcome,) = run_all(extracting, pool)

    assert (outcome.facts_stored, outcome.facts_superseded) == (2, 1)
    assert facts_of(pool) == ["Lives in Rome.", "Has a cat."]
