"""Open-loop load by HTTP: every request is sent when it is due, answered ones before it or not.

The generator is a process of its own, `python -m bench.harness.http_load`: it reads a plan on stdin and writes what
happened to stdout, as `bench.harness.load` does for the wire. It knows httpx and nothing of Keepsake.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from bench.harness.load import ROOT

#: Between the attempts at a request that is repeated.
RETRY_AFTER_S = 0.1
TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Call:
    """One request.

    Args:
        name: tells it from others.
        due: when, in seconds after the beginning.
        path: of a POST.
        retry_s: for how long it is repeated, with the same headers, until an answer says 2xx; 0 sends it once.
    """

    name: str
    due: float
    path: str
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    retry_s: float = 0


@dataclass(frozen=True)
class Answer:
    """What became of a request; moments in seconds since 1970.

    Args:
        status: of its last answer; 0 where its last attempt had none.
        partial: whether the answer says so.
        attempts: how often it was sent.
    """

    name: str
    sent_at: float
    answered_at: float
    status: int
    partial: bool
    attempts: int

    @property
    def ok(self) -> bool:
        """Whether it was answered with 2xx."""
        return 200 <= self.status < 300

    @property
    def ms(self) -> float:
        """From just before it was first sent until the whole answer was there."""
        return (self.answered_at - self.sent_at) * 1000


class HTTPLoad:
    """A load that runs in a process of its own, started by the constructor.

    Args:
        url: of the server.
    """

    def __init__(self, url: str, calls: Sequence[Call]) -> None:
        plan = {"url": url, "calls": [asdict(call) for call in sorted(calls, key=lambda call: call.due)]}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.harness.http_load"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._written = ""
        self._reader = threading.Thread(target=self._read, args=(json.dumps(plan),), daemon=True)
        self._reader.start()

    def _read(self, plan: str) -> None:
        self._written = self._process.communicate(plan)[0]

    def answers(self) -> list[Answer]:
        """What became of every request, once the load has ended.

        Raises:
            RuntimeError: the generator failed; its stderr says why.
        """
        self._reader.join()
        if self._process.returncode:
            raise RuntimeError(f"the load generator ended with {self._process.returncode}")
        return [Answer(**fields) for fields in json.loads(self._written)]


async def _generate(plan: dict[str, Any]) -> list[Answer]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=plan["url"], timeout=TIMEOUT_S, limits=limits, trust_env=False) as client:
        begun_at = time.time() + 0.01
        calls = [Call(**fields) for fields in plan["calls"]]
        return await asyncio.gather(*(_send(client, call, begun_at + call.due) for call in calls))


async def _send(client: httpx.AsyncClient, call: Call, due_at: float) -> Answer:
    await asyncio.sleep(max(0.0, due_at - time.time()))
    sent_at, attempts, status, partial = time.time(), 0, 0, False
    while True:
        attempts += 1
        try:
            response = await client.post(call.path, json=call.body, headers=call.headers)
            status, partial = response.status_code, b'"partial":true' in response.content
        except httpx.TransportError:
            status = 0
        if 200 <= status < 300 or time.time() - sent_at > call.retry_s:
            return Answer(call.name, sent_at, time.time(), status, partial, attempts)
        await asyncio.sleep(RETRY_AFTER_S)


def main() -> None:
    """Read a plan on stdin, carry it out, and write what happened to stdout."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    answers = asyncio.run(_generate(json.load(sys.stdin)))
    json.dump([asdict(answer) for answer in answers], sys.stdout)


if __name__ == "__main__":
    main()
