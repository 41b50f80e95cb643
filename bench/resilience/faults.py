"""Is anything lost, doubled or told to the wrong person? `python -m bench.resilience.faults [--seeds 5] [--seed N]
[--json PATH]`.

Starts the stack on real servers, says and asks at a steady rate, and meanwhile kills, stops and restarts every process
of it on a schedule that the seed decides. Then it waits for quiet and compares what was said and asked with what is
there. It measures: the exit code is 0 whatever it finds. A quick look: `--seeds 1 --messages 300 --seconds 40`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psycopg
from keepsake_client.protocol import conversation_key

from bench.harness.common import show, write_json
from bench.resilience.faultlib import Counts, Ear, Pusher, Stack, longest_gap, running_stack, show_tracebacks
from bench.resilience.faultplan import SECONDS, Fault, schedule
from services.runtime.queues import NAMESPACE, QUEUES
from services.runtime.redis import connect

USERS = 50
#: For so many messages there are 300 adds, 300 profile updates and 1,000 searches.
MESSAGES = 3_000
DEADLINE_MS = 1_000
QUIET_WITHIN_S = 60.0
#: After a fault, its consequences are looked for until the next one, or so long at the most.
LOOKED_FOR_S = 30.0
TOPICS = ("tea in the garden", "the cat Mochi", "the train to Osaka", "a song about rain", "my sister's new flat")

What = Literal["message", "add", "update", "search"]


@dataclass(frozen=True)
class Said:
    """One thing that is sent.

    Args:
        due: when, in seconds after the beginning.
        number: its own among all that one run sends.
    """

    due: float
    what: What
    user: str
    number: int

    @property
    def id(self) -> str:
        """Its request_id, or the mark in its content: nothing else has it."""
        return f"{self.user}:{self.what}:{self.number:06d}"

    @property
    def content(self) -> str:
        """A text that nobody else says."""
        return f"I told you about {TOPICS[self.number % len(TOPICS)]}. [{self.id}]"

    def body(self) -> str:
        """As it goes over the wire."""
        if self.what == "message":
            return json.dumps({"user_id": self.user, "content": self.content, "meta": {"session_id": "s1"}})
        data: dict[str, dict[str, Any]] = {
            "add": {"content": self.content},
            "update": {"updates": {self.id: self.number}},
            "search": {"query": TOPICS[self.number % len(TOPICS)], "limit": 5, "deadline_ms": DEADLINE_MS},
        }
        kind = "profile_update" if self.what == "update" else self.what
        return json.dumps({"request_id": self.id, "type": kind, "user_id": self.user, "data": data[self.what]})


_MARK = re.compile(r"\bu\d+:(?:message|add|update|search):\d{6}\b")


def plan(seed: int, messages: int, seconds: float) -> list[Said]:
    """What is sent, in order: each kind evenly over the run, by users that the seed decides."""
    rng = random.Random(seed)
    scale = messages / MESSAGES
    numbers: dict[What, int] = {
        "message": messages,
        "add": round(300 * scale),
        "update": round(300 * scale),
        "search": round(1_000 * scale),
    }
    said = [
        Said((place + rng.random()) * seconds / most, what, f"u{rng.randrange(USERS):02d}", 0)
        for what, most in numbers.items()
        for place in range(most)
    ]
    said.sort(key=lambda one: one.due)
    return [Said(one.due, one.what, one.user, number) for number, one in enumerate(said)]


def somebody_elses(response: dict[str, Any]) -> str | None:
    """How a response holds what belongs to another user than the asker, whose request_id begins with their name."""
    user = str(response.get("request_id")).partition(":")[0]
    if response.get("user_id") != user:
        return f"answered to {response.get('user_id')}"
    marks = _MARK.findall(json.dumps([response.get("memories"), response.get("user_profile")]))
    strangers = {mark.partition(":")[0] for mark in marks} - {user}
    return f"shows what belongs to {', '.join(sorted(strangers))}" if strangers else None


@dataclass
class Sent:
    """What was sent.

    Args:
        known: acknowledged by Redis.
        unknown: nobody knows whether Redis took it; sent again as another.
    """

    known: list[Said] = field(default_factory=list)
    unknown: list[Said] = field(default_factory=list)

    def of(self, *kinds: What) -> list[Said]:
        """What Redis acknowledged of these kinds."""
        return [one for one in self.known if one.what in kinds]


class Speaker(threading.Thread):
    """Sends what is planned when it is due, and what could not be sent then as soon as it can be."""

    def __init__(self, stack: Stack, planned: Sequence[Said]) -> None:
        super().__init__(name="speaker", daemon=True)
        self.stopped = threading.Event()
        self.sent = Sent()
        self._pusher = Pusher(stack.redis_url, self.stopped)
        self._queues = {"message": stack.settings.user_input_queue}
        self._requests = stack.settings.ltm_requests_queue
        self._planned = planned
        self._next_number = len(planned)

    def run(self) -> None:
        begun = time.monotonic()
        for planned in self._planned:
            if self.stopped.wait(max(0.0, begun + planned.due - time.monotonic())):
                return
            said, done = planned, self._send(planned)
            while done is None:
                self.sent.unknown.append(said)
                said = Said(planned.due, planned.what, planned.user, self._next_number)
                self._next_number += 1
                done = self._send(said)
            if done:
                self.sent.known.append(said)

    def _send(self, said: Said) -> bool | None:
        return self._pusher.do("LPUSH", self._queues.get(said.what, self._requests), said.body())


@dataclass(frozen=True)
class Struck:
    """A fault that was done; moments on the monotonic clock."""

    fault: Fault
    began: float
    ended: float


def strike(stack: Stack, fault: Fault) -> Struck:
    """Do it, and wait until it is over."""
    began = time.monotonic()
    match fault.kind:
        case "kill":
            stack.kill(fault.target)
        case "kill child":
            stack.child(fault.target).kill()
        case "restart":
            stack.restart(fault.target)
        case "freeze":
            # Of a worker, what works; its master has nothing to do but to wait.
            process = stack.process(fault.target)
            if process.children():
                process = stack.child(fault.target)
            with stack.frozen(process):
                time.sleep(fault.seconds)
        case "away":
            with stack.away(fault.target):
                time.sleep(fault.seconds)
    return Struck(fault, began, time.monotonic())


def carry_out(stack: Stack, faults: Iterable[Fault]) -> list[Struck]:
    """Do all of them, each at its time."""
    begun = time.monotonic()
    struck = []
    for fault in faults:
        time.sleep(max(0.0, begun + fault.at - time.monotonic()))
        struck.append(strike(stack, fault))
        late = struck[-1].began - begun - fault.at
        print(f"  {struck[-1].began - begun:6.1f} s  {fault}{f'  ({late:.1f} s late)' if late > 1 else ''}", flush=True)
    return struck


@dataclass(frozen=True)
class Found:
    """What is there when all is quiet.

    Args:
        stored: the message_ids of the conversations by the mark in their content.
        memories: user and mark of each memory, with how often it is there; and the same of their message_ids.
        updates: how often each update is in the profiles' history.
        keys: the keys of all profiles.
        wrong_versions: profiles whose version is not the number of their changes.
        dead: the marks of what is among the dead letters.
        told: the marks of requests whose response is in the workers' logs, with how often.
    """

    stored: dict[str, list[str]]
    memories: Counter[tuple[str, str]]
    message_ids: Counter[str]
    updates: Counter[str]
    keys: set[str]
    wrong_versions: int
    dead: set[str]
    told: Counter[str]


def look(stack: Stack) -> Found:
    """Read it from the servers and the logs."""
    client: Any = connect(stack.redis_url)
    stored: dict[str, list[str]] = {}
    for number in range(USERS):
        for entry in client.lrange(conversation_key(f"u{number:02d}"), 0, -1):
            message = json.loads(entry)
            for mark in _MARK.findall(message["content"]):
                stored.setdefault(mark, []).append(message["message_id"])
    memories: Counter[tuple[str, str]] = Counter()
    message_ids: Counter[str] = Counter()
    with psycopg.connect(stack.database_url) as connection:
        query = (
            "SELECT user_id, content, payload ->> 'message_id' FROM memories m JOIN users u ON u.number = user_number"
        )
        for user, content, message_id in connection.execute(query):
            memories.update((user, mark) for mark in _MARK.findall(content))
            if message_id is not None:
                message_ids[message_id] += 1
        history = connection.execute("SELECT request_id FROM profile_history").fetchall()
        keys = connection.execute("SELECT jsonb_object_keys(profile) FROM profiles").fetchall()
        query = (
            "SELECT count(*) FROM profiles p"
            " WHERE version <> (SELECT count(*) FROM profile_history h WHERE h.user_id = p.user_id)"
        )
        row = connection.execute(query).fetchone()
    dead: set[str] = set()
    for queue in QUEUES:
        for raw in client.hvals(f"{NAMESPACE}:{queue}.XQ.msgs"):
            dead.update(_MARK.findall(raw.decode()))
    told: Counter[str] = Counter()
    for _, line in stack.log_lines():
        if '"responded"' in line or '"response_not_published"' in line:
            told.update(set(_MARK.findall(line)))
    return Found(
        stored,
        memories,
        message_ids,
        Counter(str(request_id) for (request_id,) in history),
        {str(key) for (key,) in keys},
        row[0] if row else 0,
        dead,
        told,
    )


def judge(sent: Sent, found: Found, ear: Ear) -> dict[str, float]:
    """The figures of one run, by name."""
    answers = ear.answers
    failed = {mark for mark, heard in answers.items() if all(answer.error for answer in heard)} | found.dead
    by_mark = Counter(mark for _, mark in found.memories.elements())
    ids = {message_id: mark for mark, message_ids in found.stored.items() for message_id in message_ids}
    messages, adds, updates = sent.of("message"), sent.of("add"), sent.of("update")
    requests = sent.of("add", "update", "search")
    dead_messages = sum(1 for message_id, mark in ids.items() if mark in found.dead)
    silent = [one for one in requests if one.id not in answers and one.id not in found.dead]
    expired = sum(any((a.error or "").startswith("expired") for a in answers.get(one.id, ())) for one in requests)
    with_errors = sum(one.id in failed for one in requests if one.id in answers)
    return {
        "messages pushed": len(messages),
        "  pushed and not stored": sum(one.id not in found.stored for one in messages),
        "  pushed once, stored twice": sum(len(message_ids) > 1 for message_ids in found.stored.values()),
        "messages stored": len(ids),
        "  indexed": sum(message_id in found.message_ids for message_id in ids),
        "  LOST": sum(message_id not in found.message_ids for message_id in ids) - dead_messages,
        "  DOUBLED": sum(
            found.message_ids[i] > 1 or by_mark[mark] > len(found.stored[mark]) for i, mark in ids.items()
        ),
        "  dead letters": dead_messages,
        "adds pushed": len(adds),
        "  LOST ": sum(by_mark[one.id] == 0 and one.id not in failed for one in adds),
        "  DOUBLED ": sum(by_mark[mark] > 1 for mark in by_mark if ":add:" in mark),
        "  refused with an error": sum(one.id in failed and by_mark[one.id] == 0 for one in adds),
        "profile updates pushed": len(updates),
        "  LOST  ": sum(
            (found.updates[one.id] == 0 or one.id not in found.keys) and one.id not in failed for one in updates
        ),
        "  DOUBLED  ": sum(number > 1 for number in found.updates.values()) + found.wrong_versions,
        "  refused with an error ": sum(one.id in failed and found.updates[one.id] == 0 for one in updates),
        "requests pushed": len(requests),
        "  answered": sum(one.id in answers and one.id not in failed for one in requests),
        "  of these by words alone": sum(answer.partial for heard in answers.values() for answer in heard),
        "  expired": expired,
        "  other errors": with_errors - expired,
        "  dead letters ": sum(one.id in found.dead for one in requests),
        "  answered while Redis or the asker was away": sum(one.id in found.told for one in silent),
        "  NEVER ANSWERED, NOT REPORTED": sum(one.id not in found.told for one in silent),
        "  answered twice": sum(len(heard) > 1 for heard in answers.values()),
        "  ANSWERS TO THE WRONG USER": sum(1 for heard in answers.values() for answer in heard if answer.problem),
        "  MEMORIES OF THE WRONG USER": sum(
            number for (user, mark), number in found.memories.items() if mark.partition(":")[0] != user
        ),
        "pushes of unknown outcome": len(sent.unknown),
    }


def recovery(struck: Sequence[Struck], ear: Ear, counts: Counts) -> dict[str, dict[str, float]]:
    """By fault: how long it was, and the longest time without a success that began after it, before the next, in s."""
    good = {
        what: [a.at for mark, heard in ear.answers.items() if f":{what}:" in mark for a in heard if not a.error]
        for what in ("search", "add", "update")
    }
    rows = {}
    for number, one in enumerate(struck):
        following = struck[number + 1].began if number + 1 < len(struck) else one.ended + LOOKED_FOR_S
        end = min(following, one.ended + LOOKED_FOR_S)
        rows[f"{number + 1:2d}. {one.fault}"] = {
            "lasted": one.ended - one.began,
            "searches": longest_gap(good["search"], one.ended, end),
            "writes": longest_gap(good["add"] + good["update"], one.ended, end),
            "indexing": longest_gap(counts.grew, one.ended, end),
        }
    return rows


def unasked_deaths(stack: Stack, struck: Sequence[Struck]) -> Counter[str]:
    """Who died more often than it was killed."""
    killed = Counter(one.fault.target for one in struck if one.fault.kind != "freeze")
    return stack.deaths() - killed


def run(seed: int, messages: int, seconds: float, logs: Path | None) -> dict[str, Any]:
    """One run with one seed, and its figures."""
    faults, planned = schedule(seed, seconds), plan(seed, messages, seconds)
    print(f"seed {seed}: {len(planned)} things said or asked in {seconds:.0f} s, {len(faults)} faults:", flush=True)
    with running_stack(keep=logs and logs / f"seed-{seed}", MEMORY_MAX_MESSAGES="100000") as stack:
        ear = Ear(stack.redis_url, stack.settings.ltm_responses_channel, somebody_elses)
        counts, speaker = Counts(stack.database_url), Speaker(stack, planned)
        ear.start()
        ear.listening.wait(timeout=10)
        counts.start()
        speaker.start()
        try:
            struck = carry_out(stack, faults)
            speaker.join()
        finally:
            speaker.stopped.set()
        quiet_after, under_way = stack.wait_for_quiet(QUIET_WITHIN_S)
        counts.stop()
        ear.stop()
        figures = judge(speaker.sent, look(stack), ear)
        tracebacks, deaths = stack.tracebacks(), unasked_deaths(stack, struck)
        errors = Counter(
            str(answer.error).partition(":")[0] for heard in ear.answers.values() for answer in heard if answer.error
        )
        problems = [answer.problem for heard in ear.answers.values() for answer in heard if answer.problem]
    table = recovery(struck, ear, counts)
    for column in ("searches", "writes", "indexing"):
        figures[f"longest time to recover, {column}, s"] = max(row[column] for row in table.values())
    figures["quiet after, s"] = quiet_after
    figures["still under way"] = sum(under_way.values())
    figures["TRACEBACKS IN THE LOGS"] = sum(number.total() for number in tracebacks.values())
    figures["DEATHS NOBODY ASKED FOR"] = deaths.total()
    show(f"seed {seed}: seconds without a success, from the end of each fault on", table, 1)
    print(f"  errors answered: {dict(errors)}  still under way: {under_way}  deaths nobody asked for: {dict(deaths)}")
    print(f"  {', '.join(f'{name.strip()} {value:.0f}' for name, value in figures.items() if name.isupper())}")
    for problem in problems[:10]:
        print(f"  wrong user: {problem}")
    show_tracebacks(tracebacks)
    print(flush=True)
    return {
        "figures": figures,
        "recovery": table,
        "errors": errors,
        "deaths": deaths,
        "tracebacks": tracebacks,
        "schedule": [vars(fault) for fault in faults],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--seeds", type=int, default=5, help="how many, one after the other")
    parser.add_argument("--messages", type=int, default=MESSAGES, help="adds, updates and searches are in proportion")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long they are sent for")
    parser.add_argument("--logs", type=Path, help="keep the logs here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    runs = {
        f"seed {seed}": run(seed, given.messages, given.seconds, given.logs)
        for seed in range(given.seed, given.seed + given.seeds)
    }
    names = list(next(iter(runs.values()))["figures"])
    rows = {name: {seed: one["figures"][name] for seed, one in runs.items()} for name in names}
    show(f"{given.messages} messages of {USERS} users in {given.seconds:.0f} s, and what was done to them", rows, 0)
    write_json(given.json, runs)


if __name__ == "__main__":
    main()
