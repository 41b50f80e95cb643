"""`ltm extract` and the report of `ltm status`, on a real PostgreSQL: what an operator sees and does of extraction."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from keepsake_client.protocol import AddData, MemoryUpdateMessage
from psycopg_pool import ConnectionPool

from services.long_term_memory.extraction.operations import Operations, open_operations
from services.long_term_memory.extraction.rebuilding import rebuild
from services.long_term_memory.extraction.report import ExtractionReport, newest_set_aside, read_report, report_of
from services.long_term_memory.known_profile import NewSlot, read_slots, write_slots
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.facts import NewFact, insert_facts
from services.long_term_memory.postgres.pending import recount
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.profile_service import ProfileService
from services.runtime.errors import StackError
from services.runtime.settings import Settings
from tests.integration.conftest import WordEmbedder


@pytest.fixture
def extracted(mem0: Mem0Memory, store: MemoryStore) -> MemoryService:
    """The service where an LLM is configured."""
    return MemoryService(mem0, store, extract=True)


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def operations(connection: psycopg.Connection[Any]) -> Operations:
    return Operations(connection)


def say(memories: MemoryService, *contents: str, user_id: str = "anna", **more: Any) -> list[str]:
    """The ids of what a user says."""
    fields = {"user_id": user_id, "source": "user", "timestamp": 1_712_345_678, **more}
    events = [MemoryUpdateMessage.model_validate({**fields, "content": content}) for content in contents]
    return [memories.index(event)[0] for event in events]


def set_aside(connection: psycopg.Connection[Any], memory_id: str, reason: str) -> None:
    """What the extractor does after three answers that were not usable."""
    with connection.transaction():
        (owner,) = connection.execute(
            "UPDATE to_extract SET set_aside = %s, tries = 3"
            " WHERE memory_number = (SELECT number FROM memories WHERE id = %s) RETURNING user_number",
            (reason, memory_id),
        ).fetchone() or (0,)
        recount(connection, [owner])


def state(connection: psycopg.Connection[Any], **columns: Any) -> None:
    """The state of the provider."""
    names, values = ", ".join(columns), ", ".join(["%s"] * len(columns))
    connection.execute("DELETE FROM extraction_state")
    connection.execute(f"INSERT INTO extraction_state ({names}) VALUES ({values})", list(columns.values()))


def test_what_waits_is_listed_by_user_and_character(extracted: MemoryService, operations: Operations) -> None:
    """Given messages of a user, of the user with a character, and of the AI alone, I expect each owner with their
    number and when they are due; without a word of the user, no time."""
    say(extracted, "one", "two", user_id="an na")
    say(extracted, "three", user_id="an na", agent_id="luna")
    say(extracted, "four", user_id="ben", source="ai")

    waiting = [(each.user_id, each.agent_id, each.messages, each.due_at is None) for each in operations.waiting()]

    assert waiting == [("an na", None, 2, False), ("an na", "luna", 1, False), ("ben", None, 1, True)]


def test_what_was_set_aside_is_listed_and_tried_again(
    extracted: MemoryService, operations: Operations, connection: psycopg.Connection[Any]
) -> None:
    """Given a message of each of two users that was set aside, I expect it listed with its reason, and after `retry` of
    one of them the other's alone."""
    anna, ben = (say(extracted, f"words of {user}", user_id=user)[0] for user in ("anna", "ben"))
    for memory_id in (anna, ben):
        set_aside(connection, memory_id, "no JSON")
    aside = [(each.memory_id, each.user_id, each.reason, each.content) for each in operations.set_aside()]
    assert aside == [(anna, "anna", "no JSON", "words of anna"), (ben, "ben", "no JSON", "words of ben")]
    assert operations.waiting() == []

    assert [operations.retry("anna"), operations.retry("anna"), operations.retry("carl")] == [1, 0, 0]

    assert [each.memory_id for each in operations.set_aside()] == [ben]
    assert [(each.user_id, each.messages) for each in operations.waiting()] == [("anna", 1)]
    assert connection.execute("SELECT tries FROM to_extract ORDER BY memory_number").fetchall() == [(0,), (3,)]
    assert operations.retry(None) == 1


def test_the_newest_that_were_set_aside_are_named(
    extracted: MemoryService, connection: psycopg.Connection[Any]
) -> None:
    """Given three messages that were set aside, I expect the last two, newest first, with owner and reason."""
    for user, agent in (("anna", None), ("an na", "luna"), ("ben", None)):
        [memory_id] = say(extracted, f"words of {user}", user_id=user, agent_id=agent)
        set_aside(connection, memory_id, f"no JSON of {user}")

    newest = newest_set_aside(connection, 2)

    assert [(each.user_id, each.agent_id, each.reason, each.said_at) for each in newest] == [
        ("ben", None, "no JSON of ben", 1_712_345_678),
        ("an na", "luna", "no JSON of an na", 1_712_345_678),
    ]


def test_a_pause_is_reported_until_it_ends(operations: Operations, connection: psycopg.Connection[Any]) -> None:
    """Given a pause, and another one, I expect it reported since the first, and working after `resume`."""
    assert read_report(connection).state == "working"

    operations.pause()
    first = read_report(connection)
    operations.pause()

    assert (first.state, read_report(connection)) == ("paused", first)
    assert first.since is not None
    operations.resume()
    assert read_report(connection).state == "working"


def test_resume_ends_a_stop(operations: Operations, connection: psycopg.Connection[Any]) -> None:
    """Given a provider that refused, I expect it reported with its reason, and nothing of it left after `resume`."""
    state(connection, state="stopped", reason="401 Unauthorized", failures=2, refused_batch=[1, 2])
    stopped = read_report(connection)
    assert (stopped.state, stopped.reason) == ("stopped", "401 Unauthorized")

    operations.resume()

    assert read_report(connection) == ExtractionReport("working", None, None, 0, 0, None, 0, 0, 0)
    assert connection.execute("SELECT failures, refused_batch FROM extraction_state").fetchall() == [(0, None)]


def test_resume_ends_the_pauses_of_users(
    extracted: MemoryService, operations: Operations, connection: psycopg.Connection[Any]
) -> None:
    """Given a user who is left alone for an hour after a refusal, I expect `resume` to have the messages read when they
    are due."""
    say(extracted, "one")
    connection.execute("UPDATE extraction SET not_before = now() + interval '1 hour', due_at = now()")

    operations.resume()

    assert connection.execute("SELECT count(*) FROM extraction WHERE not_before > now()").fetchall() == [(0,)]


def test_resume_before_the_first_batch_changes_nothing(operations: Operations, connection: Any) -> None:
    """Given no state at all, I expect `resume` to go through."""
    operations.resume()

    assert read_report(connection).state == "working"


@pytest.mark.parametrize(("days_ago", "expected"), [(0, "over budget"), (1, "working")])
def test_a_budget_is_over_for_a_day(connection: psycopg.Connection[Any], days_ago: int, expected: str) -> None:
    """Given a budget that was used up today, or yesterday, I expect it over today alone."""
    state(connection, state="over_budget", reason="2,000,000 tokens")
    connection.execute("UPDATE extraction_state SET since = since - %s * interval '1 day'", (days_ago,))

    assert read_report(connection).state == expected


def test_the_report_has_what_waits_and_what_was_spent(
    extracted: MemoryService, connection: psycopg.Connection[Any], database: str
) -> None:
    """Given messages that wait, one set aside, and usage of today and yesterday, I expect their numbers."""
    say(extracted, "one", "two")
    ids = say(extracted, "three", "four", user_id="ben")
    set_aside(connection, ids[0], "no JSON")
    for days, user, calls in ((0, 0, 3), (0, 7, 3), (1, 0, 5)):
        connection.execute(
            "INSERT INTO extraction_usage (day, user_number, calls, prompt_tokens, completion_tokens, reserved)"
            " VALUES ((now() AT TIME ZONE 'UTC')::date - %s, %s, %s, 100, 20, 1000)",
            (days, user, calls),
        )

    report = report_of(database, 5.0)

    assert isinstance(report, ExtractionReport)
    assert (report.messages, report.users, report.set_aside) == (3, 2, 1)
    assert report.oldest is not None
    assert (report.calls, report.tokens) == (3, 120)


def test_a_database_without_the_tables_says_so(empty_database: str) -> None:
    """Given a database that no worker of this release has used, I expect one line in place of the report, and an error
    that says what to do in place of the operations."""
    assert report_of(empty_database, 5.0) == 'relation "extraction_state" does not exist'

    with (
        pytest.raises(StackError, match="start the stack once"),
        open_operations(Settings(database_url=empty_database)),
    ):
        raise AssertionError("opened")


def test_a_migrated_database_is_opened(database: str) -> None:
    """Given a database of this release, I expect the operations on it."""
    with open_operations(Settings(database_url=database)) as operations:
        assert operations.waiting() == []


# --- Rebuild


def number_of(connection: psycopg.Connection[Any], content: str) -> int:
    (number,) = connection.execute("SELECT number FROM memories WHERE content = %s", (content,)).fetchone() or (0,)
    return int(number)


def fact(content: str, evidence: int, *replaces: int) -> NewFact:
    vector, fact_id = WordEmbedder().embed(content), str(uuid.uuid5(uuid.NAMESPACE_OID, content))
    return NewFact(
        fact_id, content, vector, "state", "user", None, 1_712_345_678.0, "user", None, None, (evidence,), replaces
    )


@pytest.fixture
def found(extracted: MemoryService, connection: psycopg.Connection[Any]) -> list[str]:
    """The ids of three messages of anna, which were read: two facts, one superseded by the other, and a slot; and a
    fact of ben, whose message waits again."""
    ids = say(extracted, "I live in Oslo", "I moved to Lisbon")
    ids += say(extracted, "Stay with me", agent_id="luna")
    say(extracted, "I live in Rome", user_id="ben")
    connection.execute("DELETE FROM to_extract WHERE user_number IN (SELECT number FROM users WHERE user_id = 'anna')")
    connection.execute("DELETE FROM extraction WHERE user_number IN (SELECT number FROM users WHERE user_id = 'anna')")
    anna = Owner("anna")
    insert_facts(connection, anna, [fact("Anna lives in Oslo", number_of(connection, "I live in Oslo"))])
    old, said = number_of(connection, "Anna lives in Oslo"), number_of(connection, "I moved to Lisbon")
    insert_facts(connection, anna, [fact("Anna lives in Lisbon", said, old)])
    insert_facts(connection, Owner("ben"), [fact("Ben lives in Rome", number_of(connection, "I live in Rome"))])
    write_slots(connection, anna, [NewSlot("home", "Lisbon", [ids[1]], 1_712_345_678.0)])
    return ids


def test_a_rebuild_says_first_what_it_costs(operations: Operations, found: list[str]) -> None:
    """Given a user with two owners' messages and two facts, I expect a call for each owner, and its tokens."""
    cost = operations.cost("anna")

    assert (cost.facts, cost.messages, cost.calls) == (2, 3, 2)
    assert 2 * 900 < cost.tokens < 2 * 900 + 50


def test_a_rebuild_deletes_what_was_found_and_reads_all_again(
    found: list[str], operations: Operations, connection: psycopg.Connection[Any], pool: ConnectionPool
) -> None:
    """Given facts, a superseded one and a slot, and a slot of a service, I expect after a rebuild the messages, the
    service's slot and all of another user, nothing else of the user, and the messages waiting."""
    ProfileService(pool).update("anna", {"known": {"pets": "a cat"}, "age": 30})

    assert rebuild(connection, "anna") == 3

    def select(statement: str) -> list[Any]:
        return [value for (value,) in connection.execute(statement).fetchall()]

    assert select("SELECT content FROM memories ORDER BY number") == [
        "I live in Oslo",
        "I moved to Lisbon",
        "Stay with me",
        "I live in Rome",
        "Ben lives in Rome",
    ]
    assert select("SELECT memory_number FROM fact_evidence") == [number_of(connection, "I live in Rome")]
    assert select("SELECT fact_number FROM superseded_facts") == []
    assert len(select("SELECT memory_id FROM memory_history")) == 5
    assert select("SELECT count(*) FROM tombstones") == [0]
    assert read_slots(connection, Owner("anna")) == {"pets": "a cat"}
    assert select("SELECT profile FROM profiles") == [{"known": {"pets": "a cat"}, "age": 30}]
    assert "Lisbon" not in str(select("SELECT patch FROM profile_history"))
    assert [(each.user_id, each.agent_id, each.messages) for each in operations.waiting()] == [
        ("ben", None, 1),
        ("anna", None, 2),
        ("anna", "luna", 1),
    ]


def test_a_rebuild_takes_what_is_being_read_out_of_its_call(
    found: list[str], connection: psycopg.Connection[Any]
) -> None:
    """Given messages that a call reads meanwhile, I expect them in another revision, so that its result is dropped."""
    rebuild(connection, "anna")
    read = connection.execute("SELECT memory_number, revision FROM to_extract ORDER BY memory_number").fetchall()

    assert rebuild(connection, "anna") == 3

    again = connection.execute("SELECT memory_number, revision FROM to_extract ORDER BY memory_number").fetchall()
    assert [number for number, _ in read] == [number for number, _ in again]
    kept = [number for (number, revision), (_, later) in zip(read, again, strict=True) if revision == later]
    assert kept == [number_of(connection, "I live in Rome")]


def test_what_was_added_by_request_is_not_read(
    extracted: MemoryService, operations: Operations, connection: psycopg.Connection[Any]
) -> None:
    """Given a message and an addition, I expect the message alone in the cost, and read again."""
    say(extracted, "I live in Oslo")
    extracted.add("anna", AddData(content="Anna is a pilot"), "r1", 1_712_345_678.0)

    assert (operations.cost("anna").messages, rebuild(connection, "anna")) == (1, 1)


@pytest.mark.parametrize(
    "known", ["text", [1], {"pets": {"evidence": "x"}}, {"pets": {"evidence": [{"a": 1}, "none", None]}}, {"pets": 7}]
)
def test_a_rebuild_leaves_what_a_service_wrote_in_any_form(
    found: list[str], connection: psycopg.Connection[Any], pool: ConnectionPool, known: Any
) -> None:
    """Given a profile whose `known` a service wrote in another form than extraction, I expect it as it was."""
    ProfileService(pool).update("anna", {"known": None})
    ProfileService(pool).update("anna", {"known": known})

    assert rebuild(connection, "anna") == 3

    assert connection.execute("SELECT profile FROM profiles").fetchall() == [({"known": known},)]


def test_a_rebuild_of_an_unknown_user_does_nothing(connection: psycopg.Connection[Any]) -> None:
    """Given a user without messages, I expect none read again."""
    assert rebuild(connection, "nowhere") == 0
