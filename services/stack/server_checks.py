"""The checks of a starting stack's servers: what no waiting changes is an error at once, what may pass is one line."""

from __future__ import annotations

from collections.abc import Callable, Collection

import redis
from keepsake_client.errors import Unavailable

from services.long_term_memory.postgres.preconditions import check_database
from services.runtime.errors import CannotStart
from services.runtime.redis import words
from services.runtime.settings import mask_url
from services.stack.processes import POSTGRES, REDIS, SERVERS


class ServerChecks:
    """Checks each server until it can be used.

    Args:
        client: a connection to the pipeline's Redis, with a time-out of a second or two.
        redis_url, database_url: the addresses of the servers.
        provider: the configured embedder's.
        embedded: the names of the servers that the stack itself is starting, which are waited for without a line.
        say: prints a line.
    """

    def __init__(
        self,
        client: redis.Redis,
        redis_url: str,
        database_url: str,
        provider: str,
        embedded: Collection[str],
        say: Callable[[str], None],
    ) -> None:
        self._client = client
        self._redis_url = redis_url
        self._database_url = database_url
        self._provider = provider
        self._embedded = embedded
        self._say = say
        self._unchecked = set(SERVERS)
        self._waiting: set[str] = set()

    def run(self) -> None:
        """Check the servers that could not be used so far; to be called until the stack is ready.

        Raises:
            CannotStart: one cannot be used, whatever time passes.
        """
        for name, check in ((REDIS, self._check_redis), (POSTGRES, self._check_database)):
            if name not in self._unchecked:
                continue
            try:
                check()
            except Unavailable as error:
                if name not in self._embedded and name not in self._waiting:
                    self._waiting.add(name)
                    self._say(f"waiting: {error}")
            else:
                self._unchecked.discard(name)

    def _check_redis(self) -> None:
        named = f"REDIS_URL is {mask_url(self._redis_url)!r}"
        try:
            self._client.ping()
        except redis.AuthenticationError as error:
            raise CannotStart(f"{named}, and Redis refuses it: {words(error)}") from None
        except redis.exceptions.NoPermissionError:
            return  # a user without the right to PING: its own processes tell what else it lacks
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"{named}, and Redis does not answer there: {words(error)}") from None

    def _check_database(self) -> None:
        check_database(self._database_url, self._provider)
