"""PerUserExecutor: order within a user, a bounded number of users at once, a bounded number of messages."""

from __future__ import annotations

import asyncio

from keepsake_client.protocol import MemoryUpdateMessage

from services.chat_ai.user_executor import PerUserExecutor
from tests.support import eventually


def said(user_id: str, content: str) -> MemoryUpdateMessage:
    return MemoryUpdateMessage(user_id=user_id, content=content, source="user")


class Handler:
    """Handles messages when the test opens the gate, and remembers what happened."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun: list[str] = []
        self.done: list[str] = []
        self.at_once = 0

    async def __call__(self, message: MemoryUpdateMessage) -> None:
        self.begun.append(message.content)
        self.at_once = max(self.at_once, len(self.begun) - len(self.done))
        await self.gate.wait()
        self.done.append(message.content)


def test_one_user_is_served_in_order_while_others_move_on() -> None:
    """Given three messages of one user and one of another, I expect the first of each begun, and the order kept."""

    async def story() -> None:
        handler = Handler()
        lanes = PerUserExecutor(handler)
        for user_id, content in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")):
            assert lanes.offer(said(user_id, content))
        await eventually(lambda: len(handler.begun) == 2, description="both users begun")
        assert handler.begun == ["a1", "b1"]
        handler.gate.set()
        assert await lanes.finish(10) == 0
        assert [content for content in handler.done if content.startswith("a")] == ["a1", "a2", "a3"]

    asyncio.run(story())


def test_no_more_users_move_at_once_than_allowed() -> None:
    """Given a hundred users and a width of four, I expect four at a time, and everybody served."""

    async def story() -> None:
        handler = Handler()
        lanes = PerUserExecutor(handler, width=4)
        for number in range(100):
            assert lanes.offer(said(f"u{number}", "x"))
        await eventually(lambda: len(handler.begun) == 4, description="four users begun")
        handler.gate.set()
        assert await lanes.finish(10) == 0
        assert len(handler.done) == 100
        assert handler.at_once == 4

    asyncio.run(story())


def test_a_flood_is_refused_where_it_would_grow_without_end() -> None:
    """Given more messages than may wait, of one user or altogether, I expect a refusal, and room again afterwards."""

    async def story() -> None:
        handler = Handler()
        lanes = PerUserExecutor(handler, per_user=2, total=3)
        offers = [("a", True), ("a", True), ("a", False), ("b", True), ("c", False)]
        assert [lanes.offer(said(user_id, "x")) for user_id, _ in offers] == [taken for _, taken in offers]
        handler.gate.set()
        assert await lanes.finish(10) == 0
        assert lanes.offer(said("c", "x"))
        assert await lanes.finish(10) == 0

    asyncio.run(story())


def test_what_does_not_end_is_given_up_and_counted() -> None:
    """Given a reply that never ends and one behind it, I expect both given up after the time."""

    async def story() -> None:
        lanes = PerUserExecutor(Handler())
        for content in ("a1", "a2"):
            lanes.offer(said("a", content))
        assert await lanes.finish(0.05) == 2

    asyncio.run(story())
