"""ResponsePublisher: Dramatiq middleware that publishes the outcome of an actor as a response on `ltm_responses`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import dramatiq
import redis
import structlog
from dramatiq.middleware import Middleware
from keepsake_client.errors import KeepsakeError
from keepsake_client.protocol import COUNTERS, TRACE_FIELD, TRACES_STREAM, LTMResponse

from adapters.response_repeats import ResponseRepeats
from services.runtime.counters import PendingCounts
from services.runtime.errors import Expired
from services.runtime.logging import redact
from services.runtime.queues import INTERACTIVE_QUEUE
from services.runtime.token_buckets import TokenBuckets
from services.runtime.traces import NO_TRACES, Traces
from services.runtime.tracing import NO_SPANS, Spans
from services.runtime.turns import NO_TURNS, Turns
from tasks.middleware.retries import error_text

#: A worker that froze for less than this does not publish a second response to a message that another worker has
#: answered meanwhile; 130 bytes a response.
ANSWERED_TTL_S = 600
#: Publishes once for a key, and writes the trace: the messages of a frozen worker are run by others, and by itself when
#: it resumes. A Redis that is full refuses SET and XADD alone, and a response that is not remembered is better than
#: none. The trace's stream is no key of the script: a user of Redis without the right to it could not run the script.
_PUBLISH_ONCE = """
if redis.pcall('SET', KEYS[1], '', 'NX', 'EX', ARGV[1]) == false then return 0 end
redis.call('PUBLISH', ARGV[2], ARGV[3])
if ARGV[4] ~= '' then redis.pcall('XADD', ARGV[5], 'MAXLEN', '~', ARGV[6], '*', ARGV[7], ARGV[4]) end
return 1
"""

#: A search that waited for a worker for longer than this is not explained in its record: others wait behind it.
BUSY_S = 0.05
#: The searches that one process records in a second, in bursts of twice as many. Explaining one takes 1 ms of CPU and a
#: look into the database, a seventh of the search itself, and `ltm:turns` keeps 2,000 records: at a hundred searches a
#: second each would be gone after twenty.
RECORDED_PER_S = 10.0
_SEARCHES = ("search", "context")
#: Types whose traces say how many memories were found or added.
_COUNTING = ("search", "context", "add")

log = structlog.get_logger()


class ResponsePublisher(Middleware):
    """Publishes what the actor of a request returned, or why it failed.

    An actor of a request takes the argument `request` and returns the fields of its response; and for the records alone
    as `stages` the milliseconds of its stages, and as `explain` what explains a search, which is called after its
    response was published. A failure is answered when it is final. A failure that the response explains is no dead
    letter; nor is one on the interactive queue, because its asker would not want it answered later.

    The response to a request without a deadline is published again a little later: its asker may subscribe after it has
    pushed.

    Args:
        client: connects to the pipeline's Redis.
        channel: where askers listen.
        traces: of this process; by default none are written.
        spans: of this process; by default none are made.
        turns: of this process; by default none are written.
        repeats_s: when it is published again, in seconds after the first time.
        clock: the time in seconds since 1970.
        monotonic: seconds, monotonic.
    """

    def __init__(
        self,
        client: redis.Redis,
        channel: str,
        traces: Traces = NO_TRACES,
        repeats_s: Sequence[float] = (),
        spans: Spans = NO_SPANS,
        turns: Turns = NO_TURNS,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._channel = channel
        self._traces = traces
        self._spans = spans
        self._turns = turns
        self._clock = clock
        self._repeats = ResponseRepeats(client, channel, repeats_s, metrics=traces.metrics)
        self._publish_once = client.register_script(_PUBLISH_ONCE)
        self._started = threading.local()
        self._counts = PendingCounts(COUNTERS)
        self._to_record = TokenBuckets(monotonic)
        self._lock = threading.Lock()
        self._left_out = 0

    def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
        self._started.at = self._clock()

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: dramatiq.MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        request = message.kwargs.get("request")
        if request is None or (exception is not None and not message.failed):
            return
        request_id, user_id, traceparent = request["request_id"], request["user_id"], request.get("traceparent")
        if exception is None:
            response = LTMResponse(
                request_id=request_id, user_id=user_id, success=True, traceparent=traceparent, **result
            )
        else:
            response = failure(request_id, user_id, exception, traceparent)
            if isinstance(exception, KeepsakeError) or message.queue_name == INTERACTIVE_QUEUE:
                message.failed = False
        if response.partial:
            self._counts.count("searches_partial")
        elif isinstance(exception, Expired):
            self._counts.count("searches_expired")
        started_at = getattr(self._started, "at", self._clock())
        times = {name: message.kwargs.get(f"{name}_at") for name in ("received", "enqueued")}
        published = self.publish(
            response,
            message.message_id,
            facts=self._facts(response, request, {**times, "started": started_at}, (result or {}).get("stages")),
            repeat=_deadline_ms(request) is None,
            type=request.get("type"),
            queued_ms=_ms(started_at - message.kwargs.get("received_at", started_at)),
            worked_ms=_ms(self._clock() - started_at),
        )
        if published and self._turns.wanted and request.get("type") in _SEARCHES and response.success:
            if self._to_record.take("searches", RECORDED_PER_S):
                self._leave_out()
                return
            self._count_left_out()
            waited_s = started_at - message.kwargs.get("received_at", started_at)
            self._record_turn(request, None if waited_s > BUSY_S else (result or {}).get("explain"))

    def _leave_out(self) -> None:
        """Count with the next search that is recorded: to write the counts is a round trip."""
        with self._lock:
            self._left_out += 1

    def _count_left_out(self) -> None:
        with self._lock:
            left_out, self._left_out = self._left_out, 0
        if left_out:
            self._counts.count("turns_left_out", left_out)

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        self.close()

    def close(self) -> None:
        """Publish the repeats that still wait, and send the spans."""
        self._repeats.close()
        self._spans.close()

    def refuse(
        self,
        request_id: str,
        user_id: str,
        error: BaseException,
        received_at: float,
        *,
        repeat: bool,
        traceparent: str | None = None,
    ) -> None:
        """Publish why a request was not enqueued for its actor."""
        response = failure(request_id, user_id, error, traceparent)
        self.publish(response, facts=self._facts(response, {}, {"received": received_at}, None), repeat=repeat)

    def _facts(
        self, response: LTMResponse, request: dict[str, Any], moments: dict[str, Any], stages: dict[str, float] | None
    ) -> dict[str, Any] | None:
        """What is known of a request that was answered, for its record and its spans; None where neither is wanted."""
        if not (self._traces.wanted or self._spans.enabled):
            return None
        times = {
            "pushed": request.get("pushed_at"),
            "taken": moments.get("received"),
            "queued": moments.get("enqueued"),
            "started": moments.get("started"),
            "answered": self._clock(),
        }
        return {
            "request_id": response.request_id,
            "type": request.get("type"),
            "outcome": (response.error or "ok").partition(":")[0],
            "times": times,
            "ms": stages,
            "deadline_ms": _deadline_ms(request),
            "partial": response.partial,
            "memories": len(response.memories) if response.success and request.get("type") in _COUNTING else None,
        }

    def _record(self, user_id: str, facts: dict[str, Any] | None) -> str:
        if facts is None or not self._traces.wanted:
            return ""
        # A user who is forgotten is not named by the record of it.
        return self._traces.record("request", "" if facts["type"] == "user_forget" else user_id, **facts)

    def _record_turn(self, request: dict[str, Any], explain: Callable[[], Any] | None) -> None:
        """Write the turn record of a search whose response is out; one that cannot be written is counted."""
        try:
            explained = explain() if explain is not None else None
            with self._client.pipeline(transaction=False) as pipeline:
                self._turns.add(pipeline, self._turns.search(request, explained))
                pipeline.execute()
        except (redis.RedisError, KeepsakeError) as error:
            log.debug("turn_not_recorded", request_id=request["request_id"], reason=redact(error))
            self._counts.count("turns_not_recorded")

    def publish(
        self,
        response: LTMResponse,
        answers: str | None = None,
        *,
        facts: dict[str, Any] | None = None,
        repeat: bool = False,
        **times: object,
    ) -> bool:
        """Publish one response. If Redis stays down for longer than its client retries, it is counted.

        Args:
            answers: the id of the actor message; of all responses to one, the first is published.
            facts: what is known of the request, for its record and its spans; None for neither.
            repeat: whether its asker may subscribe late.
            times: logged with it.

        Returns:
            Whether it was published, by this call.
        """
        wire, trace = response.to_wire(), self._record(response.user_id, facts)
        try:
            if answers is None:
                self._publish_refusal(wire, trace)
            elif not self._publish_once(
                [f"ltm:answered:{answers}"],
                [
                    ANSWERED_TTL_S,
                    self._channel,
                    wire,
                    trace,
                    TRACES_STREAM,
                    self._traces.max_len,
                    TRACE_FIELD,
                ],
            ):
                log.info("response_deduplicated", request_id=response.request_id)
                return False
        except redis.RedisError as error:
            log.warning("response_not_published", request_id=response.request_id, reason=redact(error))
            self._counts.count("responses_not_published")
            return False
        if repeat:
            self._repeats.add(wire)
        self._counts.flush(self._client)
        log.info(
            "responded", request_id=response.request_id, user_id=response.user_id, success=response.success, **times
        )
        if facts is not None:
            self._spans.record("request", response.traceparent, facts)
        return True

    def _publish_refusal(self, wire: str, trace: str) -> None:
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.publish(self._channel, wire)
            self._traces.add(pipeline, trace)
            published, *_ = pipeline.execute(raise_on_error=False)
        if isinstance(published, Exception):
            raise published


def _deadline_ms(request: dict[str, Any]) -> Any:
    data = request.get("data")
    return data.get("deadline_ms") if isinstance(data, dict) else None  # a message put on the queue by hand


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 1)


def failure(request_id: str, user_id: str, error: BaseException, traceparent: str | None = None) -> LTMResponse:
    """The response that says why a request failed; an error that is no `KeepsakeError` is `internal`."""
    return LTMResponse(
        request_id=request_id, user_id=user_id, success=False, error=error_text(error), traceparent=traceparent
    )
