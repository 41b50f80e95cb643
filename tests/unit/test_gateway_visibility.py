"""Which records of traces and turns a key sees."""

from __future__ import annotations

import pytest
from keepsake_client.protocol import TraceRecord
from keepsake_client.turns import TurnRecord

from services.gateway.access import ALL_RIGHTS, OPEN, Caller, NotPermitted
from services.gateway.visibility import Visibility
from services.runtime.settings import load_settings
from services.runtime.trace_reader import Trace
from services.runtime.turn import turn_of

ANNA = Caller("k", ALL_RIGHTS, user="anna")


def records(user: str, **options: object) -> list[TurnRecord]:
    ids, said = {"user": user, "request_id": f"r-{user}"}, f"of {user}"
    search = TurnRecord(kind="search", at=1, type="search", options=options, query=said, **ids)
    return [search, TurnRecord(kind="reply", at=2, message_id="m1", text=said, reply=f"to {user}", **ids)]


def turn(*found: TurnRecord) -> dict[str, object]:
    """What a key of the user anna sees of a turn."""
    traces = [TraceRecord(kind="message", user=one.user, message_id="m1") for one in found if one.kind == "reply"]
    whole = turn_of(Trace(id="m1", records=traces), found, kept_since=0, recorded="contents")
    seen = Visibility.of(ANNA, load_settings()).part_of_turn(whole)
    searches = [one.request_id for one in seen.searches]
    return {"users": seen.users, "text": seen.text, "searches": searches, "reply": seen.reply}


@pytest.mark.parametrize(
    ("caller", "sees"),
    [
        (OPEN, ["anna", "bert"]),
        (ANNA, ["anna"]),
        (Caller("k", ALL_RIGHTS, users="be"), ["bert"]),
    ],
    ids=["all", "one", "prefix"],
)
def test_a_key_sees_the_records_of_its_users(caller: Caller, sees: list[str]) -> None:
    """Given a key of all users, of one or of a prefix, I expect records of these."""
    visible = Visibility.of(caller, load_settings())
    assert [user for user in ("anna", "bert") if visible.sees(user)] == sees


def test_a_key_of_one_character_sees_none() -> None:
    """Given a key that is bound to a character, I expect a refusal: a record does not say which one it is about."""
    with pytest.raises(NotPermitted):
        Visibility.of(Caller("k", ALL_RIGHTS, agent="luna"), load_settings())


def test_a_turn_of_the_keys_user_is_seen() -> None:
    """Given a turn of the key's user, I expect its search and its reply."""
    assert turn(*records("anna")) == {
        "users": {"anna"},
        "text": "of anna",
        "searches": ["r-anna"],
        "reply": "to anna",
    }


def test_a_turn_of_another_user_is_not_seen() -> None:
    """Given a turn of another user, I expect nothing of it."""
    assert turn(*records("bert")) == {"users": set(), "text": None, "searches": [], "reply": None}


def test_what_is_missing_of_another_users_turn_is_not_told() -> None:
    """Given a turn of another user with a search without candidates, I expect nothing of it, not its request_id."""
    whole = turn_of(Trace(id="m1"), records("bert"), kept_since=0, recorded="contents")
    assert whole.missing

    assert Visibility.of(ANNA, load_settings()).part_of_turn(whole).missing == []


def test_a_prefix_is_none_of_a_hash() -> None:
    """Given hashed users and a key for a prefix, I expect no record of a user whose hash happens to begin with it."""
    visible = Visibility.of(Caller("k", ALL_RIGHTS, users="be"), load_settings(ltm_log_user_ids=False))
    assert not visible.sees("be1234")


def test_of_two_users_with_one_id_the_keys_own_is_seen() -> None:
    """Given turns of two users whose messages share an id, I expect nothing that the other said or was told."""
    assert turn(*records("anna"), *records("bert")) == {
        "users": {"anna"},
        "text": "of anna",
        "searches": ["r-anna"],
        "reply": None,
    }


def test_traces_of_another_user_are_not_seen() -> None:
    """Given traces of another user's turn, I expect neither its message nor its reply, nor whether it is remembered."""
    ids = {"user": "bert", "message_id": "m1"}
    event = TraceRecord(kind="message", user="bert", message_id="m2", reply_to="m1")
    traces = [TraceRecord(kind="message", **ids), TraceRecord(kind="reply", **ids), event]
    reply = TurnRecord(kind="reply", at=2, reply="to bert", reply_message_id="m2", **ids)
    whole = turn_of(Trace(id="m1", records=traces), [reply], kept_since=0, recorded="contents")
    assert (whole.message, whole.reply_trace, whole.reply_memory.state) == (traces[0], traces[1], "remembered")

    seen = Visibility.of(ANNA, load_settings()).part_of_turn(whole)

    assert (seen.message, seen.reply_trace, seen.reply_memory.state) == (None, None, "unknown")


@pytest.mark.parametrize("also", [["room"], "room"])
def test_a_search_of_other_users_memories_is_not_seen(also: object) -> None:
    """Given a search that also ranked a room's memories, I expect neither it nor the reply that was made with it."""
    assert turn(*records("anna", also=also)) == {
        "users": {"anna"},
        "text": None,
        "searches": [],
        "reply": None,
    }
