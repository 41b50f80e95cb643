"""What an operator does in Chromium: follows a late search, replays a dead letter, switches language and theme."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator

import pytest
import redis
from keepsake_client import Client
from keepsake_client.errors import KeepsakeError
from keepsake_client.protocol import MemoryUpdateMessage
from playwright.sync_api import expect

from services.runtime.queues import INDEX_QUEUE, QueueKeys
from tasks.queues import index_message
from tests.acceptance.browser.person import Person
from tests.acceptance.conftest import Stack
from tests.support import PATIENCE_S, wait_until

PATIENCE_MS = 1000 * PATIENCE_S


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4().hex[:8]}"


def test_a_late_search_is_followed_from_the_live_page(person: Person, memory: Client, user: str) -> None:
    """Given a search that had a millisecond, I expect the live page to list it, and to lead to its turn."""
    memory.add(user, "My bicycle is red.")
    page = person.go("/")
    page.get_by_role("combobox", name="What").select_option("searches")
    with pytest.raises(KeepsakeError):
        memory.request("search", user, {"query": "Which colour has my bicycle?"}, deadline_ms=1)

    row = page.get_by_role("row").filter(has_text=user)
    expect(row).to_have_text(re.compile("late|expired"), timeout=PATIENCE_MS)
    row.get_by_role("link").click()

    expect(page.locator("#main")).to_contain_text(re.compile("late|expired"))
    expect(page.locator("#main")).to_contain_text(user)


def test_filters_of_the_live_page_stay_while_it_goes_on(person: Person, memory: Client, user: str) -> None:
    """Given a kind and a user that are chosen, I expect both to be on show still after the next search has come in."""
    page = person.go("/")
    kind = page.get_by_role("combobox", name="What")
    kind.select_option("searches")
    typed = page.get_by_label("User (part of the id)")
    typed.fill(user)
    memory.search(user, "Which colour has my bicycle?")
    expect(page.get_by_role("row").filter(has_text=user)).to_have_count(1, timeout=PATIENCE_MS)

    expect(kind).to_have_value("search")
    expect(typed).to_have_value(user)


@pytest.fixture
def dead_letter(stack: Stack, user: str) -> Iterator[str]:
    """The words of a message that failed for good."""
    words = f"I moved to Porto. {uuid.uuid4().hex[:8]}"
    update = MemoryUpdateMessage(user_id=user, content=words, source="user", message_id=uuid.uuid4().hex)
    letter = index_message(update, time.time())
    keys = QueueKeys(INDEX_QUEUE)
    with redis.Redis.from_url(stack.redis_url) as client:
        client.hset(keys.dead_messages, letter.message_id, letter.copy(options={"error": "OperationalError"}).encode())
        client.zadd(keys.dead_ids, {letter.message_id: time.time() * 1000})
        yield words
        client.zrem(keys.dead_ids, letter.message_id)
        client.hdel(keys.dead_messages, letter.message_id)


def test_a_dead_letter_is_replayed(person: Person, memory: Client, user: str, dead_letter: str) -> None:
    """Given a message that failed for good, I expect it remembered after a click, and no dead letter any more."""
    page = person.go("/queues")

    page.get_by_text("OperationalError").click()
    expect(page.get_by_text(dead_letter)).to_be_visible()
    page.get_by_role("button", name="Replay", exact=True).click()

    expect(page.get_by_text("No message has failed for good.")).to_be_visible(timeout=PATIENCE_MS)
    wait_until(lambda: memory.memory_list(user).memories, description="the message to be indexed")


def test_a_dead_letter_is_read_by_one_role_and_replayed_by_another(people: dict[str, Person], dead_letter: str) -> None:
    """Given a dead letter, I expect a viewer to see its words and no button, and an operator the opposite."""
    seen: dict[str, tuple[bool, bool]] = {}
    for role in ("viewer", "operator"):
        page = people[role].go("/queues")
        page.get_by_text("OperationalError").click()
        expect(page.get_by_role("heading", name="Message")).to_be_visible()
        seen[role] = dead_letter in page.content(), page.get_by_role("button", name="Replay", exact=True).is_visible()

    assert seen == {"viewer": (True, False), "operator": (False, True)}


def test_the_language_is_switched(person: Person) -> None:
    """Given a page in English, I expect it in Chinese after a click, other pages too, and in English after another."""
    page = person.go("/queues")

    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("队列")
    page.get_by_role("link", name="用户").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("用户")
    page.get_by_role("button", name="English").click()

    expect(page.get_by_role("heading", level=1)).to_have_text("People")


def test_the_theme_is_switched(person: Person) -> None:
    """Given a page as the system has it, which is light, I expect it dark once that is chosen."""
    page = person.go("/queues")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)

    page.get_by_role("button", name="Theme: as the system").click()
    page.get_by_role("button", name="Theme: light").click()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()

    dark = page.evaluate(background)
    page.get_by_role("button", name="Theme: dark").click()
    expect(page.get_by_role("button", name="Theme: as the system")).to_be_visible()
    assert dark != light
