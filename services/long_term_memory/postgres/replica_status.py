"""The status of the replica, as `ltm status` shows it; imports little."""

from __future__ import annotations

import psycopg

from services.long_term_memory.postgres.server_state import ReplicaUnusable, ServerState, read_state


def replica_status(database_url: str, read_url: str, timeout_s: float) -> tuple[bool, str]:
    """Whether the replica can be read, and how far it is behind the primary, or why it cannot be read.

    Args:
        timeout_s: of each server.
    """
    try:
        replica = _state(read_url, timeout_s)
    except psycopg.Error as error:
        return False, _words(error)
    try:
        primary = _state(database_url, timeout_s)
    except psycopg.Error as error:
        return True, f"how far it is behind is not known: the primary: {_words(error)}"
    try:
        replica.check_standby_of(primary)
    except ReplicaUnusable as error:
        return False, str(error)
    if replica.position.timeline != primary.position.timeline:
        return False, "it does not follow the timeline of the primary, after a failover"
    return True, f"{max(0, primary.position.lsn - replica.position.lsn):,} bytes behind"


def _state(url: str, timeout_s: float) -> ServerState:
    options = f"-c statement_timeout={round(timeout_s * 1000)}"
    with psycopg.connect(url, connect_timeout=max(1, round(timeout_s)), options=options, autocommit=True) as connection:
        return read_state(connection)


def _words(error: psycopg.Error) -> str:
    """The error without what libpq says of the address, which may hold a password."""
    return error.diag.message_primary or "it does not answer"
