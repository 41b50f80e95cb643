"""Two characters and a room, played through the commands on the whole stack."""

from __future__ import annotations

import json
import uuid
from typing import Any

from keepsake_client import Client

from tests.acceptance.conftest import Stack
from tests.ltm_command import run_ltm
from tests.support import wait_until


class Player:
    """Plays conversations on a stack.

    Args:
        user: who chats, or the room.
    """

    def __init__(self, stack: Stack, user: str) -> None:
        self._stack = stack
        self.user = user

    def ltm(self, *arguments: str, stdin: str | None = None) -> str:
        result = run_ltm(
            *arguments, stdin=stdin, REDIS_URL=self._stack.redis_url, DATABASE_URL=self._stack.database_url
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def say(self, text: str, *options: str) -> str:
        """Say one message; the reply."""
        return self.ltm("chat", "--user", self.user, *options, stdin=f"{text}\n")

    def tell(self, text: str, *options: str) -> None:
        """Say one message, and wait until it is a memory."""
        self.say(text, *options)
        with Client(self._stack.redis_url) as client:
            wait_until(
                lambda: text in [each.content for each in client.search(self.user, text[:-4], all_agents=True)],
                description=f"{text!r} to be indexed",
            )

    def search(self, query: str, *options: str) -> str:
        return self.ltm("search", self.user, query, *options)

    def found(self, query: str, *options: str) -> list[dict[str, Any]]:
        return list(json.loads(self.search(query, "--json", *options))["memories"])


def player(stack: Stack, name: str) -> Player:
    return Player(stack, f"{name}-{uuid.uuid4().hex[:8]}")


def test_two_characters_know_what_was_said_to_them_and_to_all(stack: Stack) -> None:
    """Given a secret told to one character and a fact told to all, I expect the other to know the fact alone."""
    anna = player(stack, "anna")
    anna.tell("My dog is called Biscuit.", "--agent", "Luna")
    anna.tell("我住在一个叫平遥的小城。")

    assert "Biscuit" in anna.say("What is my dog called?", "--agent", "Luna")
    assert "Biscuit" not in anna.say("What is my dog called?", "--agent", "Sol")
    assert "Biscuit" not in anna.say("What is my dog called?")
    for agent in ("Luna", "Sol"):
        assert "平遥" in anna.say("我住在哪里？", "--agent", agent)

    assert "Biscuit" not in anna.search("What is my dog called?", "--agent", "Sol")
    assert "Biscuit" not in anna.search("What is my dog called?")
    assert "Biscuit" in anna.search("What is my dog called?", "--all-agents")

    def knowing(agent: str) -> set[tuple[str, str | None]]:
        found = anna.found("Biscuit", "--agent", agent)
        return {(memory["source"], memory["agent_id"]) for memory in found if "Biscuit" in memory["content"]}

    # The reply that repeats it is the character's too.
    wait_until(lambda: knowing("Luna") == {("user", "Luna"), ("ai", "Luna")}, description="the reply to be indexed")
    assert knowing("Sol") == set()


def test_a_character_keeps_a_profile_of_its_own(stack: Stack) -> None:
    """Given a profile and that of a character, I expect each by itself."""
    anna = player(stack, "anna")
    anna.ltm("profile", anna.user, "--set", 'name="Anna"')
    anna.ltm("profile", anna.user, "--agent", "Luna", "--set", 'nickname="Sunny"')

    assert json.loads(anna.ltm("profile", anna.user)) == {"name": "Anna"}
    assert json.loads(anna.ltm("profile", anna.user, "--agent", "Luna")) == {"nickname": "Sunny"}
    assert json.loads(anna.ltm("profile", anna.user, "--agent", "Sol")) == {}


def test_in_a_room_my_birthday_is_the_askers(stack: Stack) -> None:
    """Given a room where two tell the same of themselves, I expect each to be answered with what they said."""
    room = player(stack, "room")
    room.tell("My birthday is on the third of May.", "--as", "Anna")
    room.tell("My birthday is on the ninth of June.", "--as", "Ben")
    room.tell("我最喜欢的颜色是蓝色。", "--as", "小明")
    room.tell("我最喜欢的颜色是绿色。", "--as", "阿芳")

    for name, question, own in (
        ("Anna", "When is my birthday?", "third of May"),
        ("Ben", "When is my birthday?", "ninth of June"),
        ("小明", "我最喜欢的颜色是什么？", "蓝色"),
        ("阿芳", "我最喜欢的颜色是什么？", "绿色"),
    ):
        assert own in room.found(question, "--as", name)[0]["content"], name
        first = room.say(question, "--as", name).splitlines()[1]
        assert own in first, name
        assert "you said" in first or "你说过" in first, name
    assert room.found("When is Ben's birthday?", "--as", "Anna")[0]["speaker"]["name"] == "Ben"


def test_a_room_and_its_member_are_searched_as_one(stack: Stack) -> None:
    """Given a memory of a room and one of its member, I expect both of one search, each with whose it is."""
    room, anna = player(stack, "room"), player(stack, "anna")
    room.tell("The piano concert is on Sunday.", "--as", "Ben")
    anna.ltm("add", anna.user, "I have bought two tickets for the piano concert.", "--as", "Anna")

    together = anna.found("When is the piano concert?", "--also", room.user, "--as", "Anna")

    assert {memory["user_id"] for memory in together} == {room.user, anna.user}
    assert {memory["user_id"] for memory in anna.found("When is the piano concert?")} == {anna.user}
