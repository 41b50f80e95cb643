"""Calls and tokens of the extraction of facts, counted at a scripted server.

`python -m bench.retrieval.extraction_cost [--messages 1000] [--data FILE ...] [--stack] [--json PATH]`.

Chats of the test data are batched as the outbox does it: 20 messages or 1,500 tokens, 600 s of silence or 1,800 s after
the first message, each user alone. "As said" goes by the times in the data, where a short session is a batch of its
own; "at once" is without silence, as when they are published one after the other. Every batch is one call of an LLM
over HTTP; the rule-based model of `bench.harness.rule_model` answers. Tokens are estimated by characters
(services/long_term_memory/extraction/tokens.py).

With `--stack`, the messages are published through Redis too, one after the other, and read by the real extractor. What
is less than a batch in the end is read as if 600 s had passed. Its outbox counts tokens by bytes, and its facts are
those nearest by their vectors, so its calls and tokens are not quite those of "at once".
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC
from pathlib import Path
from typing import Final

import psycopg
from keepsake_client.protocol import MemoryUpdateMessage
from pydantic import SecretStr

from bench.harness.extraction import OutboxClock, llm_settings, wait_until_read
from bench.harness.llm_server import LLMServer
from bench.harness.stack import running_stack
from bench.harness.tables import show, track, write_json
from bench.retrieval import datasets
from bench.retrieval.chats import BILINGUAL, SEEN
from services.long_term_memory.extraction.batch import Batch, Extraction, KnownFact, Message, SlotValue
from services.long_term_memory.extraction.provider import FactFinder
from services.long_term_memory.extraction.tokens import estimate_text
from services.long_term_memory.mem0_bridge import build_llm
from services.long_term_memory.postgres.scope import Owner
from services.runtime.settings import Settings

#: As the outbox has them.
MAX_MESSAGES: Final = 20
MAX_TOKENS: Final = 1_500
SILENCE_S: Final = 600
MAX_AGE_S: Final = 1_800
BEFORE: Final = 4
SHOWN_FACTS: Final = 12
SLOTS: Final = (
    "name",
    "call_me",
    "language",
    "birthday",
    "home",
    "work",
    "family",
    "pets",
    "likes",
    "dislikes",
    "allergies",
    "goals",
    "style",
)
_WORD: Final = re.compile(r"[\u3400-\u9fff]|\w+")


def batches(messages: Sequence[Message], *, as_said: bool) -> Iterator[list[Message]]:
    """The messages of one user in the batches that fall due; those without a word of the user wait for the next.

    Args:
        as_said: whether silence ends a batch.
    """
    batch: list[Message] = []
    for message in messages:
        late = (
            as_said
            and batch
            and (message.said_at - batch[-1].said_at > SILENCE_S or message.said_at - batch[0].said_at > MAX_AGE_S)
        )
        full = len(batch) >= MAX_MESSAGES or sum(m.tokens for m in batch) + message.tokens > MAX_TOKENS
        if batch and (late or full) and any(m.source == "user" for m in batch):
            yield batch
            batch = []
        batch.append(message)
    if batch:
        yield batch


class UserState:
    """What extraction has found for one user so far, in place of the database."""

    def __init__(self) -> None:
        self.facts: dict[int, KnownFact] = {}
        self.slots: dict[str, SlotValue] = {}

    def shown(self, batch: Sequence[Message]) -> list[KnownFact]:
        """The facts that share the most words with a batch, the newest first among equals."""
        words = {word for message in batch for word in _WORD.findall(message.content.lower())}
        return sorted(
            self.facts.values(),
            key=lambda fact: (len(words & set(_WORD.findall(fact.content.lower()))), fact.number),
            reverse=True,
        )[:SHOWN_FACTS]

    def apply(self, found: Extraction) -> None:
        """Keep what was found."""
        for fact in found.facts:
            for number in fact.replaces:
                self.facts.pop(number, None)
            number = max(self.facts, default=0) + 1
            self.facts[number] = KnownFact(number, fact.text, fact.kind, fact.when)
        for change in found.slots:
            if change.value is not None:
                self.slots[change.slot] = change.value


def measure(users: Sequence[datasets.User], most: int, *, as_said: bool) -> dict[str, float]:
    """Calls, tokens and facts of the first messages of the users."""
    left, facts, estimated = most, 0, 0
    said_by_users = 0
    with LLMServer() as server:
        llm = build_llm(
            Settings(
                ltm_llm_provider="openai", ltm_llm_base_url=SecretStr(server.url), ltm_llm_api_key=SecretStr("none")
            )
        )
        finder = FactFinder(llm, SLOTS)
        for user in track(users, "extracting"):
            messages = [_message(number, event) for number, event in enumerate(user.messages[:left], start=1)]
            left -= len(messages)
            said_by_users += sum(message.source == "user" for message in messages)
            state, at = UserState(), 0
            for new in batches(messages, as_said=as_said):
                before = messages[max(at - BEFORE, 0) : at]
                at += len(new)
                batch = Batch(Owner("u"), 1, new, before, state.shown(new), state.slots, UTC)
                estimated += finder.estimate_tokens(batch)
                found = finder.find(batch)
                state.apply(found)
                facts += len(found.facts)
        return {
            "messages": most - left,
            "of users": said_by_users,
            "calls": server.calls,
            "prompt tokens": server.prompt_tokens,
            "completion tokens": server.completion_tokens,
            "reserved tokens": estimated,
            "facts": facts,
        }


def measure_stack(users: Sequence[datasets.User], most: int) -> dict[str, float]:
    """The same of a real stack that the first messages of the users are published to, without what is estimated."""
    messages = [event for user in users for event in user.messages][:most]
    with (
        LLMServer() as server,
        running_stack(durable=True, keep_logs=None, forked=True, **llm_settings(server)) as stack,
    ):
        with stack.connect() as client:
            for event in messages:
                client.publish(stack.wire.updates, event.to_wire())
        stack.wait_until_indexed()
        with psycopg.connect(stack.database_url, autocommit=True) as connection:
            while _one(connection, "SELECT count(*) FROM extraction WHERE due_at <= now()"):
                time.sleep(0.5)
            of_full_batches = server.calls
            clock = OutboxClock(stack.database_url)
            clock.start()
            wait_until_read(stack.database_url)
            clock.stop()
            stored = "SELECT count(*) FROM memories JOIN users u ON u.number = user_number WHERE kind"
            return {
                "messages": _one(connection, f"{stored} = 'message'"),
                "of users": sum(event.source == "user" for event in messages),
                "calls": server.calls,
                "prompt tokens": server.prompt_tokens,
                "completion tokens": server.completion_tokens,
                "facts": _one(connection, f"{stored} <> 'message'"),
                "calls of full batches": of_full_batches,
            }


def _one(connection: psycopg.Connection[tuple[int]], query: str) -> int:
    row = connection.execute(query).fetchone()
    return row[0] if row else 0


def _message(number: int, event: MemoryUpdateMessage) -> Message:
    return Message(
        number,
        event.message_id or str(number),
        event.content,
        event.source,
        event.timestamp,
        tokens=estimate_text(event.content),
    )


def main() -> None:
    """Measure, and print a row for each file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=1_000)
    parser.add_argument("--data", type=Path, nargs="+", default=[SEEN, BILINGUAL])
    parser.add_argument("--stack", action="store_true", help="by a real stack as well")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {
        f"{path.stem}, {name}": measure(datasets.read(path), arguments.messages, as_said=as_said)
        for path in arguments.data
        for name, as_said in (("as said", True), ("at once", False))
    }
    if arguments.stack:
        for path in arguments.data:
            results[f"{path.stem}, the stack"] = measure_stack(datasets.read(path), arguments.messages)
    show("Extraction of facts", results, digits=0)
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
