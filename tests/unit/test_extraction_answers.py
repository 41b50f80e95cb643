"""An LLM's answer is validated against its batch: what is invalid never passes, and nothing is lost in silence."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.long_term_memory.extraction.answers import MAX_FACT_CHARS, validate
from services.long_term_memory.extraction.batch import (
    Batch,
    Confirmation,
    Extraction,
    FoundFact,
    KnownFact,
    Message,
    SlotChange,
    Usage,
)
from services.long_term_memory.extraction.dates import read_when
from services.long_term_memory.extraction.secrets import holds_secret
from services.long_term_memory.postgres.scope import Owner
from services.runtime.errors import UnusableAnswer

USAGE = Usage(100, 10)
SLOTS = ("home", "likes")
USER_1, AI_2, USER_3 = 701, 702, 703
OSLO, TEA = 9_001, 9_002
FACTS = [KnownFact(OSLO, "The user lives in Oslo.", "state"), KnownFact(TEA, "The user likes tea.", "state")]


def message(number: int, source: str, speaker: str | None = None) -> Message:
    return Message(number, f"id-{number}", "text", source, 1.0, speaker={"name": speaker} if speaker else None)


def batch(speakers: tuple[str | None, str | None] = (None, None)) -> Batch:
    messages = [message(USER_1, "user", speakers[0]), message(AI_2, "ai"), message(USER_3, "user", speakers[1])]
    return Batch(Owner("u"), 1, messages, [], FACTS, {}, UTC)


def fact(text: str = "The user lives in Lisbon.", said_in: Sequence[int] = (1,), **given: Any) -> dict[str, Any]:
    known = {"about": "user", "from": list(said_in), "when": None, "kind": "state", "replaces": [], "confirms": None}
    return {"text": text, **known, **given}


def slot(value: Any, name: str = "home", *places: int) -> dict[str, Any]:
    return {"slot": name, "value": value, "from": list(places or (1,))}


def extraction(*facts: Any, profile: Any = (), of: Batch | None = None) -> Extraction:
    return validate(json.dumps({"facts": facts, "profile": list(profile)}), of or batch(), SLOTS, USAGE)


def test_a_fact_with_all_its_fields() -> None:
    """Given places of messages and facts, I expect their numbers in the database."""
    found = extraction(fact(said_in=[3, 1], when="2024-03", kind="event", replaces=[1]))

    assert found == Extraction(
        [FoundFact("The user lives in Lisbon.", "user", (USER_1, USER_3), "2024-03", "event", (OSLO,))], [], [], USAGE
    )


def test_no_facts() -> None:
    """Given an answer that says there is nothing, I expect nothing, and no error."""
    assert extraction() == Extraction([], [], [], USAGE)


def test_a_confirmation_is_evidence() -> None:
    """Given a fact that is said again, I expect evidence for the stored one and no second one."""
    found = extraction(fact("", confirms=2, said_in=[3]))

    assert (found.facts, found.confirmations) == ([], [Confirmation(TEA, (USER_3,))])


def test_the_text_of_a_known_fact_confirms_it() -> None:
    """Given the text of a shown fact, which does not say that it confirms it, I expect a confirmation."""
    found = extraction(fact("the user likes  tea", said_in=[3]))

    assert (found.facts, found.confirmations) == ([], [Confirmation(TEA, (USER_3,))])


def test_a_fact_does_not_replace_what_it_confirms() -> None:
    """Given one fact that both confirms and replaces another, I expect a confirmation."""
    found = extraction(fact("The user likes tea.", confirms=2, replaces=[2]))

    assert (found.facts, found.confirmations) == ([], [Confirmation(TEA, (USER_1,))])


def test_a_confirmation_that_replaces_another_is_said_again() -> None:
    """Given a fact that confirms one and ends another, I expect a new one of its text that replaces both."""
    found = extraction(fact("", confirms=2, replaces=[1]))

    assert [(one.text, one.replaces) for one in found.facts] == [("The user likes tea.", (OSLO, TEA))]


def test_what_is_replaced_is_not_confirmed() -> None:
    """Given two facts, of which one confirms what the other replaces, I expect it replaced."""
    found = extraction(fact("", confirms=1), fact(replaces=[1], said_in=[3]))

    assert (found.facts[0].replaces, found.confirmations) == ((OSLO,), [])


def test_the_same_fact_twice_is_one() -> None:
    """Given the same fact from two messages, I expect one with both, and what either says beside the text."""
    found = extraction(fact(replaces=[1]), fact("The user lives in lisbon", when="2024", said_in=[3]))

    assert found.facts == [FoundFact("The user lives in Lisbon.", "user", (USER_1, USER_3), "2024", "state", (OSLO,))]


def test_the_same_text_of_two_people_is_two() -> None:
    """Given the same words about two people, I expect two facts."""
    found = extraction(fact("Lives in Lisbon.", about="Alice"), fact("Lives in Lisbon.", about="Dave"))

    assert [one.about for one in found.facts] == ["Alice", "Dave"]


def test_a_promise_is_about_the_ai() -> None:
    """Given a promise in the AI's message, I expect it as a fact about the AI, whatever the answer says."""
    found = extraction(fact("The AI will remind the user.", kind="promise", said_in=[2]))

    assert (found.facts[0].about, found.facts[0].kind) == ("ai", "promise")


def test_a_promise_of_the_user_is_a_plan() -> None:
    """Given a promise that no message of the AI says, I expect a plan."""
    assert extraction(fact("The user will call.", kind="promise")).facts[0].kind == "plan"


def test_slots_change() -> None:
    """Given values for slots, I expect a text, a list without repeats, and None for what is over."""
    found = extraction(profile=[slot(" Lisbon "), slot(["tea", "Tea", "", "go"], "likes", 3)])

    assert found.slots == [
        SlotChange("home", "Lisbon", (USER_1,)),
        SlotChange("likes", ["tea", "go"], (USER_3,)),
    ]
    assert extraction(profile=[slot(None)]).slots == [SlotChange("home", None, (USER_1,))]


def test_a_slot_is_not_filled_by_the_ai() -> None:
    """Given a slot by the AI's message alone, I expect it left out and counted; beside the user's, no evidence."""
    found = extraction(profile=[slot("Lisbon", "home", 2), slot(["tea"], "likes", 2, 3)])

    assert (found.slots, found.dropped) == (
        [SlotChange("likes", ["tea"], (USER_3,))],
        {"slot_without_evidence": 1},
    )


def test_a_slot_is_not_filled_where_several_people_speak() -> None:
    """Given a room, I expect no slot: what one of several says is not always about the user."""
    found = extraction(profile=[slot("Lisbon")], of=batch(("Alice", "Dave")))

    assert (found.slots, found.dropped) == ([], {"slot_without_evidence": 1})


def test_a_slot_is_filled_by_one_named_person() -> None:
    """Given one person, who has a name, I expect the slot."""
    assert extraction(profile=[slot("Lisbon")], of=batch(("Alice", "Alice"))).slots != []


def test_the_later_of_two_values_stands() -> None:
    """Given two texts for one slot, I expect that of the later message."""
    found = extraction(profile=[slot("Lisbon", "home", 3), slot("Oslo", "home", 1)])

    assert found.slots == [SlotChange("home", "Lisbon", (USER_3,))]


def test_two_lists_of_a_slot_are_joined() -> None:
    """Given two items of one list, I expect both."""
    found = extraction(profile=[slot(["tea"], "likes", 1), slot(["go"], "likes", 3)])

    assert found.slots == [SlotChange("likes", ["tea", "go"], (USER_1, USER_3))]


def test_what_is_left_out_is_counted() -> None:
    """Given a good fact among others that rules forbid, I expect it alone, and the others counted by reason."""
    found = extraction(
        fact(),
        fact("x", said_in=[]),
        fact("The user's card is 4111 1111 1111 1111."),
        profile=[slot("43", "shoe_size")],
    )

    assert len(found.facts) == 1
    assert found.dropped == {"without_evidence": 1, "secret": 1, "unknown_slot": 1}


def test_an_unusable_answer_says_what_it_cost() -> None:
    """Given an answer without the list of facts, I expect its usage in the error, and none of its words."""
    with pytest.raises(UnusableAnswer, match="the answer is unusable: no list of facts") as unusable:
        validate('{"hush": 1}', batch(), SLOTS, USAGE)

    assert unusable.value.usage == USAGE
    assert "hush" not in str(unusable.value)


DATES = {
    "2024-02-29": "2024-02-29",
    "2023-02-29": None,
    "2024-13": None,
    "2024-3-1": None,
    "0000": None,
    "2024": "2024",
    "2024-03": "2024-03",
    " 2024-03-04/2024-03-10 ": "2024-03-04/2024-03-10",
    "2024-03/2024-05": "2024-03/2024-05",
    "2024-03-10/2024-03-04": None,
    "2024-03-04/2024-03-04": "2024-03-04",
    "2024-03-04T18:00": "2024-03-04",
    "2024-03-04 18:00:00+08:00": "2024-03-04",
    "2024/03/04": None,
    "2024-03-04/": None,
    "tomorrow": None,
    "２０２４": None,
}


@pytest.mark.parametrize(("text", "when"), DATES.items(), ids=repr)
def test_dates(text: str, when: str | None) -> None:
    """Given a date as an LLM writes it, I expect it in its one form, or None where the calendar has none."""
    assert read_when(text) == when


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NUMBERS = st.lists(st.integers(-2, 6) | st.sampled_from(["1", 2.0]), max_size=4)
ITEMS = st.fixed_dictionaries(
    {},
    optional={
        "text": st.text(max_size=600) | st.just("The user likes tea."),
        "about": st.sampled_from(["user", "ai", "Alice", None, ""]),
        "from": NUMBERS,
        "when": st.sampled_from(["2024-03-11", "2024-03/2024-02", "soon", None, ""]) | JSON,
        "kind": st.sampled_from(["state", "event", "plan", "promise", "wish", None]),
        "replaces": NUMBERS,
        "confirms": st.none() | st.integers(-1, 4),
    },
)
SLOT_ITEMS = st.fixed_dictionaries(
    {"slot": st.sampled_from(["home", "likes", "shoe_size"]), "from": NUMBERS},
    optional={"value": st.none() | st.text(max_size=30) | st.lists(st.text(max_size=9), max_size=3)},
)
ANSWERS = st.one_of(
    st.text(),
    JSON.map(json.dumps),
    st.builds(
        lambda facts, slots: json.dumps({"facts": facts, "profile": slots}),
        st.lists(ITEMS | JSON),
        st.lists(SLOT_ITEMS),
    ),
    st.builds(
        lambda facts, slots: json.dumps({"facts": facts, "profile": slots}),
        st.lists(ITEMS, max_size=3),
        st.lists(SLOT_ITEMS, max_size=3),
    ),
)


@given(ANSWERS)
def test_nothing_invalid_passes(answer: str) -> None:
    """Given any answer, I expect an error, or facts and slots that hold all rules."""
    try:
        found = validate(answer, batch(), SLOTS, USAGE)
    except UnusableAnswer:
        return
    in_batch, shown = {USER_1, AI_2, USER_3}, {OSLO, TEA}
    for one in found.facts:
        assert one.text.strip()
        assert len(one.text) <= MAX_FACT_CHARS
        assert not holds_secret(one.text)
        assert "\0" not in one.text
        assert one.evidence
        assert in_batch.issuperset(one.evidence)
        assert shown.issuperset(one.replaces)
        assert one.kind in {"state", "event", "plan", "promise"}
        assert one.when is None or date.fromisoformat((re.split("/", one.when)[0] + "-01-01")[:10])
    for confirmed in found.confirmations:
        assert confirmed.fact_number in shown
        assert confirmed.evidence
        assert in_batch.issuperset(confirmed.evidence)
    for change in found.slots:
        assert change.slot in SLOTS
        assert change.evidence
        assert {USER_1, USER_3}.issuperset(change.evidence)


@given(st.lists(ITEMS, min_size=1, max_size=5))
def test_no_fact_is_lost_in_silence(items: list[dict[str, Any]]) -> None:
    """Given facts, I expect each found, merged into another, taken for a confirmation, counted, or an error."""
    try:
        found = extraction(*items)
    except UnusableAnswer:
        return
    kept = {text_of(one.text) for one in found.facts} | {text_of(known.content) for known in FACTS}
    confirmed = {one.fact_number for one in found.confirmations}
    confirmed |= {number for one in found.facts for number in one.replaces}
    left_out = found.dropped.get("without_evidence", 0) + found.dropped.get("secret", 0)
    for item in items:
        text, place = text_of(item.get("text", "")), item.get("confirms") or 0
        is_confirmed = 0 < place <= len(FACTS) and FACTS[place - 1].number in confirmed
        assert left_out or is_confirmed or not text or text in kept


def text_of(text: str) -> str:
    """A text as two that say the same have it."""
    return " ".join(text.replace("\0", "").split()).casefold().rstrip(" .!。！")
