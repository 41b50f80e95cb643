"""Write notes: where each user's last write is in the write-ahead log (WAL), in Redis, for readers of a replica.

A writer notes the position after its commit and before its answer, so a process that reads a replica after the answer,
on whatever host, knows how far the replica must have replayed to have the write.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from hashlib import sha256
from typing import Any, Final, NamedTuple

import redis
from keepsake_client.errors import Unavailable
from redis.exceptions import NoPermissionError

from services.runtime.errors import CannotStart
from services.runtime.logging import redact
from services.runtime.redis import connect

#: Keys of notes begin with it; a hash of the encoded user id follows, 32 hexadecimal digits.
NOTE_PREFIX: Final = "ltm:lsn:"
#: A user without a note has written nothing for this time, on any host.
NOTE_TTL_S: Final = 1_800
#: A search waits for Redis no longer than that; a Redis that is slower keeps no search waiting.
READ_TIMEOUT_S: Final = 0.25
WRITE_TIMEOUT_S: Final = 2.0

# The latest position counts: notes of two writers may arrive in the other order. As texts of one length they compare
# like their numbers; those of another system are another log's.
_NOTE = """
for _, key in ipairs(KEYS) do
  local known = redis.call('GET', key)
  if not known or known < ARGV[1] or string.sub(known, 1, 16) ~= string.sub(ARGV[1], 1, 16) then
    redis.call('SET', key, ARGV[1], 'EX', ARGV[2])
  end
end
"""


class Position(NamedTuple):
    """A position in the write-ahead log.

    Args:
        system: PostgreSQL's identifier of the server and all of its replicas.
        timeline: of the log; a replica that is promoted begins the next one.
        lsn: the log sequence number.
    """

    system: int
    timeline: int
    lsn: int

    def reached_by(self, replayed: Position) -> bool:
        """Whether a replica that has replayed that much has what was written before this position.

        A replica that follows a later timeline has replayed what is left of the earlier ones.
        """
        return self.system == replayed.system and self.timeline <= replayed.timeline and self.lsn <= replayed.lsn

    @property
    def text(self) -> str:
        """As a note holds it."""
        return f"{self.system:016X}{self.timeline:08X}{self.lsn:016X}"

    @classmethod
    def of(cls, text: str) -> Position:
        """The position of a note.

        Raises:
            ValueError: it is none.
        """
        if len(text) != 40:
            raise ValueError("no position of the write-ahead log")
        return cls(int(text[:16], 16), int(text[16:24], 16), int(text[24:], 16))


class WriteNotes:
    """Notes and reads the positions of users' last writes.

    Args:
        url: of the pipeline's Redis.
        on_connect: called with each new connection to it: a Redis that was restarted, or replaced by its replica, may
            have lost notes.
    """

    def __init__(self, url: str, timeout_s: float, on_connect: Callable[[], None] | None = None) -> None:
        self._client: Any = connect(url, timeout_s)
        if on_connect is not None:

            def connected(connection: Any) -> None:
                connection.on_connect()
                on_connect()

            self._client.connection_pool.connection_kwargs["redis_connect_func"] = connected
        self._note = self._client.register_script(_NOTE)

    def check(self) -> None:
        """Check that this user of Redis may read and write notes; one that does not answer is not waited for.

        Raises:
            CannotStart: it may not.
        """
        try:
            self._client.mget([f"{NOTE_PREFIX}check"])
            self._note([f"{NOTE_PREFIX}check"], [Position(0, 0, 0).text, 1])
        except NoPermissionError as error:
            raise CannotStart(
                f"DATABASE_READ_URL is set, and Redis does not permit the notes of writes: {redact(error)}; give this"
                f" user (+evalsha +get +set +mget ~{NOTE_PREFIX}*), as deploy/redis-acl.conf does"
            ) from None
        except redis.RedisError:
            return

    def note(self, users: Collection[str], position: Position) -> None:
        """Note a position that is behind the commit of a write of these users, by their encoded ids.

        Raises:
            Unavailable: Redis has not taken it. The write must not be answered: it is tried again, and is idempotent.
        """
        try:
            self._note([_key(user) for user in users], [position.text, NOTE_TTL_S])
        except redis.RedisError as error:
            raise Unavailable(f"Redis has not taken the note of a write: {redact(error)}") from error

    def latest(self, users: Collection[str]) -> list[Position]:
        """The positions of the last writes of these users, of those that have written within `NOTE_TTL_S`.

        Raises:
            redis.RedisError: Redis does not answer.
            ValueError: what is there is no note.
        """
        found = self._client.mget([_key(user) for user in users])
        return [Position.of(raw.decode()) for raw in found if raw is not None]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _key(user: str) -> str:
    """The key of a user's note; it does not tell the user."""
    return f"{NOTE_PREFIX}{sha256(user.encode()).hexdigest()[:32]}"
