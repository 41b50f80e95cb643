"""A script with threads: adds facts about a user concurrently, updates the profile, and asks a question.

    REDIS_URL=redis://127.0.0.1:18379/0 python examples/threaded_script.py anna "Where do I live?" < facts.txt

The facts are the lines of standard input. It needs `pip install ./clients/python` alone.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from keepsake_client import Client, KeepsakeError

THREADS = 4
ADD_DEADLINE_MS = 10_000
SEARCH_DEADLINE_MS = 2_000


def main(user: str, question: str) -> int:
    """Add every fact and print the memories that answer the question; the exit code."""
    facts = [line.strip() for line in sys.stdin if line.strip()]
    with (
        Client(os.environ.get("REDIS_URL", "redis://127.0.0.1:18379/0")) as ltm,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        try:
            # All threads share one client. `add` returns when the fact is stored.
            list(threads.map(lambda fact: ltm.add(user, fact, deadline_ms=ADD_DEADLINE_MS), facts))
            profile = ltm.profile_update(user, {"facts": len(facts)}, deadline_ms=ADD_DEADLINE_MS)
        except KeepsakeError as error:
            print(f"{error.code}: {error}", file=sys.stderr)
            return 1
        print(f"profile: {profile.user_profile}")
        for memory in ltm.search(user, question, limit=3, deadline_ms=SEARCH_DEADLINE_MS):
            print(f"{memory.score:.2f}  {memory.content}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
