"""A minimal bot for asyncio: searches the user's memories before each reply, and remembers both sides.

    REDIS_URL=redis://127.0.0.1:18379/0 python examples/asyncio_bot.py anna

It reads the messages of one user from standard input, a line each. It needs `pip install ./clients/python` alone.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from uuid import uuid4

from keepsake_client import AsyncClient, KeepsakeError, Memory
from keepsake_client.protocol import Source

SEARCH_DEADLINE_MS = 600


def reply_to(message: str, memories: Sequence[Memory]) -> str:
    """The reply. Your bot calls its model here, with `message` and the memories in the prompt."""
    return f"I remember: {memories[0].content}" if memories else f"Tell me more about “{message}”"


async def remember(ltm: AsyncClient, user: str, content: str, source: Source, session: str) -> None:
    """Publish one message. A failure does not stop the bot."""
    try:
        await ltm.remember(user, content, source=source, session=session)
    except KeepsakeError as error:
        print(f"not remembered: {error}", file=sys.stderr)


async def main(user: str) -> None:
    """Reply to each line of standard input."""
    session = f"session-{uuid4().hex[:8]}"
    async with AsyncClient(os.environ.get("REDIS_URL", "redis://127.0.0.1:18379/0")) as ltm:
        while line := await asyncio.to_thread(sys.stdin.readline):
            if not (message := line.strip()):
                continue
            # Without a response in time this is an empty list: the reply is not delayed any further.
            memories = await ltm.search(user, message, limit=3, deadline_ms=SEARCH_DEADLINE_MS)
            reply = reply_to(message, memories)
            print(reply, flush=True)
            await remember(ltm, user, message, "user", session)
            await remember(ltm, user, reply, "ai", session)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
