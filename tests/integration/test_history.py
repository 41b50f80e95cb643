"""Mem0's history in PostgreSQL returns the same as Mem0's own SQLite file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from mem0.memory.storage import SQLiteManager
from psycopg_pool import ConnectionPool

from services.long_term_memory.postgres.history import MAX_LAST_MESSAGES, PostgresHistory
from services.long_term_memory.postgres.pool import open_pool

# SQLiteManager or PostgresHistory; Mem0 has no types.
Store = Any

memory_ids = st.sampled_from(["m1", "m2"])
scopes = st.sampled_from(["user_id=u1", "user_id=u2"])
texts = st.none() | st.sampled_from(["", "tea", "茶", "'; drop table memory_history"])
details = st.fixed_dictionaries(
    {},
    optional={
        "updated_at": st.none(),
        "is_deleted": st.sampled_from([0, 1]),
        "actor_id": texts,
        "role": st.sampled_from([None, "user", "assistant"]),
    },
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": st.sampled_from(["a", "b", "茶"])},
    optional={"name": st.none() | st.just("Lin")},
)


@pytest.fixture
def pool(database: str) -> Iterator[ConnectionPool]:
    with open_pool(database, 2) as pool:
        yield pool


@pytest.fixture
def history(pool: ConnectionPool) -> PostgresHistory:
    return PostgresHistory(pool)


def changes(store: Store, memory_id: str) -> list[dict[str, Any]]:
    """The history of a memory without the ids, which are random."""
    return [{name: value for name, value in change.items() if name != "id"} for change in store.get_history(memory_id)]


def last(store: Store, scope: str, limit: int = MAX_LAST_MESSAGES) -> list[dict[str, Any]]:
    """The last messages of a scope, less the time of saving."""
    return [
        {name: value for name, value in message.items() if name != "created_at"}
        for message in store.get_last_messages(scope, limit)
    ]


def test_it_returns_the_same_as_mem0s_own(history: PostgresHistory) -> None:
    """Given any calls in any order on both stores, I expect the same answers from both."""

    class Both(RuleBasedStateMachine):
        @initialize()
        def start(self) -> None:
            self.sqlite = SQLiteManager(":memory:")
            self.clock = 0
            history.reset()

        def now(self) -> str:
            # SQLite orders by the given times; with times in order, both stores must agree.
            self.clock += 1
            return f"2026-01-01T00:00:00.{self.clock:06}+00:00"

        @rule(memory_id=memory_ids, old=texts, new=texts, event=st.sampled_from(["ADD", "UPDATE"]), more=details)
        def add(self, memory_id: str, old: str | None, new: str | None, event: str, more: dict[str, Any]) -> None:
            created_at = self.now()
            for store in (self.sqlite, history):
                store.add_history(memory_id, old, new, event, created_at=created_at, **more)

        @rule(ids=st.lists(memory_ids, max_size=3), text=texts, more=details)
        def add_many(self, ids: list[str], text: str | None, more: dict[str, Any]) -> None:
            records = [
                {
                    "memory_id": i,
                    "old_memory": None,
                    "new_memory": text,
                    "event": "ADD",
                    "created_at": self.now(),
                    **more,
                }
                for i in ids
            ]
            for store in (self.sqlite, history):
                store.batch_add_history(records)

        @rule(scope=scopes, said=messages)
        def save(self, scope: str, said: dict[str, Any]) -> None:
            # One at a time: SQLite gives a batch one time and leaves its order to chance.
            for store in (self.sqlite, history):
                store.save_messages([said], scope)

        @rule(scope=scopes)
        def save_none(self, scope: str) -> None:
            for store in (self.sqlite, history):
                store.save_messages([], scope)

        @rule(memory_id=memory_ids)
        def compare_history(self, memory_id: str) -> None:
            assert changes(history, memory_id) == changes(self.sqlite, memory_id)

        @rule(scope=scopes, limit=st.integers(1, 12))
        def compare_messages(self, scope: str, limit: int) -> None:
            assert last(history, scope, limit) == last(self.sqlite, scope, limit)

        def teardown(self) -> None:
            self.sqlite.close()

    run_state_machine_as_test(Both, settings=settings(max_examples=30, stateful_step_count=25))


def test_an_unknown_memory_has_no_history(history: PostgresHistory) -> None:
    """Given a memory that nothing happened to, I expect no changes."""
    assert history.get_history("unknown") == []


def test_changes_come_oldest_first(history: PostgresHistory) -> None:
    """Given changes without a time, I expect the order they were made in."""
    for event in ("ADD", "UPDATE", "DELETE"):
        history.add_history("m1", None, "tea", event)

    assert [change["event"] for change in history.get_history("m1")] == ["ADD", "UPDATE", "DELETE"]


def test_a_batch_of_messages_keeps_its_order(history: PostgresHistory) -> None:
    """Given messages saved in one call, I expect them back in their order, which SQLite leaves to chance."""
    history.save_messages([{"role": "user", "content": str(n)} for n in range(MAX_LAST_MESSAGES)], "user_id=u1")

    assert [m["content"] for m in history.get_last_messages("user_id=u1")] == [str(n) for n in range(MAX_LAST_MESSAGES)]


def test_only_the_last_messages_of_a_scope_are_kept(history: PostgresHistory, pool: ConnectionPool) -> None:
    """Given more messages than Mem0 reads back, I expect the older ones gone from the table, of this scope alone."""
    history.save_messages([{"role": "user", "content": "other"}], "user_id=u2")
    for n in range(3 * MAX_LAST_MESSAGES):
        history.save_messages([{"role": "user", "content": str(n)}], "user_id=u1")

    with pool.connection() as connection:
        kept = connection.execute("SELECT session_scope, count(*) FROM last_messages GROUP BY 1 ORDER BY 1").fetchall()
    assert kept == [("user_id=u1", MAX_LAST_MESSAGES), ("user_id=u2", 1)]


@given(scope=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
@settings(max_examples=20)
def test_a_batch_can_be_asked_for_by_any_scope(shared_history: PostgresHistory, scope: str) -> None:
    """Given a scope of any letters, I expect its messages under it."""
    shared_history.save_messages([{"role": "user", "content": scope}], scope)

    assert shared_history.get_last_messages(scope)[-1]["content"] == scope


@pytest.fixture(scope="module")
def shared_history(create_database: Any, migrated_template: str) -> Iterator[PostgresHistory]:
    """One database for all examples of a property."""
    with open_pool(create_database(migrated_template), 1) as pool:
        yield PostgresHistory(pool)


def test_reset_deletes_history_and_messages(history: PostgresHistory) -> None:
    """Given a history and messages, I expect nothing of either after a reset."""
    history.add_history("m1", None, "tea", "ADD")
    history.save_messages([{"role": "user", "content": "tea"}], "user_id=u1")

    history.reset()

    assert (history.get_history("m1"), history.get_last_messages("user_id=u1")) == ([], [])


def test_closing_leaves_the_pool_open(history: PostgresHistory) -> None:
    """Given a close, which Mem0 calls at its end, I expect the shared pool still to work."""
    history.close()

    assert history.get_history("m1") == []
