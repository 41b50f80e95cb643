"""What fails for good is kept with the reason.

Dramatiq's nack moves the copy that was enqueued to the dead letters, and that copy knows nothing of the try that
failed. `ltm dead` reads the letters; tests/integration/test_dead_letters.py pins what both rely on.
"""

from __future__ import annotations

import traceback

import dramatiq
import redis

from tasks.middleware.retries import in_words

#: Only while this process holds the message: another may have it by now, or have done it.
_OVERWRITE = """
if redis.call("sismember", KEYS[1], ARGV[1]) == 1 then
    redis.call("hset", KEYS[2], ARGV[1], ARGV[2])
end
"""


def write_reason(client: redis.Redis, acks: str, bodies: str, message: dramatiq.MessageProxy) -> None:
    """Overwrite the copy that a nack will move with the message as it is now: its tries, the error, its traceback.

    Args:
        acks, bodies: the keys of the set of messages that this process holds, and of the hash with their copies.
    """
    error = message._exception
    if error is not None:
        message.options["error"] = in_words(error)
        message.options["traceback"] = "".join(traceback.format_exception(error, limit=30))
    client.eval(_OVERWRITE, 2, acks, bodies, message.options["redis_message_id"], message.encode())
