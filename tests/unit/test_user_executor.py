"""PerUserExecutor: order within a user, a bounded number of users at once, a bounded number of messages."""

from __future__ import annotations

import asyncio

from keepsake_client.protocol import MemoryUpdateMessage

from services.chat_ai.user_executor import PerUserExecutor
from tests.support import eventually


def message(user_id: str, content: str) -> MemoryUpdateMessage:
    return MemoryUpdateMessage(user_id=user_id, content=content, source="user")


class Handler:
    """Handles messages when the test opens the gate, and records what happened."""

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


def test_one_user_is_served_in_order_and_others_concurrently() -> None:
    """Given three messages of one user and one of another, I expect the first of each to begin, and the order kept."""

    async def story() -> None:
        handler = Handler()
        executor = PerUserExecutor(handler)
        for user_id, content in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")):
            assert executor.offer(message(user_id, content))
        await eventually(lambda: len(handler.begun) == 2, description="both users begun")
        assert handler.begun == ["a1", "b1"]
        handler.gate.set()
        assert await executor.finish(10) == 0
        assert [content for content in handler.done if content.startswith("a")] == ["a1", "a2", "a3"]

    asyncio.run(story())


def test_at_most_width_users_are_served_at_once() -> None:
    """Given a hundred users and a width of four, I expect four at a time, and every user served."""

    async def story() -> None:
        handler = Handler()
        executor = PerUserExecutor(handler, width=4)
        for number in range(100):
            assert executor.offer(message(f"u{number}", "x"))
        await eventually(lambda: len(handler.begun) == 4, description="four users begun")
        handler.gate.set()
        assert await executor.finish(10) == 0
        assert len(handler.done) == 100
        assert handler.at_once == 4

    asyncio.run(story())


def test_the_number_of_waiting_messages_is_bounded() -> None:
    """Given more messages than may wait, of one user or in total, I expect them refused, and later ones accepted."""

    async def story() -> None:
        handler = Handler()
        executor = PerUserExecutor(handler, per_user=2, total=3)
        offers = [("a", True), ("a", True), ("a", False), ("b", True), ("c", False)]
        assert [executor.offer(message(user_id, "x")) for user_id, _ in offers] == [accepted for _, accepted in offers]
        handler.gate.set()
        assert await executor.finish(10) == 0
        assert executor.offer(message("c", "x"))
        assert await executor.finish(10) == 0

    asyncio.run(story())


def test_messages_that_do_not_finish_are_cancelled_and_counted() -> None:
    """Given a handler that never returns and a message behind it, I expect both cancelled after the timeout."""

    async def story() -> None:
        executor = PerUserExecutor(Handler())
        for content in ("a1", "a2"):
            executor.offer(message("a", content))
        assert await executor.finish(0.05) == 2

    asyncio.run(story())
