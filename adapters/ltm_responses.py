"""An actor's outcome -> a response on the channel."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import dramatiq
import redis
import structlog
from dramatiq.middleware import Middleware
from keepsake_client.errors import KeepsakeError
from keepsake_client.protocol import COUNTERS, LTMRequest, LTMResponse

from services.runtime.errors import Expired
from services.runtime.logging import redact
from services.runtime.queues import INTERACTIVE_QUEUE
from tasks.middleware.retries import in_words

#: A worker that froze for less than this does not answer again what others answered for it; 130 bytes an answer.
ANSWERED_TTL_S = 600
#: Publishes once for a key: a frozen worker's messages are served by others, and by itself when it thaws. A Redis that
#: is full refuses SET alone, and an answer that nobody remembers is better than none.
_PUBLISH_ONCE = """
if redis.pcall('SET', KEYS[1], '', 'NX', 'EX', ARGV[1]) == false then return 0 end
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
"""

log = structlog.get_logger()


class ResponsePublisher(Middleware):
    """Publishes what the actor of a request returned, or why it failed.

    An actor of a request takes the argument `request` and returns the fields of its response. A failure is answered
    when it is final, so this middleware stands before Retries, whose verdict it then sees. What its asker was told in
    words is done with, and no dead letter; nor is a search ever, which nobody would want answered later.

    Args:
        client: connects to the pipeline's Redis.
        channel: where askers listen.
    """

    def __init__(self, client: redis.Redis, channel: str) -> None:
        self._client = client
        self._channel = channel
        self._publish_once = client.register_script(_PUBLISH_ONCE)
        self._begun = threading.local()

    def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
        self._begun.at = time.time()

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: dramatiq.MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        raw = message.kwargs.get("request")
        if raw is None or (exception is not None and not message.failed):
            return
        # The adapter has validated it; validating again would answer nobody if it failed.
        request = LTMRequest.model_construct(**raw)
        if exception is None:
            response = LTMResponse(request_id=request.request_id, user_id=request.user_id, success=True, **result)
        else:
            response = failure(request.request_id, request.user_id, exception)
            if isinstance(exception, KeepsakeError) or message.queue_name == INTERACTIVE_QUEUE:
                message.failed = False
        begun = getattr(self._begun, "at", time.time())
        self.publish(
            response,
            message.message_id,
            type=raw.get("type"),
            queued_ms=_ms(begun - message.kwargs.get("received_at", begun)),
            worked_ms=_ms(time.time() - begun),
        )
        if response.partial:
            self._count("searches_partial")
        elif isinstance(exception, Expired):
            self._count("searches_expired")

    def _count(self, what: str) -> None:
        with suppress(redis.RedisError):  # lost with the Redis that would show it
            self._client.hincrby(COUNTERS, what, 1)

    def publish(self, response: LTMResponse, answers: str | None = None, **times: object) -> None:
        """Publish one response. A Redis that is away takes the asker with it: logged, nothing to retry for.

        Args:
            answers: the id of the actor message; of all answers to one, the first is published.
            times: logged with it.
        """
        try:
            if answers is None:
                self._client.publish(self._channel, response.to_wire())
            elif not self._publish_once(
                [f"ltm:answered:{answers}"], [ANSWERED_TTL_S, self._channel, response.to_wire()]
            ):
                log.info("answered_already", request_id=response.request_id)
                return
        except redis.RedisError as error:
            log.warning("response_not_published", request_id=response.request_id, reason=redact(error))
            return
        log.info(
            "responded", request_id=response.request_id, user_id=response.user_id, success=response.success, **times
        )


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 1)


def failure(request_id: str, user_id: str, error: BaseException) -> LTMResponse:
    """The response that says why a request failed; what is not ours to explain is `internal`."""
    return LTMResponse(request_id=request_id, user_id=user_id, success=False, error=in_words(error))
