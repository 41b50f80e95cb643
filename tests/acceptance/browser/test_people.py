"""What someone does in Chromium with what is remembered of a user: finds, corrects and forgets it; hostile words."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
import redis
from keepsake_client import Client
from playwright.sync_api import expect

from tests.acceptance.browser.person import HOSTILE, Person
from tests.acceptance.conftest import Stack
from tests.support import PATIENCE_S, wait_until


@pytest.fixture
def user() -> str:
    return f"user {uuid.uuid4().hex[:8]}/café"


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(stack.redis_url) as client:
        yield client


def reply_to(client: redis.Redis, user: str, words: str) -> str:
    """The bot's reply to what a user says."""
    with client.pubsub() as replies:  # type: ignore[no-untyped-call]
        replies.subscribe("ai_responses")
        wait_until(lambda: replies.get_message(timeout=1), description="the subscription")
        client.lpush("user_input_queue", json.dumps({"user_id": user, "content": words}))

        def reply() -> str | None:
            event = replies.get_message(ignore_subscribe_messages=True, timeout=1)
            said = json.loads(event["data"]) if event else {}
            return said["text"] if said.get("user_id") == user else None

        return str(wait_until(reply, description="the reply"))


def contents(memory: Client, user: str) -> list[str]:
    """What is remembered of a user."""
    return [found.content for found in memory.memory_list(user, limit=100).memories]


def test_a_user_is_found_by_the_beginning_of_the_id(person: Person, memory: Client, user: str) -> None:
    """Given a user with a memory, I expect the page to find the user, and to show what is remembered."""
    memory.add(user, "My sister Anna lives in Lisbon.")
    page = person.go("/people")

    page.keyboard.press("/")
    page.keyboard.type(user[:12])
    page.keyboard.press("Enter")
    page.get_by_role("link", name=user, exact=True).click()

    expect(page.get_by_role("heading", level=1)).to_have_text(user)
    expect(page.get_by_role("article")).to_contain_text("My sister Anna lives in Lisbon.")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox", name="Ask this memory")).to_be_focused()


def test_the_bot_uses_a_corrected_memory(person: Person, memory: Client, client: redis.Redis, user: str) -> None:
    """Given a memory that someone corrects on the page, I expect the bot to answer with the new words."""
    reply_to(client, user, "My sister Anna lives in Lisbon.")
    wait_until(lambda: "My sister Anna lives in Lisbon." in contents(memory, user), description="it to be indexed")
    page = person.of(user)

    said = page.get_by_role("article").filter(has_text="My sister Anna lives in Lisbon.").last
    said.get_by_role("button", name="Details").click()
    said.get_by_role("button", name="Correct").click()
    page.get_by_role("textbox", name="Content").fill("My sister Anna lives in Porto.")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("article").filter(has_text="Porto")).to_have_count(1)

    assert "Porto" in reply_to(client, user, "Where does my sister Anna live?")


def test_memories_of_filters_are_deleted_on_their_page(person: Person, memory: Client, user: str) -> None:
    """Given a filter, I expect what meets it deleted once that is confirmed, and the same page to say so."""
    for words in ("I live in Lisbon.", "I like green tea."):
        memory.add(user, words)
    page = person.go(f"{person.path_of(user)}&contains=Lisbon")

    page.get_by_role("button", name="Delete all that meet these filters").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()

    timeline = page.locator(".timeline")  # `get_by_text` calls `contains` of the form, whose field has that name
    expect(timeline).to_contain_text("1 memories deleted")
    expect(timeline).to_contain_text("Nothing meets these filters")
    assert contents(memory, user) == ["I like green tea."]


def test_a_forgotten_user_is_gone(person: Person, memory: Client, user: str) -> None:
    """Given someone who types the id to confirm it, I expect that nothing of the user is left."""
    memory.add(user, "I am allergic to peanuts.")
    memory.profile_update(user, {"name": "Anna"})
    page = person.of(user)

    page.get_by_role("link", name="Export, import, forget").click()
    page.get_by_role("button", name="Show what goes").click()
    page.get_by_label("User id").fill(user)
    page.get_by_role("button", name="Forget everything").click()

    expect(page.get_by_text("Forgotten: 1 memories")).to_be_visible()
    assert contents(memory, user) == []
    assert memory.profile_get(user).user_profile == {}


@pytest.mark.parametrize("how", ["forgotten", "deleted"])
def test_an_open_turn_loses_the_words_that_are_erased_elsewhere(
    person: Person, memory: Client, client: redis.Redis, user: str, how: str
) -> None:
    """Given the open page of a turn, and its user who is forgotten by another program, or one memory that is deleted, I
    expect the page to lose the words, and no record of the turn to have them."""
    marker = f"xylophone{uuid.uuid4().hex[:8]}"
    reply_to(client, user, f"My sister Anna plays the {marker}.")
    wait_until(lambda: any(marker in words for words in contents(memory, user)), description="it to be indexed")
    assert marker in reply_to(client, user, "What does my sister Anna play?")
    question = wait_until(lambda: turn_of(client, user, "What does"), description="the record of the turn")
    page = person.go(f"/turn?{urlencode({'id': question})}")
    expect(page.get_by_text(marker).first).to_be_visible()

    if how == "forgotten":
        memory.user_forget(user)
    else:
        said = [found.id for found in memory.memory_list(user).memories if found.source == "user"]
        assert memory.memory_delete(user, ids=said[-1:]).count == 1

    expect(page.get_by_text(marker)).to_have_count(0, timeout=PATIENCE_S * 1000)
    assert marker not in str(client.xrange("ltm:turns"))


def turn_of(client: redis.Redis, user: str, words: str) -> str | None:
    """The id of the user's message that begins so, by the record of its reply."""
    entries: Any = client.xrange("ltm:turns")
    records = [json.loads(fields[b"turn"]) for _, fields in entries]
    found = (one for one in records if one["user"] == user and one.get("text", "").startswith(words))
    return next((str(one["message_id"]) for one in found), None)


def test_answers_on_an_open_page_go_with_their_user(person: Person, memory: Client, user: str) -> None:
    """Given the open answers to a question, and their user who is forgotten by another program, I expect them to go."""
    memory.add(user, "My sister Anna lives in Lisbon.")
    page = person.go(f"/ask?{urlencode({'user': user, 'q': 'Where does Anna live?'})}")
    expect(page.get_by_text("My sister Anna lives in Lisbon.")).to_be_visible()

    memory.user_forget(user)

    expect(page.get_by_text("Memories were deleted since")).to_be_visible(timeout=PATIENCE_S * 1000)
    expect(page.get_by_text("My sister Anna lives in Lisbon.")).to_have_count(0)


def test_hostile_words_are_shown_as_text(person: Person, memory: Client, client: redis.Redis) -> None:
    """Given a user whose id, words, profile and session are HTML with scripts, I expect text, and that nothing runs."""
    user = f"{uuid.uuid4().hex[:8]} {HOSTILE}"
    memory.add(user, HOSTILE + "x" * 30_000, metadata={HOSTILE: HOSTILE, "session_id": HOSTILE})
    memory.profile_update(user, {HOSTILE: HOSTILE})
    client.lpush("user_input_queue", f'{{"user_id": {HOSTILE!r}')  # which is rejected
    person.faults.clear()

    page = person.of(user)
    said = page.get_by_role("article")
    expect(said).to_contain_text("<script>window.pwned = 'script'</script><img src=x onerror=")
    said.get_by_role("button", name=re.compile("Show all")).click()
    said.get_by_role("button", name="Details").click()
    expect(said).to_contain_text("Metadata")
    injected: list[str] = []
    asked = urlencode({"user": user, "q": HOSTILE})
    for path in (f"{person.path_of(user)}&view=profile", "/people", f"/ask?{asked}", "/", "/?kind=search", "/queues"):
        injected += person.injected()
        person.go(path)

    assert injected + person.injected() == []
    assert person.faults == []


@pytest.mark.parametrize("role", ["viewer", "full"])
def test_who_may_only_read_sees_no_buttons_that_change(
    people: dict[str, Person], memory: Client, user: str, role: str
) -> None:
    """Given a memory, I expect a key that may correct it to show the buttons, and a viewer's none."""
    memory.add(user, "I like green tea.")
    page = people[role].of(user)

    page.get_by_role("button", name="Details").click()
    expect(page.get_by_text("Metadata")).to_be_visible()

    seen = page.get_by_role("button").all_inner_texts()
    assert {"Correct", "Delete"} & set(seen) == (set() if role == "viewer" else {"Correct", "Delete"})


def test_an_operator_sees_no_contents(people: dict[str, Person], memory: Client, user: str) -> None:
    """Given an operator's key, I expect no page of a user, and a search on the live page without its words."""
    memory.add(user, "My password is swordfish.")
    operator = people["operator"]

    expect(operator.of(user).get_by_text("ltm key create --may read")).to_be_visible()
    live = operator.go("/")
    live.get_by_role("combobox", name="What").select_option("searches")
    memory.search(user, "What is my swordfish password?")
    expect(live.get_by_role("row").filter(has_text=user)).to_have_count(1, timeout=PATIENCE_S * 1000)

    assert "swordfish" not in live.content()
