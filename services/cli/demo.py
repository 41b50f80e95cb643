"""`ltm demo`: a short scripted conversation. Each line it prints reports an observed step, with its time."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from keepsake_client.errors import KeepsakeError, RequestTimeout
from keepsake_client.protocol import Memory

from services.cli.conversation import Conversation, channels
from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, found_stack
from services.cli.output import Output, described, paragraph
from services.cli.subscription import Subscription, subscribed
from services.runtime.redis import connect
from services.runtime.settings import Settings
from services.stack.probe import client_of

INDEXED_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.02
#: Memories on a page; the last one of the user and the AI is among them.
NEWEST = 5
SEARCH_TIMEOUT_MS = 5_000
MAX_SHOWN = 3


@dataclass(frozen=True)
class Turn:
    """One message of the user. The reply must contain `fact`, which an earlier session has."""

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
    """A step of the demo failed."""

    code = "demo_failed"

    def __init__(self, step: str, turn: str, reason: str) -> None:
        of_turn = f" of {turn!r}" if turn else ""
        super().__init__(f"step {step!r}{of_turn}: {reason}")
        self.step = step


class Demo:
    """Plays the conversation as a new user.

    Args:
        settings: the address and names of the stack.
    """

    def __init__(self, settings: Settings, output: Output) -> None:
        self._settings = settings
        self._output = output
        self._client = connect(settings.redis_url.get_secret_value())
        self._ltm = client_of(settings)
        self._user_id = f"demo-{uuid.uuid4().hex[:8]}"
        self._step = "connected"
        self._indexed_ms: list[float] = []
        self._searched_ms: list[float] = []

    def run(self) -> None:
        """Play the conversation.

        Raises:
            DemoFailed: names the step.
        """
        self._output.line(f"A conversation with a new user, {self._user_id}:")
        with self._named(""), subscribed(self._client, *channels(self._settings)) as events, self._ltm:
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
        conversation = Conversation(self._client, self._settings, events, self._user_id, session, "demo")
        conversation.check_running()
        for turn in turns:
            with self._named(turn.content):
                self._take(turn, conversation)

    def _take(self, turn: Turn, conversation: Conversation) -> None:
        self._output.line(f"user> {turn.content}", "bold")

        self._step, began = "stored", time.monotonic()
        message_id = conversation.wait_until_stored(conversation.send(turn.content))
        self._report(f"as message {message_id} after {_ms_since(began):.0f} ms")

        self._step, began = "indexed", time.monotonic()
        self._wait_until_indexed(message_id)
        self._indexed_ms.append(_ms_since(began))
        self._report(f"in {self._indexed_ms[-1]:.0f} ms")

        self._step, began = "searched", time.monotonic()
        memories = self._search(turn.content)
        self._searched_ms.append(_ms_since(began))
        self._report(f"in {self._searched_ms[-1]:.0f} ms")

        self._step = "found"
        earlier = [memory for memory in memories if memory.metadata.get("message_id") != message_id]
        for memory in earlier[:MAX_SHOWN]:
            self._report(described(memory.model_dump(), self._settings.timezone), "cyan")
        if not earlier:
            self._report("nothing said before", "cyan")

        self._step = "replied"
        text = str(conversation.wait_for_reply(message_id).get("text"))
        self._report(paragraph(text, " " * 14), "green")

        if turn.fact is not None:
            self._step = "remembered"
            if turn.fact.casefold() not in text.casefold():
                raise DemoFailed(self._step, turn.content, f"the reply does not contain {turn.fact!r}")
            self._report(f"{turn.fact!r}, from the first session", "bold green")

    def _wait_until_indexed(self, message_id: str) -> None:
        # By lists of what is remembered: searches would stand between the turns on the console's live page.
        until = time.monotonic() + INDEXED_TIMEOUT_S
        while time.monotonic() < until:
            listed = self._ltm.memory_list(self._user_id, limit=NEWEST, deadline_ms=SEARCH_TIMEOUT_MS).memories
            if any(memory.metadata.get("message_id") == message_id for memory in listed):
                return
            time.sleep(POLL_INTERVAL_S)
        raise RequestTimeout(f"not found within {INDEXED_TIMEOUT_S:g} s; is long-term-memory-indexer running?")

    def _search(self, query: str) -> list[Memory]:
        # With `request`: the demo fails where no response comes.
        return self._ltm.request("search", self._user_id, {"query": query}, deadline_ms=SEARCH_TIMEOUT_MS).memories

    def _report(self, text: str, style: str | None = None) -> None:
        self._output.line(f"  {self._step:<11} {text}", style)

    @contextmanager
    def _named(self, turn: str) -> Iterator[None]:
        """Add the step and the turn to an error."""
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
