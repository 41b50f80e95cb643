"""The rule-based model of the benchmarks answers the real prompt, so that tests of extraction need no LLM."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any

import pytest

from bench.harness.rule_dates import date_in
from bench.harness.rule_model import find, reply
from services.long_term_memory.extraction.answers import validate
from services.long_term_memory.extraction.batch import Batch, Extraction, KnownFact, Message, SlotValue, Usage
from services.long_term_memory.extraction.prompt import Prompts
from services.long_term_memory.postgres.scope import Owner

SLOTS = ("name", "birthday", "home", "work", "pets", "likes", "dislikes", "allergies")
#: A Monday.
AT = datetime(2024, 3, 11, 20, tzinfo=UTC)


def found_in(
    *said: str, source: str = "user", facts: tuple[str, ...] = (), slots: dict[str, SlotValue] | None = None
) -> Extraction:
    """What the model finds, by the way that a batch takes."""
    messages = [Message(100 + n, f"id-{n}", text, source, AT.timestamp()) for n, text in enumerate(said)]
    known = [KnownFact(900 + n, text, "state") for n, text in enumerate(facts)]
    batch = Batch(Owner("u"), 1, messages, [], known, slots or {}, UTC)
    return validate(reply(Prompts(SLOTS).messages(batch)), batch, SLOTS, Usage(0, 0))


STATES: dict[str, tuple[str, str, str, Any]] = {
    "home": ("I live in Oslo with my sister.", "The user lives in Oslo.", "home", "Oslo"),
    "moved": ("so I moved to Lisbon last week!!", "The user lives in Lisbon.", "home", "Lisbon"),
    "home in Chinese": ("我住在上海。", "用户住在上海。", "home", "上海"),
    "moved, in Chinese": ("我上周搬到杭州了", "用户住在杭州。", "home", "杭州"),
    "name": ("Hi, my name is Ada!", "The user's name is Ada.", "name", "Ada"),
    "called": ("I'm called Bo", "The user's name is Bo.", "name", "Bo"),
    "name in Chinese": ("你好，我叫小明。", "用户的名字叫小明。", "name", "小明"),
    "birthday": ("my birthday is May 4th", "The user's birthday is May 4th.", "birthday", "May 4th"),
    "work": ("I work as a nurse", "The user works as or at nurse.", "work", "nurse"),
    "pet": ("I have a cat called Tofu.", "The user has a cat called Tofu.", "pets", ["Tofu"]),
    "pet in Chinese": ("我养了一只猫叫麻薯", "用户有一只猫叫麻薯。", "pets", ["麻薯"]),
    "likes": ("I like oolong tea", "The user likes oolong tea.", "likes", ["oolong tea"]),
    "likes in Chinese": ("我喜欢蓝色", "用户喜欢蓝色。", "likes", ["蓝色"]),
    "dislikes": ("I hate cilantro.", "The user dislikes cilantro.", "dislikes", ["cilantro"]),
    "allergy": ("I'm allergic to peanuts", "The user is allergic to peanuts.", "allergies", ["peanuts"]),
    "allergy in Chinese": ("我对虾过敏", "用户对虾过敏。", "allergies", ["虾"]),
}


@pytest.mark.parametrize(("said", "text", "slot", "value"), STATES.values(), ids=STATES)
def test_what_is_stated(said: str, text: str, slot: str, value: Any) -> None:
    """Given a sentence about the user, I expect the fact and the slot."""
    found = found_in(said)

    assert [(one.text, one.kind, one.evidence) for one in found.facts] == [(text, "state", (100,))]
    assert [(one.slot, one.value) for one in found.slots] == [(slot, value)]


REPLACED = {
    "in English": ("I moved to Lisbon.", "The user lives in Oslo."),
    "in Chinese": ("我搬到杭州了", "用户住在上海。"),
    "across languages": ("我搬到杭州了", "The user lives in Oslo."),
    "a taste": ("I hate sushi now", "The user likes sushi."),
}


@pytest.mark.parametrize(("said", "known"), REPLACED.values(), ids=REPLACED)
def test_what_is_no_longer_true_is_replaced(said: str, known: str) -> None:
    """Given a known fact that a message ends, I expect it replaced, and others left."""
    found = found_in(said, facts=("The user has a dog called Bo.", known))

    assert [one.replaces for one in found.facts] == [(901,)]


def test_what_is_said_again_is_confirmed() -> None:
    """Given a known fact that is said again, I expect a confirmation."""
    found = found_in("I live in Oslo.", facts=("The user lives in Oslo.",))

    assert (found.facts, [one.fact_number for one in found.confirmations]) == ([], [900])


def test_the_last_home_of_a_batch_stands() -> None:
    """Given two homes in a batch, I expect the later one, which replaces what was known."""
    found = found_in("I live in Porto.", "I moved to Lisbon.", facts=("The user lives in Oslo.",))

    assert [(one.text, one.replaces) for one in found.facts] == [("The user lives in Lisbon.", (900,))]


def test_lists_grow() -> None:
    """Given a slot with one taste, I expect a second one beside it."""
    assert [one.value for one in found_in("我喜欢蓝色", slots={"likes": ["茶"]}).slots] == [["茶", "蓝色"]]


def test_a_plan_has_its_date() -> None:
    """Given what is to happen tomorrow, I expect a plan with the day after the message's."""
    found = found_in("I'm flying to Rome tomorrow with my brother")

    assert [(one.kind, one.when) for one in found.facts] == [("plan", "2024-03-12")]
    assert "flying to Rome" in found.facts[0].text


@pytest.mark.parametrize("said", ["Sure, I'll remind you on Friday.", "好的，我会提醒你周五交房租。"])
def test_a_promise_of_the_ai(said: str) -> None:
    """Given a promise in the AI's message, I expect it about the AI, with its date."""
    found = found_in(said, source="ai")

    assert [(one.kind, one.about, one.when) for one in found.facts] == [("promise", "ai", "2024-03-15")]


@pytest.mark.parametrize("said", ['I said: "I will remind you on Friday."', "我说过：「我会提醒你周五交房租」"])
def test_a_promise_that_the_ai_quotes_is_none(said: str) -> None:
    """Given a reply that quotes an earlier promise, as the built-in replier does, I expect nothing."""
    assert found_in(said, source="ai").facts == []


def test_a_sentence_of_several_people_has_the_user_before_it() -> None:
    """Given a sentence with "we", I expect it as it was said, after who said it."""
    [fact] = found_in("We talked about the garden for a while").facts

    assert fact.text == "The user: We talked about the garden for a while"


@pytest.mark.parametrize("said", ["Do I live in Oslo?", "ok", "我住在哪里？", "I love you", "hahaha"])
def test_what_says_nothing(said: str) -> None:
    """Given a question or small talk, I expect nothing."""
    assert found_in(said).facts == []


def test_other_people_are_named() -> None:
    """Given one of several people, I expect a fact about that one, and no slot."""
    new = {"n": 1, "at": "2024-03-11 Mon 20:00", "by": "Alice", "text": "I live in Porto."}
    found = find({"profile": {}, "facts": [], "before": [], "new": [new]})

    assert (found["facts"][0]["text"], found["facts"][0]["about"], found["profile"]) == (
        "Alice lives in Porto.",
        "Alice",
        [],
    )


DATES = {
    "tomorrow": "2024-03-12",
    "yesterday": "2024-03-10",
    "the day after tomorrow": "2024-03-13",
    "next Friday": "2024-03-22",
    "last Friday": "2024-03-08",
    "on Friday": "2024-03-15",
    "in two weeks": "2024-03-25",
    "three days ago": "2024-03-08",
    "on May 4th": "2024-05-04",
    "明天": "2024-03-12",
    "昨天": "2024-03-10",
    "下周五": "2024-03-22",
    "上周五": "2024-03-08",
    "两周后": "2024-03-25",
    "三天前": "2024-03-08",
    "5月4号": "2024-05-04",
    "2月30号": None,
    "some day": None,
}


@pytest.mark.parametrize(("sentence", "day"), DATES.items(), ids=DATES)
def test_dates_are_reckoned_from_the_message(sentence: str, day: str | None) -> None:
    """Given a date in words, said on Monday 2024-03-11, I expect the day."""
    assert date_in(f"We go {sentence}.", date(2024, 3, 11)) == day


def test_a_chat_is_answered_by_the_line_that_fits() -> None:
    """Given the prompt of a chat, which is none of extraction, I expect the line that shares the most words."""
    messages = [
        {"role": "system", "content": "What you know:\n- The user lives in Lisbon.\n- The user likes tea."},
        {"role": "user", "content": "where does the user live, in which city?"},
    ]

    assert reply(messages) == "- The user lives in Lisbon."


def test_the_answer_is_json() -> None:
    """Given a batch, I expect the two lists that the prompt asks for."""
    prompt: dict[str, Any] = {"profile": {}, "facts": [], "before": [], "new": []}

    assert json.loads(reply([{"role": "user", "content": json.dumps(prompt)}])) == {"facts": [], "profile": []}
