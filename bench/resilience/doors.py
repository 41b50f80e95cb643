"""Load through all doors at once: is the wire the slower for them, and is anything lost when the gateway is killed?

`python -m bench.resilience.doors [--rounds 3] [--seconds 20] [--json PATH]`

Starts a stack and sends it, by turns, the same load in two ways: by the wire alone, and by the wire, the HTTP API and
the OpenAI-compatible proxy, whose upstream is a scripted server. Both have a backlog of messages to index. A chat by
the proxy is, by the wire, a search and two messages. Then events and adds are sent by HTTP, each with an
Idempotency-Key and repeated until it is answered with 2xx, while the gateway is killed again and again: whatever was
acknowledged must be found afterwards, once. It measures: the exit code is 0 whatever it finds.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
from keepsake_client.protocol import COUNTERS

from bench.harness.http_load import Answer, Call, HTTPLoad
from bench.harness.llm_server import LLMServer, Raw
from bench.harness.load import Event, Load, poisson
from bench.harness.memory_usage import memory_by_process
from bench.harness.outcomes import FAULTS, summary
from bench.harness.stack import Stack, running_stack
from bench.harness.statistics import percentiles
from bench.harness.tables import show, write_json
from bench.harness.texts import TextGenerator
from bench.harness.workload import backlog, message_event, run_with_progress, search_event, user_id
from services.stack.processes import CHAT, GATEWAY, MEMORY

USERS = 20
BUDGET_MS = 800
RETRY_S = 30.0
IDLE_WITHIN_S = 120.0
#: In the content of what is written by HTTP.
MARK = re.compile(r"mark-[0-9a-f]{32}")
#: The answer of the scripted upstream, as a stream.
UPSTREAM = Raw(
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"role":"assistant","content":"I see."},"finish_reason":null}]}\n\n'
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},'
    b'"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
    "text/event-stream",
)


class Doors:
    """The loads on one stack, and their figures.

    Args:
        given: the command's options.
    """

    def __init__(self, stack: Stack, given: argparse.Namespace) -> None:
        self._stack = stack
        self._given = given
        self._random = random.Random(given.seed)
        self._texts = TextGenerator(given.seed, None)
        self.figures: dict[str, dict[str, float]] = {}
        self.memory: dict[str, dict[str, float]] = {}

    def fill(self) -> None:
        """Have every user's memories indexed."""
        Load(self._stack.wire, [], self._messages(self._given.memories * USERS)).result()
        self._stack.wait_until_indexed()
        self._measure_memory("idle")

    def side_by_side(self, number: int) -> None:
        """One round: the same load by the wire alone and through all doors, each on a backlog of its own."""
        name = f"round {number}"
        moments = [poisson(rate, self._given.seconds, self._random) for rate in self._given.rates]
        ways = [self._by_wire, self._by_doors]
        for way in ways if number % 2 else reversed(ways):  # the first one finds the caches colder
            self._stack.wait_until_indexed()
            way(name, moments)
        self._measure_memory(name)

    def killed(self) -> dict[str, float]:
        """Writes by HTTP while the gateway is killed, and searches by the wire."""
        given = self._given
        self._stack.wait_until_indexed()
        writes = [self._write(due) for due in poisson(given.writes, given.seconds, self._random)]
        searches = [self._search(due) for due in poisson(given.rates[0], given.seconds, self._random)]
        load, http = Load(self._stack.wire, searches), HTTPLoad(self._stack.ltm_up.gateway_url, writes)
        killer = threading.Thread(target=self._kill, daemon=True)
        killer.start()
        result = run_with_progress(load, "while the gateway is killed")
        answers = http.answers()
        killer.join()
        self.figures["while the gateway is killed: wire"] = summary(result.outcomes, BUDGET_MS)
        _, pending = self._stack.wait_until_idle(IDLE_WITHIN_S)
        self._measure_memory("after the kills")
        return {**self._verified(answers), "still pending": sum(pending.values())}

    def counters(self) -> dict[str, float]:
        """What the gateway has counted."""
        with self._stack.connect() as client:
            counted: Any = client.hgetall(COUNTERS)
        names = ("proxy_", "gateway_")
        return {name.decode(): int(count) for name, count in counted.items() if name.decode().startswith(names)}

    def _by_wire(self, name: str, moments: list[list[float]]) -> None:
        chats = moments[2]
        events = [self._search(due) for due in (*moments[0], *moments[1], *chats)]
        events += [message_event(due, self._user(), turn, self._texts.statement(0)) for due in chats for turn in (0, 1)]
        load = Load(self._stack.wire, events, self._messages(self._given.backlog))
        self.figures[f"{name}, by wire alone"] = summary(run_with_progress(load, name).outcomes, BUDGET_MS)

    def _by_doors(self, name: str, moments: list[list[float]]) -> None:
        url = self._stack.ltm_up.gateway_url
        load = Load(self._stack.wire, [self._search(d) for d in moments[0]], self._messages(self._given.backlog))
        http = HTTPLoad(url, [self._http_search(due) for due in moments[1]])
        chats = HTTPLoad(url, [self._chat(due) for due in moments[2]])
        self.figures[f"{name}, all doors: wire"] = summary(run_with_progress(load, name).outcomes, BUDGET_MS)
        self.figures[f"{name}, all doors: HTTP"] = http_summary(http.answers())
        self.figures[f"{name}, all doors: proxy"] = http_summary(chats.answers())

    def _kill(self) -> None:
        kills = self._given.kills
        for _ in range(kills):
            time.sleep(self._given.seconds / (kills + 1))
            os.kill(self._stack.pids()[GATEWAY], signal.SIGKILL)

    def _verified(self, answers: list[Answer]) -> dict[str, float]:
        with psycopg.connect(self._stack.database_url) as connection:
            rows = connection.execute("SELECT content FROM memories WHERE content LIKE '%mark-%'").fetchall()
        found = Counter(mark for (content,) in rows for mark in MARK.findall(content))
        acknowledged = [answer for answer in answers if answer.ok]
        return {
            "written": len(answers),
            "acknowledged": len(acknowledged),
            "  of these repeated": sum(answer.attempts > 1 for answer in acknowledged),
            "  longest to be acknowledged, s": max((answer.ms for answer in acknowledged), default=0) / 1000,
            "given up": len(answers) - len(acknowledged),
            "LOST": sum(not found[answer.name] for answer in acknowledged),
            "TWICE": sum(count > 1 for count in found.values()),
            "UNKNOWN": len(found.keys() - {answer.name for answer in answers}),
        }

    def _measure_memory(self, name: str) -> None:
        by_process = memory_by_process(self._stack)
        self.memory[name] = by_process[GATEWAY]

    def _messages(self, size: int) -> list[str]:
        return backlog(size, USERS, self._texts)

    def _user(self) -> int:
        return self._random.randrange(USERS)

    def _search(self, due: float) -> Event:
        user = self._user()
        return search_event(due, user, self._texts.query(user), BUDGET_MS)

    def _http_search(self, due: float) -> Call:
        user = self._user()
        body = {"user_id": user_id(user), "query": self._texts.query(user), "limit": 5, "deadline_ms": BUDGET_MS}
        return Call(uuid.uuid4().hex, due, "/v1/memories/search", body)

    def _chat(self, due: float) -> Call:
        user = self._user()
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": self._texts.query(user)}]}
        headers = {"X-Keepsake-User": user_id(user), "X-Keepsake-Session": "doors"}
        return Call(uuid.uuid4().hex, due, "/openai/v1/chat/completions", body, headers)

    def _write(self, due: float) -> Call:
        """An event, or every third time an add."""
        user, mark = self._user(), f"mark-{uuid.uuid4().hex}"
        body = {"user_id": user_id(user), "content": f"{self._texts.statement(user)} {mark}"}
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        if self._random.randrange(3):
            return Call(mark, due, "/v1/events", {**body, "source": "user"}, headers, RETRY_S)
        return Call(mark, due, "/v1/memories", {**body, "deadline_ms": 5_000}, headers, RETRY_S)


def http_summary(answers: list[Answer]) -> dict[str, float]:
    """The figures of a load by HTTP, by the names of `summary`."""
    took = [answer.ms for answer in answers if answer.ok]
    return {
        "asked": len(answers),
        "answered": len(took),
        **percentiles(took),
        "max": max(took, default=float("nan")),
        "late": sum(ms > BUDGET_MS for ms in took),
        "partial": sum(answer.partial for answer in answers),
        "expired": sum(answer.status == 504 for answer in answers),
        "failed": sum(not answer.ok and answer.status not in (0, 504) for answer in answers),
        "unanswered": sum(not answer.status for answer in answers),
    }


def wire_faults(figures: dict[str, dict[str, float]], way: str) -> dict[str, float]:
    """The faults of the wire's requests, summed over all rounds of one way."""
    rounds = [of for name, of in figures.items() if name.endswith(way)]
    return {"asked": sum(of["asked"] for of in rounds), **{f: sum(of.get(f, 0) for of in rounds) for f in FAULTS}}


def options() -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument(
        "--rates", type=float, nargs=3, default=[10.0, 6.0, 4.0], help="a second: by wire, HTTP and proxy"
    )
    parser.add_argument("--backlog", type=int, default=2_000, help="messages that wait to be indexed")
    parser.add_argument("--memories", type=int, default=100, help="of each user, before the first load")
    parser.add_argument("--writes", type=float, default=15.0, help="a second, while the gateway is killed")
    parser.add_argument("--kills", type=int, default=4, help="fewer than five, which within a minute end `ltm up`")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    given = options()
    with (
        LLMServer(UPSTREAM) as upstream,
        running_stack(
            without=(CHAT, MEMORY),
            durable=True,
            CHAT_BASE_URL=upstream.url,
            OPENAI_API_KEY="any",
            LTM_GATEWAY_RATE="0",
        ) as stack,
    ):
        doors = Doors(stack, given)
        doors.fill()
        for number in range(1, given.rounds + 1):
            doors.side_by_side(number)
        verified = doors.killed()
        counters = doors.counters()
    show("latencies in ms, and what should be 0", doors.figures, 0)
    ways = {way: wire_faults(doors.figures, way) for way in ("by wire alone", "all doors: wire")}
    show("requests by the wire, all rounds", ways, 0)
    show("written by HTTP while the gateway is killed", {name: {"": of} for name, of in verified.items()}, 1)
    print("counted by the gateway:", counters or "nothing")
    show("the gateway's memory, megabytes", doors.memory, 0)
    figures = {"loads": doors.figures, "kills": verified, "counters": counters, "gateway_mb": doors.memory}
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
