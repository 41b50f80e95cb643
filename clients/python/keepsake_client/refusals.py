"""Refusals: errors by which Redis refuses every write, whichever it is."""

from __future__ import annotations

import re

from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

_WORDS = {
    "OOM": "it is full",
    "READONLY": "it is a read-only replica",
    "MISCONF": "it cannot write to its disk",
    "NOREPLICAS": "too few of its replicas are up to date",
    "UNBLOCKED": "it becomes a replica",
}
#: Redis 6.2 puts the error of a command in a script behind words of its own, redis-py's asyncio pipeline its arguments.
_REFUSAL = re.compile(
    r"""[('"]*(?:ERR Error running script.* -)?(OOM|READONLY|MISCONF|NOREPLICAS|UNBLOCKED(?= force))\b""", re.DOTALL
)


def refuses_writes(error: BaseException) -> bool:
    """Whether Redis refuses all writes for now, so that any other would have failed too."""
    return refusal(error) is not None


def refusal(error: BaseException) -> str | None:
    """Why Redis refuses all writes for now, without anything of the command; None where it does not."""
    if isinstance(error, OutOfMemoryError):
        return _WORDS["OOM"]
    if isinstance(error, ReadOnlyError):
        return _WORDS["READONLY"]
    # redis-py puts a pipeline's command, which has contents, before the server's own message.
    reason = str(error).rpartition(" of pipeline caused error: ")[2]
    found = _REFUSAL.match(reason) if isinstance(error, ResponseError) else None
    return _WORDS[found[1]] if found else None
