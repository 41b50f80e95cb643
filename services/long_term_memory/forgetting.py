"""Forgetting: deletes everything that is kept of a user, in PostgreSQL and in Redis."""

from __future__ import annotations

from psycopg_pool import ConnectionPool


class Forgetting:
    """Deletes everything that is kept of one user."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def forget(self, user_id: str, at: float, *, dry_run: bool) -> int:
        """Delete everything of the user; how many memories there were."""
        raise NotImplementedError
