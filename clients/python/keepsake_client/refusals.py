"""Refusals: errors by which Redis refuses every write, whichever it is."""

from __future__ import annotations

import re

from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

#: Full; a read-only replica; without its disk or its replicas; a blocking command as the server becomes a replica.
#: Redis 6.2 puts the error of a command in a script behind words of its own, redis-py's asyncio pipeline its arguments.
_REFUSAL = re.compile(
    r"""[('"]*(?:ERR Error running script.* -)?(?:OOM|READONLY|MISCONF|NOREPLICAS|UNBLOCKED force)\b""", re.DOTALL
)


def refuses_writes(error: BaseException) -> bool:
    """Whether Redis refuses all writes for now, so that any other would have failed too."""
    if isinstance(error, OutOfMemoryError | ReadOnlyError):
        return True
    # redis-py puts a pipeline's command, which has contents, before the server's own message.
    reason = str(error).rpartition(" of pipeline caused error: ")[2]
    return isinstance(error, ResponseError) and _REFUSAL.match(reason) is not None
