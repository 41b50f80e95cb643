"""The state of the provider, the same for all owners: a circuit breaker, with what stops it for good.

`working`; `waiting` until a time, after a failure that may pass; `over_budget` until a time; `stopped` by a provider
that refuses calls as they are configured, until an operator resumes or the process is started anew. And `paused`,
beside those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

#: How long all wait after a failure, at first; twice as long after each further one, up to the longest.
BACKOFF_S: Final = 10
MAX_BACKOFF_S: Final = 600
#: The longest time that a provider may ask to be left alone for.
MAX_RETRY_AFTER_S: Final = 3_600
#: Unusable answers in a row after which all wait. A message that cannot be read takes seven: 20, 10, 5, 2, 1, 1, 1.
UNUSABLE_IN_A_ROW: Final = 10
#: How long all wait where the budget is used up: a larger one is then noticed soon, and midnight too.
OVER_BUDGET_S: Final = 60
#: Statuses that depend on the key and the model alone, not on a batch: no authorization, no such model.
NEVER_OF_A_BATCH: Final = frozenset({401, 404})

_MAY_GO_ON = (
    "SELECT CASE WHEN paused OR state = 'stopped' OR coalesce(waits_until > now(), false) THEN 0"
    " WHEN failures > 0 OR refused_batch IS NOT NULL THEN 1 END FROM extraction_state"
)
_ADD_ROW = "INSERT INTO extraction_state DEFAULT VALUES ON CONFLICT DO NOTHING"
_LOCKED = "SELECT state, failures, coalesce(waits_until > now(), false), refused_batch FROM extraction_state FOR UPDATE"
_SUCCESS = (
    "UPDATE extraction_state SET state = 'working', reason = NULL, since = now(), waits_until = NULL, failures = 0,"
    " refused_batch = NULL WHERE failures > 0 OR state IN ('waiting', 'over_budget') OR refused_batch IS NOT NULL"
)
_WAIT = (
    "UPDATE extraction_state SET since = CASE WHEN state = %(state)s THEN since ELSE now() END, state = %(state)s,"
    " reason = %(reason)s, failures = %(failures)s, waits_until = greatest(waits_until, now() + %(seconds)s *"
    " interval '1 s')"
)
_STOP = (
    "UPDATE extraction_state SET state = 'stopped', reason = %s, since = now(), waits_until = NULL, failures = 0,"
    " refused_batch = NULL"
)

log = structlog.get_logger()


def leases_allowed(connection: Connection[TupleRow], capacity: int) -> int:
    """How many leases there may be: none while all wait, one after a failure to find out, or as many as there can."""
    row = connection.execute(_MAY_GO_ON).fetchone()
    return capacity if row is None or row[0] is None else min(row[0], capacity)


def succeeded(connection: Connection[TupleRow]) -> None:
    """Note that the provider gave an answer of use."""
    connection.execute(_SUCCESS)


def failed(connection: Connection[TupleRow], reason: str, retry_after_s: float | None) -> None:
    """Note that the provider did not serve a call, and have all wait.

    Args:
        reason: without contents.
        retry_after_s: as the provider asks for it.
    """
    with connection.transaction():
        state, failures, waits, _ = _lock(connection)
        if state == "stopped":
            return
        # Calls that fail together are one failure.
        failures = max(failures, 1) if waits else failures + 1
        seconds = min(BACKOFF_S * 2.0 ** min(failures - 1, 10), MAX_BACKOFF_S)
        if retry_after_s is not None:
            seconds = min(max(retry_after_s, seconds), MAX_RETRY_AFTER_S)
        _wait(connection, "waiting", reason, failures, seconds)
    if state != "waiting":
        log.warning("extraction_waits", reason=reason)


def unusable(connection: Connection[TupleRow], reason: str) -> None:
    """Note an unusable answer; after many in a row, all wait: it is the provider then, not the messages."""
    with connection.transaction():
        state, failures, waits, _ = _lock(connection)
        if state == "stopped" or waits:
            return
        failures += 1
        over = failures - UNUSABLE_IN_A_ROW
        if over < 0:
            connection.execute("UPDATE extraction_state SET failures = %s", (failures,))
            return
        _wait(connection, "waiting", reason, failures, min(BACKOFF_S * 2.0 ** min(over, 10), MAX_BACKOFF_S))
    if state != "waiting":
        log.warning("extraction_waits", reason=reason)


def refused(connection: Connection[TupleRow], reason: str, status: int, batch: Sequence[int]) -> bool:
    """Note that the provider refused a batch; True where that may be by what is in it, so that a smaller one may pass.

    Two refusals of different batches, with no answer between them, stop everything; so do two of the same where the
    status does not depend on the batch.

    Args:
        reason: without contents.
        batch: the numbers of its messages.
    """
    with connection.transaction():
        state, _, _, last = _lock(connection)
        if state == "stopped":
            return False
        stops = last is not None and (status in NEVER_OF_A_BATCH or not set(last) & set(batch))
        if stops:
            connection.execute(_STOP, (reason,))
        else:
            connection.execute("UPDATE extraction_state SET refused_batch = %s", (list(batch),))
    if stops:
        log.error("extraction_stopped", reason=reason)
    return not stops and status not in NEVER_OF_A_BATCH


def over_budget(connection: Connection[TupleRow]) -> None:
    """Have all wait, as the tokens of the day are used up."""
    with connection.transaction():
        state, failures, _, _ = _lock(connection)
        if state == "stopped":
            return
        _wait(connection, "over_budget", None, failures, OVER_BUDGET_S)
    if state != "over_budget":
        log.warning("extraction_over_budget")


def start_again(connection: Connection[TupleRow]) -> None:
    """Go on where a process starts: it may have another key, model or budget than the one that stopped."""
    connection.execute(
        "UPDATE extraction_state SET state = 'working', reason = NULL, since = now(), waits_until = NULL, failures = 0,"
        " refused_batch = NULL WHERE state IN ('stopped', 'over_budget')"
    )


def _lock(connection: Connection[TupleRow]) -> tuple[str, int, bool, list[int] | None]:
    """State, failures, whether all wait, and the batch that was refused last; the row is locked."""
    connection.execute(_ADD_ROW)
    row = connection.execute(_LOCKED).fetchone()
    assert row is not None  # noqa: S101 - just inserted, and never deleted
    return row[0], row[1], row[2], row[3]


def _wait(connection: Connection[TupleRow], state: str, reason: str | None, failures: int, seconds: float) -> None:
    connection.execute(_WAIT, {"state": state, "reason": reason, "failures": failures, "seconds": seconds})
