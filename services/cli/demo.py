"""`ltm demo`: a short conversation that shows memory at work. Each line it prints is something it saw happen."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from keepsake_client.errors import KeepsakeError, RequestTimeout
from keepsake_client.protocol import MAX_LIMIT

from services.cli.conversation import Conversation, channels
from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, found_stack
from services.cli.output import Output, described, paragraph
from services.runtime.settings import Settings
from services.stack.wire import Subscription, WireClient, connect, subscribed

INDEXED_WITHIN_S = 30.0
LOOK_EVERY_S = 0.02
SHOWN = 3


@dataclass(frozen=True)
class Turn:
    """Something the user says; `fact` is what the reply must contain, said in an earlier session."""

    content: str
    fact: str | None = None


SESSIONS = (
    (
        Turn("My sister Anna lives in Lisbon and plays the cello."),
        Turn("我对花生过敏，吃东西要特别小心。"),
        Turn("I am training for a marathon in October."),
        Turn("我养了一只橘猫，名字叫豆包。"),
    ),
    (
        Turn("Where does my sister Anna live?", fact="Lisbon"),
        Turn("我对什么食物过敏？", fact="花生"),
        Turn("What am I training for?", fact="marathon"),
        Turn("我的猫叫什么名字？", fact="豆包"),
    ),
)


class DemoFailed(KeepsakeError):
    """A step of the demo did not happen as it should."""

    code = "demo_failed"

    def __init__(self, step: str, turn: str, reason: str) -> None:
        super().__init__(f"step {step!r} of {turn!r}: {reason}")
        self.step = step


class Demo:
    """Plays the conversation as a user nobody has heard of before.

    Args:
        settings: where the stack is.
    """

    def __init__(self, settings: Settings, output: Output) -> None:
        self._settings = settings
        self._output = output
        self._client = connect(settings.redis_url.get_secret_value())
        self._wire = WireClient(self._client, settings)
        self._user_id = f"demo-{uuid.uuid4().hex[:8]}"
        self._step = "connected"
        self._indexed_ms: list[float] = []
        self._searched_ms: list[float] = []

    def run(self) -> None:
        """Play it.

        Raises:
            DemoFailed: naming the step.
        """
        self._output.line(f"A conversation with a new user, {self._user_id}:")
        with self._named(""), subscribed(self._client, *channels(self._settings)) as events:
            for number, turns in enumerate(SESSIONS, start=1):
                self._play(number, turns, events)
        remembered = sum(turn.fact is not None for turns in SESSIONS for turn in turns)
        self._output.line(
            f"The demo passed: {remembered} questions were answered from memory. "
            f"Median: indexed in {statistics.median(self._indexed_ms):.0f} ms, "
            f"searched in {statistics.median(self._searched_ms):.0f} ms.",
            "bold green",
        )

    def _play(self, number: int, turns: tuple[Turn, ...], events: Subscription) -> None:
        session = f"{self._user_id}-{number}"
        self._output.line(f"\nsession {number}", "bold")
        talk = Conversation(self._client, self._settings, events, self._user_id, session, "demo")
        for turn in turns:
            with self._named(turn.content):
                self._take(turn, talk)

    def _take(self, turn: Turn, talk: Conversation) -> None:
        self._output.line(f"user> {turn.content}", "bold")

        self._step, began = "stored", time.monotonic()
        message_id = talk.stored(talk.say(turn.content))
        self._tell(f"as message {message_id[:8]} after {_ms_since(began):.0f} ms")

        self._step, began = "indexed", time.monotonic()
        self._wait_until_indexed(turn.content, message_id)
        self._indexed_ms.append(_ms_since(began))
        self._tell(f"in {self._indexed_ms[-1]:.0f} ms")

        self._step, began = "searched", time.monotonic()
        memories = self._wire.search(self._user_id, turn.content)
        self._searched_ms.append(_ms_since(began))
        self._tell(f"in {self._searched_ms[-1]:.0f} ms")

        self._step = "found"
        earlier = [memory for memory in memories if _message_id(memory) != message_id]
        for memory in earlier[:SHOWN]:
            self._tell(described(memory), "cyan")
        if not earlier:
            self._tell("nothing said before", "cyan")

        self._step = "replied"
        text = str(talk.replied(message_id).get("text"))
        self._tell(paragraph(text, " " * 14), "green")

        if turn.fact is not None:
            self._step = "remembered"
            if turn.fact.casefold() not in text.casefold():
                raise DemoFailed(self._step, turn.content, f"the reply does not contain {turn.fact!r}")
            self._tell(f"{turn.fact!r}, from the first session", "bold green")

    def _wait_until_indexed(self, content: str, message_id: str) -> None:
        # Not by its own words: what was said just now does not come back to who says it again. From a score of 0 on,
        # a search returns all there is.
        part = content[: len(content) // 2]
        until = time.monotonic() + INDEXED_WITHIN_S
        while time.monotonic() < until:
            found = self._wire.search(self._user_id, part, limit=MAX_LIMIT, min_score=0)
            if message_id in map(_message_id, found):
                return
            time.sleep(LOOK_EVERY_S)
        raise RequestTimeout(f"not found within {INDEXED_WITHIN_S:g} s; does long-term-memory-indexer run?")

    def _tell(self, text: str, style: str | None = None) -> None:
        self._output.line(f"  {self._step:<11} {text}", style)

    @contextmanager
    def _named(self, turn: str) -> Iterator[None]:
        """Name the step and the turn in which something of ours failed."""
        try:
            yield
        except DemoFailed:
            raise
        except KeepsakeError as error:
            raise DemoFailed(self._step, turn, str(error)) from error


def demo(data_dir: DataDir = DEFAULT_DATA_DIRECTORY) -> None:
    """Play a short conversation, half English and half Chinese, and show what is remembered of it."""
    Demo(found_stack(data_dir).settings, Output()).run()


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1000


def _message_id(memory: dict[str, Any]) -> str | None:
    metadata = memory.get("metadata")
    found = metadata.get("message_id") if isinstance(metadata, dict) else None
    return found if isinstance(found, str) else None
