"""Verification of a fault run: what was acknowledged against what is stored, indexed and answered."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from keepsake_client.protocol import conversation_key

from bench.harness.responses import Response
from bench.harness.stack import Stack
from bench.resilience.fault_workload import MARK, USERS, Operation, Sent
from bench.resilience.log_inspection import response_lines


@dataclass(frozen=True)
class StoredState:
    """The state of servers and logs once the stack is idle.

    Args:
        stored: the message_ids of the conversations by the mark in their content.
        memories: how often each (user, mark) occurs among the memories.
        message_ids: how often each message_id occurs among the memories.
        updates: how often each update occurs in the history of profiles, by request_id.
        keys: the keys of all profiles.
        wrong_versions: the number of profiles whose version is not the number of their changes.
        dead: the marks in the dead letters.
        logged: how often the workers' logs report a response, by mark of the request.
    """

    stored: dict[str, list[str]]
    memories: Counter[tuple[str, str]]
    message_ids: Counter[str]
    updates: Counter[str]
    keys: set[str]
    wrong_versions: int
    dead: set[str]
    logged: Counter[str]


def read_state(stack: Stack) -> StoredState:
    """Read the state that a run left in Redis, the database and the logs."""
    memories: Counter[tuple[str, str]] = Counter()
    message_ids: Counter[str] = Counter()
    with psycopg.connect(stack.database_url) as connection:
        query = (
            "SELECT user_id, content, payload ->> 'message_id' FROM memories m JOIN users u ON u.number = user_number"
            " WHERE kind = 'message'"
        )
        for user, content, message_id in connection.execute(query):
            memories.update((user, mark) for mark in MARK.findall(content))
            if message_id is not None:
                message_ids[message_id] += 1
        # What extraction wrote was not requested; it counts among the changes of a version.
        history = connection.execute("SELECT request_id FROM profile_history WHERE request_id IS NOT NULL").fetchall()
        keys = connection.execute("SELECT jsonb_object_keys(profile) FROM profiles").fetchall()
        query = (
            "SELECT count(*) FROM profiles p"
            " WHERE version <> (SELECT count(*) FROM profile_history h WHERE h.user_id = p.user_id)"
        )
        row = connection.execute(query).fetchone()
    return StoredState(
        _stored(stack),
        memories,
        message_ids,
        Counter(str(request_id) for (request_id,) in history),
        {str(key) for (key,) in keys},
        row[0] if row else 0,
        {mark for body in stack.dead_letters() for mark in MARK.findall(body.decode())},
        Counter(mark for line in response_lines(stack) for mark in set(MARK.findall(line))),
    )


def _stored(stack: Stack) -> dict[str, list[str]]:
    client: Any = stack.connect()
    stored: dict[str, list[str]] = {}
    for number in range(USERS):
        for entry in client.lrange(conversation_key(f"u{number:02d}"), 0, -1):
            message = json.loads(entry)
            for mark in MARK.findall(message["content"]):
                stored.setdefault(mark, []).append(message["message_id"])
    return stored


def verify(sent: Sent, state: StoredState, responses: Mapping[str, Sequence[Response]]) -> dict[str, float]:
    """The figures of one run, by name. Those in capitals break a promise of docs/reliability.md unless they are 0.

    Args:
        responses: by request_id.
    """
    failed = {mark for mark, found in responses.items() if all(one.error for one in found)} | state.dead
    by_mark = Counter(mark for _, mark in state.memories.elements())
    return {
        **_of_messages(sent.of("message"), state, by_mark),
        **_of_adds(sent.of("add"), by_mark, failed),
        **_of_updates(sent.of("update"), state, failed),
        **_of_requests(sent.of("add", "update", "search"), state, responses, failed),
        "  MEMORIES OF THE WRONG USER": sum(
            number for (user, mark), number in state.memories.items() if mark.partition(":")[0] != user
        ),
        "pushes of unknown outcome": len(sent.unknown),
    }


def _of_messages(messages: Sequence[Operation], state: StoredState, by_mark: Counter[str]) -> dict[str, float]:
    stored = {message_id: mark for mark, message_ids in state.stored.items() for message_id in message_ids}
    dead = sum(mark in state.dead for mark in stored.values())
    return {
        "messages pushed": len(messages),
        "  pushed and not stored": sum(one.id not in state.stored for one in messages),
        "  pushed once, stored twice": sum(len(message_ids) > 1 for message_ids in state.stored.values()),
        "messages stored": len(stored),
        "  indexed": sum(message_id in state.message_ids for message_id in stored),
        "  LOST": sum(message_id not in state.message_ids for message_id in stored) - dead,
        "  DUPLICATED": sum(
            state.message_ids[message_id] > 1 or by_mark[mark] > len(state.stored[mark])
            for message_id, mark in stored.items()
        ),
        "  dead letters": dead,
    }


# Names of figures are unique by trailing spaces: a table shows them as they are.
def _of_adds(adds: Sequence[Operation], by_mark: Counter[str], failed: set[str]) -> dict[str, float]:
    return {
        "adds pushed": len(adds),
        "  LOST ": sum(by_mark[one.id] == 0 and one.id not in failed for one in adds),
        "  DUPLICATED ": sum(by_mark[mark] > 1 for mark in by_mark if ":add:" in mark),
        "  refused with an error": sum(one.id in failed and by_mark[one.id] == 0 for one in adds),
    }


def _of_updates(updates: Sequence[Operation], state: StoredState, failed: set[str]) -> dict[str, float]:
    return {
        "profile updates pushed": len(updates),
        "  LOST  ": sum(
            (state.updates[one.id] == 0 or one.id not in state.keys) and one.id not in failed for one in updates
        ),
        "  DUPLICATED  ": sum(number > 1 for number in state.updates.values()) + state.wrong_versions,
        "  refused with an error ": sum(one.id in failed and state.updates[one.id] == 0 for one in updates),
    }


def _of_requests(
    requests: Sequence[Operation], state: StoredState, responses: Mapping[str, Sequence[Response]], failed: set[str]
) -> dict[str, float]:
    received = [one for found in responses.values() for one in found]
    unanswered = [one for one in requests if one.id not in responses and one.id not in state.dead]
    expired = sum(any((a.error or "").startswith("expired") for a in responses.get(one.id, ())) for one in requests)
    with_errors = sum(one.id in failed for one in requests if one.id in responses)
    return {
        "requests pushed": len(requests),
        "  answered": sum(one.id in responses and one.id not in failed for one in requests),
        "  of these partial (by words alone)": sum(one.partial for one in received),
        "  expired": expired,
        "  other errors": with_errors - expired,
        "  dead letters ": sum(one.id in state.dead for one in requests),
        "  response not received: Redis or the subscription was down": sum(
            one.id in state.logged for one in unanswered
        ),
        "  NEVER ANSWERED, NOT REPORTED": sum(one.id not in state.logged for one in unanswered),
        "  answered twice": sum(len(found) > 1 for found in responses.values()),
        "  ANSWERS TO THE WRONG USER": sum(one.problem is not None for one in received),
    }
