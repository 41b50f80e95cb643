"""Lists, corrections and deletions of memories, on a real PostgreSQL."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
import redis
from keepsake_client.errors import InvalidMessage, MessageTooLarge
from keepsake_client.protocol import (
    AddData,
    Memory,
    MemoryDeleteData,
    MemoryFilters,
    MemoryListData,
    MemoryUpdateData,
    MemoryUpdateMessage,
    SearchData,
)
from keepsake_client.turns import TURN_FIELD, TURNS_STREAM
from psycopg_pool import ConnectionPool

from services.long_term_memory import deleting, removal
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_management import MAX_PAGE_CHARS, MemoryManagement
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.postgres.schema import migrate
from services.long_term_memory.postgres.store import MemoryStore
from services.runtime.erasure import Erasure
from services.runtime.errors import MemoryNotFound
from services.runtime.settings import load_settings
from tests.support import free_port, wait_until

#: Some minutes ago: deletions of some days ago are removed.
NOW = round(time.time()) - 1_000.0


@pytest.fixture
def management(pool: ConnectionPool, memories: MemoryService) -> MemoryManagement:
    return MemoryManagement(pool, memories.writer)


def say(
    memories: MemoryService,
    content: str,
    at: float = NOW,
    *,
    user: str = "u1",
    arrived_at: float | None = None,
    **more: Any,
) -> str:
    """Index a message; its memory's id, or '' where it was deleted before."""
    fields = {"source": "user", "message_id": content, **more}
    update = MemoryUpdateMessage.model_validate({"user_id": user, "content": content, "timestamp": at, **fields})
    return next(iter(memories.index(update, at if arrived_at is None else arrived_at)), "")


def listed(management: MemoryManagement, user: str = "u1", **query: Any) -> list[str]:
    """The contents of all pages."""
    return [memory.content for memory in pages(management, user, **query)]


def pages(management: MemoryManagement, user: str = "u1", **query: Any) -> list[Memory]:
    found: list[Memory] = []
    cursor = query.pop("cursor", None)
    while True:
        page = management.page(user, MemoryListData.model_validate({**query, "cursor": cursor}))
        found += page.memories
        if (cursor := page.next_cursor) is None:
            return found


def delete(management: MemoryManagement, user: str = "u1", at: float = NOW + 100, **data: Any) -> int:
    return management.delete(user, MemoryDeleteData.model_validate(data), at)


def correct(management: MemoryManagement, memory_id: str, at: float = NOW + 50, **data: Any) -> Memory:
    return management.update("u1", MemoryUpdateData(id=memory_id, **data), at)


def rows(pool: ConnectionPool, statement: str) -> list[tuple[Any, ...]]:
    with pool.connection() as connection:
        return connection.execute(statement).fetchall()


# Lists


def test_a_list_is_in_the_order_of_time(memories: MemoryService, management: MemoryManagement) -> None:
    """Given memories that were not said in the order in which they were indexed, two at the same time, I expect the
    order of time in both directions, and no other user's."""
    for content, at in (("b", NOW + 1), ("a", NOW), ("c", NOW + 2), ("c2", NOW + 2)):
        say(memories, content, at)
    say(memories, "another's", user="u2")

    assert listed(management) == ["c2", "c", "b", "a"]
    assert listed(management, order="oldest") == ["a", "b", "c", "c2"]


@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_pages_neither_double_nor_hide_a_memory(
    memories: MemoryService, management: MemoryManagement, order: str
) -> None:
    """Given memories that are said and deleted between two pages, I expect each other one once."""
    ids = [say(memories, f"{n}", NOW + n // 3) for n in range(9)]
    first = management.page("u1", MemoryListData.model_validate({"order": order, "limit": 4}))
    shown = [memory.id for memory in first.memories]
    say(memories, "before all", NOW - 10)
    say(memories, "after all", NOW + 10)
    say(memories, "in between", NOW + 1)
    delete(management, ids=[shown[0], shown[3], ids[4]])

    rest = [memory.id for memory in pages(management, order=order, cursor=first.next_cursor)]

    assert [memory_id for memory_id in shown + rest if memory_id in ids] == _without(
        ids if order == "oldest" else ids[::-1], ids[4]
    )
    assert len(set(rest)) == len(rest) > 4


def _without(items: list[str], item: str) -> list[str]:
    return [other for other in items if other != item]


def test_the_last_page_has_no_cursor(memories: MemoryService, management: MemoryManagement) -> None:
    """Given as many memories as fit a page, I expect no further page."""
    for n in range(4):
        say(memories, f"{n}", NOW + n)

    assert management.page("u1", MemoryListData(limit=4)).next_cursor is None
    assert management.page("u1", MemoryListData(limit=3)).next_cursor is not None
    assert management.page("nobody", MemoryListData()).memories == []


def test_a_page_ends_where_its_contents_are_long(memories: MemoryService, management: MemoryManagement) -> None:
    """Given contents of 0.4 of what a page holds, I expect three on the first page, and all in the end."""
    for n in range(5):
        say(memories, f"{n}" * (MAX_PAGE_CHARS * 4 // 10), NOW + n, message_id=f"{n}")

    assert len(management.page("u1", MemoryListData()).memories) == 3
    assert [content[0] for content in listed(management)] == ["4", "3", "2", "1", "0"]


def test_owners_of_a_scope_are_merged(memories: MemoryService, management: MemoryManagement) -> None:
    """Given memories of two characters and shared ones, I expect those of the scope, by time, over pages of two."""
    for n, agent in enumerate(("", "anna", "bert", "anna", "", "bert")):
        say(memories, f"{n}{agent}", NOW + n, agent_id=agent or None)

    assert listed(management, limit=2) == ["4", "0"]
    assert listed(management, limit=2, agent_id="anna") == ["4", "3anna", "1anna", "0"]
    assert listed(management, limit=2, all_agents=True) == ["5bert", "4", "3anna", "2bert", "1anna", "0"]
    found = pages(management, agent_id="anna")[1]
    assert (found.user_id, found.agent_id, found.score) == ("u1", "anna", None)


@pytest.mark.parametrize(
    "cursor", ["", "x", "AAAA", "é", "\ud800", "A" * 28, "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "!" * 28, "A" * 200]
)
def test_a_cursor_that_is_none_is_refused(management: MemoryManagement, cursor: str) -> None:
    """Given a text that is no cursor, I expect the request's error."""
    with pytest.raises(InvalidMessage, match="cursor"):
        management.page("u1", MemoryListData.model_construct(cursor=cursor))


def test_a_cursor_that_was_changed_or_is_of_another_order_is_refused(
    memories: MemoryService, management: MemoryManagement
) -> None:
    """Given a cursor, I expect each one with a character changed to be refused, and it in the other order."""
    for n in range(3):
        say(memories, f"{n}", NOW + n)
    cursor = management.page("u1", MemoryListData(limit=1)).next_cursor
    assert cursor

    for place, char in enumerate(cursor):
        changed = cursor[:place] + ("A" if char != "A" else "B") + cursor[place + 1 :]
        with pytest.raises(InvalidMessage):
            management.page("u1", MemoryListData(cursor=changed))
    with pytest.raises(InvalidMessage, match="other order"):
        management.page("u1", MemoryListData(cursor=cursor, order="oldest"))


def test_a_list_reads_its_index_in_one_statement(
    memories: MemoryService, management: MemoryManagement, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given 3,000 memories of a user, I expect a page to read the index by time, and no more than a page of it."""
    with pool.connection() as connection:
        connection.execute("INSERT INTO users (user_id, agent_id) VALUES ('u1', '')")
        connection.execute(
            "INSERT INTO memories (id, user_number, user_hash, session, said_at, source, content, payload, terms,"
            " traits, vector) SELECT gen_random_uuid(), users.number, user_hash, n / 25, to_timestamp(n), 'user',"
            " 'tea', '{}', '', '\\x00', %s::halfvec FROM generate_series(1, 3000) n, users",
            ([0.1] * 384,),
        )
        connection.execute("ANALYZE memories")
    statements: list[tuple[Any, Any]] = []
    execute = psycopg.Connection.execute

    def note(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
        statements.append((query, params))
        return execute(self, query, params, **options)

    monkeypatch.setattr(psycopg.Connection, "execute", note)
    cursor = management.page("u1", MemoryListData(limit=50)).next_cursor
    management.page("u1", MemoryListData(limit=50, cursor=cursor, all_agents=True))
    monkeypatch.undo()

    assert len(statements) == 2
    for query, values in statements:
        with pool.connection() as connection:
            plan = connection.execute(f"EXPLAIN (ANALYZE, FORMAT TEXT) {query}", values).fetchall()
        text = "\n".join(line for (line,) in plan)
        assert re.search(r"memories_\d+_by_time", text)
        assert "rows=51.00" in text or "rows=51 " in text
        assert all("never executed" in line for (line,) in plan if "Seq Scan on memories" in line)


# Conditions


def test_conditions_select_alike_in_lists_and_deletions(memories: MemoryService, management: MemoryManagement) -> None:
    """Given memories that differ in one thing each, I expect each condition to list one, count one and delete one."""
    base: dict[str, Any] = {"meta": {"session_id": "s"}, "speaker": {"id": "1", "name": "Wei"}}
    say(memories, "tea", NOW, **base)
    say(memories, "session", NOW, **{**base, "meta": {"session_id": 7}})
    say(memories, "source", NOW, **{**base, "source": "ai"})
    say(memories, "early", NOW - 10, **base)
    say(memories, "late", NOW + 10, **base)
    say(memories, "named", NOW, **{**base, "speaker": {"id": "1", "name": "Anna"}})
    say(memories, "identified", NOW, **{**base, "speaker": {"id": "2", "name": "Wei"}})
    conditions: dict[str, dict[str, Any]] = {
        "session": {"session_id": "7"},
        "source": {"source": "ai"},
        "early": {"until": NOW - 10},
        "late": {"since": NOW + 10},
        "named": {"speaker": "anna"},
        "identified": {"speaker": {"id": "2", "name": "whoever"}},
        "tea": {"contains": "TEA"},
    }

    for content, filters in conditions.items():
        assert listed(management, filters=filters) == [content]
        assert delete(management, filters=filters, dry_run=True) == 1
        assert delete(management, filters=filters) == 1
        assert delete(management, filters=filters) == 0
    assert listed(management) == []


CASES = [
    ("Ärger mit Öl", "ärger", True),
    ("ärger mit öl", "ÄRGER MIT ÖL", True),
    ("Arger", "Ärger", False),
    ("İstanbul", "istanbul", True),
    ("istanbul", "İSTANBUL", True),
    ("i\u0307stanbul", "İstanbul", True),
    ("ISTANBUL", "ıstanbul", True),
    ("Москва", "МОСКВА", True),
    ("ΟΔΥΣΣΕΥΣ", "οδυσσευς", True),
    ("οδυσσεύς", "ΟΔΥΣΣΕΎΣ", True),
    ("Straße", "STRASSE", True),
    ("STRASSE", "straße", True),
    ("STRAẞE", "straße", True),
    ("ԵՐԵՎԱՆ", "երևան", False),  # a ligature of Armenian is two letters
    ("ＫＥＥＰ", "ｋｅｅｐ", True),
    ("我的猫叫豆豆", "豆豆", True),
    ("100% sure_thing", "0% SURE_", True),
    ("100 sure", "0%", False),
    (r"a\b", r"A\B", True),
    ("'; DROP TABLE memories; --", "drop table", True),
    ("a{0}b", "A{0}", True),
    ("two\nlines", "two\nLINES", True),
]


@pytest.mark.parametrize("locale", ["embedded", "C"])
def test_a_contained_text_is_found_in_any_case(
    create_database: Callable[..., str], database_url: str, memories: MemoryService, locale: str
) -> None:
    """Given contents in many scripts, on the embedded database and on one of the C locale, I expect a text to be found
    in another case and nothing else, by a list and by the insertion that a deletion refuses."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = f"test_locale_{locale.lower()}"
        options = " TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C' ENCODING 'UTF8'" if locale == "C" else ""
        connection.execute(f"CREATE DATABASE {name}{options}")
    with open_pool(database_url.replace("/keepsake?", f"/{name}?"), 2) as pool:
        with pool.connection() as connection:
            migrate(connection, 384)
            folds = connection.execute("SELECT lower('Ä')").fetchone()
        store = MemoryStore(pool)
        mem0 = Mem0Memory(memories._mem0.embedding_model, store, PostgresHistory(pool), None)
        service = MemoryService(mem0, store)
        management = MemoryManagement(pool, service.writer)
        for number, (content, text, _) in enumerate(CASES):
            say(service, content, user=f"{number}")
            say(service, "something else", user=f"{number}")
            delete(management, f"late {number}", filters={"contains": text})
            say(service, content, user=f"late {number}")

        found = [listed(management, f"{n}", filters={"contains": text}) for n, (_, text, _) in enumerate(CASES)]
        refused = [listed(management, f"late {n}") == [] for n in range(len(CASES))]

    assert folds == ("ä" if locale == "embedded" else "Ä",)
    assert found == [[content] if meets else [] for content, _, meets in CASES]
    assert refused == [meets for _, _, meets in CASES]


# One memory


def test_a_memory_is_shown_with_its_history(memories: MemoryService, management: MemoryManagement) -> None:
    """Given a memory of a character that was corrected, I expect it with both changes, oldest first."""
    memory_id = say(memories, "My cat is called Tofu", agent_id="anna", meta={"a": 1})
    correct(management, memory_id, content="My cat is called Mochi")

    memory, history = management.get("u1", memory_id.upper())

    assert (memory.id, memory.content, memory.agent_id) == (memory_id, "My cat is called Mochi", "anna")
    assert memory.metadata["a"] == 1
    assert [(change.event, change.old_content, change.new_content) for change in history] == [
        ("ADD", None, "My cat is called Tofu"),
        ("UPDATE", "My cat is called Tofu", "My cat is called Mochi"),
    ]
    assert [change.changed_at for change in history] == [memory.created_at, memory.updated_at]


@pytest.mark.parametrize("memory_id", ["no UUID", "{}", "00000000-0000-8000-8000-000000000000", "another's"])
def test_a_memory_that_the_user_does_not_have_is_not_found(
    memories: MemoryService, management: MemoryManagement, memory_id: str
) -> None:
    """Given an id that is no UUID, of nothing, or of another user's memory, I expect `not_found`, and it untouched."""
    others = say(memories, "another's", user="u2")
    wanted = others if memory_id == "another's" else memory_id

    with pytest.raises(MemoryNotFound):
        management.get("u1", wanted)
    with pytest.raises(MemoryNotFound):
        correct(management, wanted, content="mine")
    assert delete(management, ids=[wanted]) == 0
    assert listed(management, "u2") == ["another's"]


# Corrections


def test_a_corrected_memory_is_found_by_its_new_text(
    memories: MemoryService, management: MemoryManagement, pool: ConnectionPool
) -> None:
    """Given a corrected content, I expect the row of a memory that was said so, and a search to find it alone."""
    memory_id = say(memories, "Wei: my cat is called Tofu", speaker={"name": "Wei"}, message_id="m")
    say(memories, "Wei: my dog is called Mochi", user="u2", speaker={"name": "Wei"})
    columns = "content, terms, traits, analysis, vector::text"
    [said] = rows(pool, f"SELECT {columns} FROM memories WHERE content LIKE '%dog%'")

    memory = correct(management, memory_id, content="Wei: my dog is called Mochi")

    assert (memory.content, memory.updated_at) == (said[0], datetime.fromtimestamp(NOW + 50, UTC).isoformat())
    [corrected] = rows(pool, f"SELECT {columns} FROM memories WHERE id = '{memory_id}'")
    assert corrected == said
    assert [m.id for m in memories.search("u1", SearchData(query="dog Mochi"), now=NOW + 9e6)] == [memory_id]
    assert "Tofu" not in rows(pool, "SELECT string_agg(memories::text, '') FROM memories")[0][0]


def test_the_same_correction_again_changes_nothing(
    memories: MemoryService, management: MemoryManagement, pool: ConnectionPool
) -> None:
    """Given a correction that is delivered twice, I expect one change of the history, and the first one's time."""
    memory_id = say(memories, "tofu")
    first = correct(management, memory_id, content="mochi", metadata={"a": {"b": 1}})
    again = correct(management, memory_id, NOW + 60, content="mochi", metadata={"a": {"b": 1}})

    assert again == first
    assert rows(pool, "SELECT event, old_memory, new_memory FROM memory_history ORDER BY number") == [
        ("ADD", None, "tofu"),
        ("UPDATE", "tofu", "mochi"),
    ]


@pytest.mark.parametrize("message_id", ["m", None])
def test_the_original_event_again_does_not_undo_a_correction(
    memories: MemoryService, management: MemoryManagement, message_id: str | None
) -> None:
    """Given an event that is handed over again after its memory was corrected, I expect the corrected memory alone."""
    memory_id = say(memories, "tofu", message_id=message_id)
    correct(management, memory_id, content="mochi")

    assert say(memories, "tofu", message_id=message_id, arrived_at=NOW + 90) == memory_id
    assert listed(management) == ["mochi"]


def test_metadata_is_patched(memories: MemoryService, management: MemoryManagement, pool: ConnectionPool) -> None:
    """Given a patch, I expect it merged into what the publisher sent; the session follows; the content stays."""
    memory_id = say(memories, "tomorrow tofu", meta={"a": 1, "b": {"c": 2, "d": 3}, "session_id": "s"})
    say(memories, "in another session", meta={"session_id": "7"})
    [text] = rows(pool, f"SELECT content, terms, traits, vector::text FROM memories WHERE id = '{memory_id}'")

    memory = correct(management, memory_id, metadata={"a": None, "b": {"c": None}, "e": "é", "session_id": 7})

    publishers = {k: v for k, v in memory.metadata.items() if k not in ("source", "timestamp", "dates", "message_id")}
    assert publishers == {"b": {"d": 3}, "e": "é", "session_id": "7"}
    assert management.get("u1", memory_id)[0] == memory
    assert listed(management, filters={"session_id": "7"}, order="oldest") == ["tomorrow tofu", "in another session"]
    assert rows(pool, f"SELECT content, terms, traits, vector::text FROM memories WHERE id = '{memory_id}'") == [text]
    assert "session_id" not in correct(management, memory_id, metadata={"session_id": None}).metadata
    assert listed(management, filters={"session_id": "7"}) == ["in another session"]


def test_metadata_that_is_sent_back_as_it_was_shown_changes_nothing(
    memories: MemoryService, management: MemoryManagement, pool: ConnectionPool
) -> None:
    """Given all metadata of a response sent back with one more field, I expect that field alone to be new: the dates
    that a content names are not fixed by it."""
    memory_id = say(memories, "see you on 5 May 2024", meta={"session_id": 7})
    shown = management.get("u1", memory_id)[0].metadata
    assert shown["dates"] == ["2024-05-05"]

    correct(management, memory_id, metadata={**shown, "mood": "glad"})

    assert rows(pool, "SELECT payload -> 'meta' FROM memories") == [({"session_id": "7", "mood": "glad"},)]


def test_metadata_stays_below_the_size_of_a_message(memories: MemoryService, management: MemoryManagement) -> None:
    """Given two patches that are too large together, I expect the second one refused, and nothing changed."""
    memory_id = say(memories, "tofu")
    memory = correct(management, memory_id, metadata={"a": "x" * 600_000})

    with pytest.raises(MessageTooLarge):
        correct(management, memory_id, content="mochi", metadata={"b": "x" * 600_000})
    assert management.get("u1", memory_id)[0] == memory


def test_corrections_at_the_same_time_are_one_after_the_other(
    memories: MemoryService, management: MemoryManagement, pool: ConnectionPool
) -> None:
    """Given twenty corrections of one memory at once, I expect a history in which each begins where one ended, and all
    metadata."""
    memory_id = say(memories, "0")

    with ThreadPoolExecutor(8) as threads:
        for one in [
            threads.submit(correct, management, memory_id, content=f"{n}", metadata={f"k{n}": n}) for n in range(1, 21)
        ]:
            one.result(60)

    memory, history = management.get("u1", memory_id)
    assert [change.old_content for change in history[1:]] == [change.new_content for change in history[:-1]]
    assert (history[-1].new_content, len(history)) == (memory.content, 21)
    assert {name for name in memory.metadata if name.startswith("k")} == {f"k{n}" for n in range(1, 21)}


def test_a_correction_that_waits_for_a_deletion_finds_nothing(
    memories: MemoryService, management: MemoryManagement, pool: ConnectionPool
) -> None:
    """Given a memory that is being deleted while a correction waits, I expect `not_found`, and no trace of it."""
    memory_id = say(memories, "tofu")
    with ThreadPoolExecutor(1) as threads:
        with pool.connection() as connection, connection.transaction():
            connection.execute("DELETE FROM memories WHERE id = %s", (memory_id,))
            correcting = threads.submit(correct, management, memory_id, content="mochi")
            _wait_for_a_lock(pool, "%FOR UPDATE OF m%")
        with pytest.raises(MemoryNotFound):
            correcting.result(60)


def test_a_deletion_that_waits_for_a_correction_deletes_its_history_too(
    memories: MemoryService, management: MemoryManagement, pool: ConnectionPool
) -> None:
    """Given a memory that is being corrected while its deletion waits, I expect nothing of it to be left."""
    memory_id = say(memories, "tofu")
    with ThreadPoolExecutor(1) as threads:
        with pool.connection() as connection, connection.transaction():
            connection.execute("UPDATE memories SET content = 'mochi' WHERE id = %s", (memory_id,))
            deletion = threads.submit(delete, management, ids=[memory_id])
            _wait_for_a_lock(pool, "DELETE FROM memories%")
            connection.execute(
                "INSERT INTO memory_history (id, memory_id, new_memory, event, is_deleted)"
                " VALUES (gen_random_uuid(), %s, 'mochi', 'UPDATE', false)",
                (memory_id,),
            )
        assert deletion.result(60) == 1

    assert (rows(pool, "SELECT FROM memories"), rows(pool, "SELECT FROM memory_history")) == ([], [])


def _wait_for_a_lock(pool: ConnectionPool, statement: str) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
    with pool.connection() as connection:
        wait_until(
            lambda: connection.execute(waiting, (statement,)).fetchone() == (1,), description=f"{statement} to wait"
        )


# Deletions


def test_ids_may_be_of_any_character_unless_one_is_named(memories: MemoryService, management: MemoryManagement) -> None:
    """Given ids of two characters' memories, I expect those of the named one and the shared to go, then all."""
    ids = [say(memories, agent or "shared", agent_id=agent or None) for agent in ("", "anna", "bert")]

    assert delete(management, ids=ids, agent_id="anna", dry_run=True) == 2
    assert delete(management, ids=ids, agent_id="anna") == 2
    assert delete(management, ids=[*ids, "no UUID"], dry_run=True) == 1
    assert delete(management, ids=[*ids, "no UUID"]) == 1


def test_filters_delete_within_the_scope_alone(memories: MemoryService, management: MemoryManagement) -> None:
    """Given memories with one text of two characters and two users, I expect the shared ones of the user to go."""
    for agent in (None, "anna", "bert"):
        say(memories, f"tea {agent}", agent_id=agent)
    say(memories, "tea", user="u2")

    assert delete(management, filters={"contains": "tea"}) == 1
    assert delete(management, filters={"contains": "tea"}, agent_id="anna") == 1
    assert listed(management, all_agents=True) == ["tea bert"]
    assert delete(management, filters={"contains": "tea"}, all_agents=True) == 1
    assert listed(management, "u2") == ["tea"]


@pytest.mark.parametrize("by", ["ids", "filters"])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("message_id", ["m", None])
def test_a_deleted_memory_stays_deleted(
    memories: MemoryService,
    management: MemoryManagement,
    pool: ConnectionPool,
    by: str,
    corrected: bool,
    message_id: str | None,
) -> None:
    """Given an event that is handed over again after its memory was deleted, corrected before or not, I expect it to
    be refused, and a new event, also with the same message_id, to be stored."""
    memory_id = say(memories, "tofu", message_id=message_id)
    if corrected:
        correct(management, memory_id, content="tofu and mochi")
    chosen = {"ids": [memory_id]} if by == "ids" else {"filters": {"contains": "tofu"}}

    assert delete(management, **chosen) == 1
    assert say(memories, "tofu", message_id=message_id, arrived_at=NOW + 200) == ""
    assert (rows(pool, "SELECT FROM memories"), rows(pool, "SELECT FROM memory_history")) == ([], [])
    assert say(memories, "tea", message_id=message_id, arrived_at=NOW + 200) != ""
    assert say(memories, "tofu", message_id=message_id, arrived_at=NOW + 300) == ""
    assert listed(management) == ["tea"]


def test_another_event_of_the_same_message_id_outlives_a_deletion(
    memories: MemoryService, management: MemoryManagement
) -> None:
    """Given two events of one message_id, I expect the deletion of either to leave the other, which is no new one."""
    for first, second in (("a", "b"), ("c", "d")):
        say(memories, first, message_id=first)
        say(memories, second, message_id=first)
    ids = {memory.content: memory.id for memory in pages(management)}

    delete(management, ids=[ids["a"], ids["d"]])

    for content, message_id in (("a", "a"), ("b", "a"), ("c", "c"), ("d", "c")):
        kept = ids[content] if content in ("b", "c") else ""
        assert say(memories, content, message_id=message_id, arrived_at=NOW + 200) == kept
    assert sorted(listed(management)) == ["b", "c"]


def test_an_added_memory_stays_deleted(memories: MemoryService, management: MemoryManagement) -> None:
    """Given an add that is delivered again after its memory was deleted, I expect nothing."""
    [added] = memories.add("u1", AddData(content="tofu"), "r1", NOW)
    delete(management, ids=[added.id])

    assert memories.add("u1", AddData(content="tofu"), "r1", NOW) == []


def test_what_arrived_before_a_deletion_is_dropped_and_what_arrived_after_is_kept(
    memories: MemoryService, management: MemoryManagement
) -> None:
    """Given events that are indexed after a deletion, of users known and unknown, I expect those that arrived before it
    to be dropped, whenever they come again, and those after it to be kept."""
    say(memories, "known", user="u1")
    for user in ("u1", "unknown"):
        delete(management, user, filters={"contains": "tofu"})

        assert say(memories, "tofu", NOW - 5, user=user, arrived_at=NOW + 99) == ""
        assert say(memories, "tofu", NOW - 5, user=user, arrived_at=NOW + 500) == ""
        assert say(memories, "tofu again", user=user, arrived_at=NOW + 101) != ""
        assert say(memories, "tea", user=user, arrived_at=NOW + 99) != ""


def test_a_deletion_keeps_what_arrived_after_it_and_was_indexed_before(
    memories: MemoryService, management: MemoryManagement
) -> None:
    """Given a deletion that comes to its turn late, I expect what arrived meanwhile to be kept, whatever its date."""
    say(memories, "tofu before")
    say(memories, "tofu after", NOW - 1_000, arrived_at=NOW + 101)

    assert delete(management, filters={"contains": "tofu"}, dry_run=True) == 1
    assert delete(management, filters={"contains": "tofu"}) == 1
    assert listed(management) == ["tofu after"]


def test_a_dry_run_leaves_nothing_behind(
    memories: MemoryService, management: MemoryManagement, pool: ConnectionPool
) -> None:
    """Given a dry run, I expect no row of it anywhere."""
    memory_id = say(memories, "tofu")

    assert delete(management, filters={"contains": "tofu"}, dry_run=True) == 1
    assert delete(management, ids=[memory_id, str(uuid.uuid4())], dry_run=True) == 1
    assert delete(management, "nobody", filters={"contains": "tofu"}, dry_run=True) == 0

    tables = ("memories", "memory_history", "users", "tombstones", "deletions")
    counts = [rows(pool, f"SELECT count(*) FROM {table}")[0][0] for table in tables]
    assert counts == [1, 1, 1, 0, 0]


@pytest.fixture
def turns(valkey_url: str) -> Iterator[redis.Redis]:
    """A Redis in which turns of the users u1 and u2 are recorded."""
    with redis.Redis.from_url(valkey_url) as client:
        client.flushdb()
        for user in ("u1", "u2"):
            client.xadd(TURNS_STREAM, {TURN_FIELD: json.dumps({"kind": "reply", "user": user, "reply": "tofu"})})
        yield client


@pytest.fixture
def erasing(pool: ConnectionPool, memories: MemoryService, valkey_url: str) -> MemoryManagement:
    """The management as a writer has it."""
    erasure = Erasure.of(load_settings(redis_url=valkey_url))
    return MemoryManagement(pool, memories.writer, erase_turns=erasure.erase_turns)


def recorded(turns: redis.Redis) -> list[str]:
    """The users whose turns are recorded."""
    entries: Any = turns.xrange(TURNS_STREAM)
    return [json.loads(fields[TURN_FIELD.encode()])["user"] for _, fields in entries]


@pytest.mark.parametrize("by", ["ids", "filters"])
def test_a_deletion_takes_the_turns_of_its_user_with_it(
    memories: MemoryService, erasing: MemoryManagement, turns: redis.Redis, by: str
) -> None:
    """Given turns of two users, and a memory of one that is deleted, I expect the recorded words of that one to go."""
    memory_id = say(memories, "tofu")
    meant: dict[str, Any] = {"ids": [memory_id], "filters": {"contains": "tofu"}}

    assert delete(erasing, **{by: meant[by]}) == 1

    assert recorded(turns) == ["u2"]


def test_turns_that_a_broken_off_deletion_has_left_go_with_the_next_delivery(
    memories: MemoryService, erasing: MemoryManagement, management: MemoryManagement, turns: redis.Redis
) -> None:
    """Given a deletion whose worker ended before it had erased the turns, I expect the next delivery to do that,
    though it finds no memory any more."""
    memory_id = say(memories, "tofu")
    delete(management, ids=[memory_id])

    assert delete(erasing, ids=[memory_id]) == 0

    assert recorded(turns) == ["u2"]


def test_turns_stay_where_nothing_is_deleted(
    memories: MemoryService, erasing: MemoryManagement, turns: redis.Redis
) -> None:
    """Given a dry run, and a correction, whose old text the memory's history keeps, I expect the turns to stay."""
    memory_id = say(memories, "tofu")

    delete(erasing, ids=[memory_id], dry_run=True)
    correct(erasing, memory_id, content="tempeh")

    assert recorded(turns) == ["u1", "u2"]


def test_a_deletion_is_not_done_while_redis_does_not_answer(pool: ConnectionPool, memories: MemoryService) -> None:
    """Given a Redis that is down, I expect an error, with which the deletion is retried, and the memory deleted."""
    down = Erasure.of(load_settings(redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    erasing = MemoryManagement(pool, memories.writer, erase_turns=down.erase_turns)
    memory_id = say(memories, "tofu")

    with pytest.raises(redis.ConnectionError):
        delete(erasing, ids=[memory_id])

    assert listed(erasing) == []


def test_a_deletion_that_was_ended_in_the_middle_is_completed(
    memories: MemoryService, management: MemoryManagement, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a deletion whose worker ends after the second of seven batches, I expect what is left to go when it is
    delivered again, and none of the events to come back."""
    for n in range(20):
        say(memories, f"tofu {n}", NOW + n % 4)
    monkeypatch.setattr(deleting, "BATCH", 3)
    delete_batch, batches = removal.remove, list[int]()

    def end_in_the_third(*arguments: Any) -> int:
        batches.append(len(arguments[1]))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return delete_batch(*arguments)

    monkeypatch.setattr(deleting, "remove", end_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        delete(management, filters={"contains": "tofu"})
    left = len(listed(management))
    monkeypatch.setattr(deleting, "remove", delete_batch)

    assert (left, delete(management, filters={"contains": "tofu"})) == (14, 14)
    assert [say(memories, f"tofu {n}", NOW + n % 4, arrived_at=NOW + 200) for n in range(20)] == [""] * 20


@pytest.mark.parametrize("first", ["deletion", "insertion"])
@pytest.mark.parametrize("user", ["known", "unknown"])
@pytest.mark.parametrize("agent", [None, "anna"])
def test_an_event_that_is_inserted_while_it_is_deleted_is_gone(
    memories: MemoryService,
    management: MemoryManagement,
    pool: ConnectionPool,
    first: str,
    user: str,
    agent: str | None,
) -> None:
    """Given an insertion and a deletion on two connections, each begun before the other commits, I expect the second
    to wait and the event to be gone."""
    if user == "known":
        say(memories, "known", user=user, arrived_at=NOW + 500)
    scope = {"all_agents": True}

    def index() -> str:
        return say(memories, "tofu", user=user, agent_id=agent)

    def forget() -> int:
        return delete(management, user, filters={"contains": "tofu"}, **scope)

    begun, waiting = (index, forget) if first == "insertion" else (forget, index)
    with ThreadPoolExecutor(2) as threads, pool.connection() as blocker:
        with blocker.transaction():
            # Both come this far, with their locks of the owner, and no further.
            blocker.execute(
                "LOCK TABLE memories IN ACCESS EXCLUSIVE MODE"
                if first == "insertion"
                else "LOCK TABLE deletions IN ACCESS EXCLUSIVE MODE"
            )
            one = threads.submit(begun)
            _wait_for_a_lock(pool, "%memories_number_seq%" if first == "insertion" else "%FROM deletions%")
            other = threads.submit(waiting)
            if first == "deletion":
                pattern = "%FOR KEY SHARE%"
            else:
                pattern = "%INTO users%" if user == "unknown" else "%FOR UPDATE%"
            _wait_for_a_lock(pool, pattern)
        one.result(60)
        other.result(60)

    assert "tofu" not in listed(management, user, all_agents=True)
    assert rows(pool, "SELECT FROM memory_history WHERE new_memory = 'tofu'") == []


def test_old_deletions_are_removed(memories: MemoryService, management: MemoryManagement, pool: ConnectionPool) -> None:
    """Given deletions of nine days ago, I expect the next one to remove them, whatever their conditions."""
    old = datetime.now(UTC).timestamp() - 9 * 86_400
    delete(management, at=old, filters={"contains": "tofu"})
    delete(management, at=old, filters={"source": "ai"})
    delete(management, at=old + 2 * 86_400, filters={"contains": "tea"})
    delete(management, "u2", filters={"source": "ai"})

    kept = rows(pool, "SELECT contains[3], source FROM deletions ORDER BY number")
    assert kept == [("tea", None), (None, "ai")]


def test_filters_of_the_client_are_read_as_those_of_an_adapter() -> None:
    """Given filters without a condition, I expect them to select nothing."""
    assert MemoryFilters.model_validate({"session_id": None}).is_empty
