"""Cases: searches whose best memory should have been another one, each as a line of JSON that `bench.chats` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from keepsake_client import AsyncClient
from keepsake_client.protocol import Memory, clean
from keepsake_client.turns import Candidate

#: The newest messages of a user that a case has.
MAX_MEMORIES: Final = 5_000
PAGE: Final = 100
#: The share of messages with Chinese characters from which a chat is one in Chinese, and up to which it is in English.
_CHINESE: Final = 0.8
_ENGLISH: Final = 0.2


async def case_of(
    ltm: AsyncClient,
    user_id: str,
    scope: Mapping[str, Any],
    question: Mapping[str, Any],
    wanted: Candidate,
) -> dict[str, Any]:
    """A user's messages with one question, in the format of the users of tests/data/bilingual.json.

    A fact that is wanted is answered by the messages that it was found in: a case has no facts. Messages in the same
    words answer as well, as a search returns one of them.

    Args:
        scope: `agent_id` and `all_agents` of the search.
        question: what the search asked: `id`, `question`, `asked_at`, and its `options`.
        wanted: the memory that should have been first.

    Raises:
        KeepsakeError: the memories could not be read.
    """
    memories = await _newest(ltm, user_id, scope)
    answers = [wanted.id]
    if wanted.kind == "fact":
        [fact] = (await ltm.memory_get(user_id, wanted.id)).memories
        answers = list(fact.metadata.get("evidence", []))
    for memory_id in set(answers) - {memory.id for memory in memories}:  # older than the newest ones
        memories += (await ltm.memory_get(user_id, memory_id)).memories
    memories.sort(key=lambda memory: memory.timestamp)
    right = {memory.content.strip().casefold() for memory in memories if memory.id in answers}
    answers = [memory.id for memory in memories if memory.content.strip().casefold() in right]
    return {
        "user_id": user_id,
        "language": language_of([memory.content for memory in memories]),
        "memories": [_message(memory) for memory in memories],
        "questions": [{**question, "kind": "case", "answers": answers}],
    }


async def _newest(ltm: AsyncClient, user_id: str, scope: Mapping[str, Any]) -> list[Memory]:
    found: list[Memory] = []
    agent_id, all_agents = scope.get("agent_id"), bool(scope.get("all_agents"))
    async for page in ltm.memory_pages(user_id, agent_id=agent_id, all_agents=all_agents, limit=PAGE):
        found += page
        if len(found) >= MAX_MEMORIES:
            break
    return found[:MAX_MEMORIES]


def _message(memory: Memory) -> dict[str, Any]:
    fields = {
        "id": memory.id,
        "session": memory.metadata.get("session_id"),
        "timestamp": memory.timestamp,
        "source": memory.source,
        "content": memory.content,
        "speaker": memory.speaker and memory.speaker.model_dump(exclude_none=True),
        "agent_id": memory.agent_id,
    }
    return {name: value for name, value in fields.items() if value is not None or name == "session"}


def language_of(contents: Sequence[str]) -> str:
    """The language of a chat, as the benchmarks group by it: `zh`, `en` or `mixed`."""
    chinese = sum(any("\u4e00" <= char <= "\u9fff" for char in content) for content in contents)
    share = chinese / max(1, len(contents))
    return "zh" if share >= _CHINESE else "en" if share <= _ENGLISH else "mixed"


def line_of(case: Mapping[str, Any]) -> bytes:
    """A case as one line."""
    return json.dumps(clean(dict(case)), ensure_ascii=False).encode() + b"\n"
