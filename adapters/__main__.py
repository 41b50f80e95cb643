"""Composition root of the adapters: `python -m adapters`."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

import redis
import structlog
from keepsake_client.protocol import ADAPTER_FAILED_AFTER_S, COUNTERS
from keepsake_client.subscription import MAX_SILENCE_S, PING_INTERVAL_S, SubscriptionMonitor

from adapters.dispatcher import Dispatcher
from adapters.leader import Lease
from adapters.loop import POLL_TIMEOUT_S, Loop
from adapters.ltm_requests import CLAIM_INTERVAL_S, RequestAdapter
from adapters.ltm_responses import ResponsePublisher
from adapters.maintenance import INTERVAL_S, MEASURE_INTERVAL_S, NEWCOMER_WAIT_S, Maintenance
from adapters.membership import Membership, adapter_name
from adapters.memory_updates import UpdateAdapter
from adapters.stream import UpdateStream
from services.runtime.availability import Availability
from services.runtime.counters import PendingCounts
from services.runtime.exposition import exposed
from services.runtime.heartbeat import HeartbeatThread
from services.runtime.process import bootstrap
from services.runtime.process_record import ProcessRecord, broker_address
from services.runtime.redis import connect
from services.runtime.rejected import RejectSink
from services.runtime.server_clock import ServerClock
from services.runtime.settings import Settings
from services.runtime.traces import NO_TRACES, Traces
from services.runtime.tracing import NO_SPANS, Spans, open_spans
from tasks.broker import build_broker, dependencies

log = structlog.get_logger()


@dataclass(frozen=True)
class Timing:
    """The adapters' time-outs and intervals, in seconds."""

    poll_timeout_s: float = POLL_TIMEOUT_S
    failed_after_s: float = ADAPTER_FAILED_AFTER_S
    claim_interval_s: float = CLAIM_INTERVAL_S
    maintenance_interval_s: float = INTERVAL_S
    measure_interval_s: float = MEASURE_INTERVAL_S
    newcomer_wait_s: float = NEWCOMER_WAIT_S
    ping_interval_s: float = PING_INTERVAL_S
    max_silence_s: float = MAX_SILENCE_S


class Adapters:
    """The loops of one process, not yet started."""

    def __init__(
        self, settings: Settings, timing: Timing = Timing(), traces: Traces = NO_TRACES, spans: Spans = NO_SPANS
    ) -> None:
        self.clock = ServerClock()
        self._settings = settings
        self._timing = timing
        self._client = _client(settings)
        self._broker = build_broker(settings.broker.get_secret_value(), [])
        name = adapter_name()
        self._membership = Membership(self._client, name, timing.failed_after_s)
        self._lease = Lease(self._client, name)
        self._stream = UpdateStream(self._client, settings.ltm_stream_key, name, settings.ltm_stream_max_len)
        self._writes = Availability("redis", at="writes")
        self._counts = PendingCounts(COUNTERS)
        self._responses = ResponsePublisher(
            self._client,
            settings.ltm_responses_channel,
            traces,
            settings.response_repeats_s,
            spans,
            clock=self.clock,
        )
        self.requests, self.updates, dispatcher = self._request_adapters(), self._update_adapter(), self._dispatcher()
        # The broker may be another Redis, and refuse alone.
        enqueueing = self._writes if settings.broker == settings.redis_url else None
        self.working = [
            *(
                Loop(name, adapter.run_once, adapter.connect, enqueueing, traces.metrics)
                for name, adapter in zip(("ltm_requests", "manage_requests"), self.requests, strict=False)
            ),
            Loop("memory_updates", self.updates.run_once, self.updates.connect, self._writes, traces.metrics),
            Loop("dispatcher", dispatcher.run_once, dispatcher.connect, enqueueing, traces.metrics),
        ]
        self._maintenance = self._maintenance_of(dispatcher)
        self.maintenance_loop = Loop("maintenance", self._maintenance.run_once, writes=self._writes)

    @property
    def loops(self) -> list[Loop]:
        """All loops of the process, maintenance last."""
        return [*self.working, self.maintenance_loop]

    @property
    def checks(self) -> list[Callable[[], bool]]:
        """Whether each loop works, and the subscription hears."""
        return [*(loop.liveness.alive for loop in self.loops), self.updates.monitor.hears]

    def stop(self) -> None:
        """Shut down gracefully: end the loops after their current iterations, and release what this adapter holds."""
        for loop in self.working:
            loop.stop()
        for loop in self.working:
            loop.join(timeout=5)
        self.maintenance_loop.stop()
        self.maintenance_loop.join(timeout=5)
        self.updates.stop()
        self._responses.close()
        try:
            for requests in self.requests:
                requests.release()
            self._maintenance.release()
        except redis.RedisError as error:
            # The other adapters claim it once Redis is back.
            log.warning("release_failed", reason=type(error).__name__)

    def _request_adapters(self) -> list[RequestAdapter]:
        """The adapter of the common list and, where there is one, that of the list of requests to manage memories."""
        common, *managing = self._settings.request_queues
        adapters = [self._request_adapter(common, managed_at=next(iter(managing), None))]
        return [*adapters, *(self._request_adapter(queue, manages=True) for queue in managing)]

    def _request_adapter(self, queue: str, *, managed_at: str | None = None, manages: bool = False) -> RequestAdapter:
        return RequestAdapter(
            self._client,
            queue,
            self._membership,
            self._broker,
            self._responses,
            RejectSink(self._client, queue),
            self._settings.ltm_max_content_chars,
            managed_at=managed_at,
            manages=manages,
            zone=self._settings.message_defaults.zone,
            poll_timeout_s=self._timing.poll_timeout_s,
            claim_interval_s=self._timing.claim_interval_s,
            clock=self.clock,
        )

    def _update_adapter(self) -> UpdateAdapter:
        return UpdateAdapter(
            self._client,
            self._settings.memory_updates_channel,
            self._stream,
            self._lease,
            RejectSink(self._client, self._settings.memory_updates_channel),
            self._settings.ltm_max_content_chars,
            defaults=self._settings.message_defaults,
            writes=self._writes,
            counts=self._counts,
            poll_timeout_s=self._timing.poll_timeout_s,
            monitor=SubscriptionMonitor(self._timing.ping_interval_s, self._timing.max_silence_s),
            clock=self.clock,
        )

    def _dispatcher(self) -> Dispatcher:
        return Dispatcher(
            self._stream,
            self._membership,
            self._broker,
            RejectSink(self._client, self._settings.ltm_stream_key),
            self._settings.ltm_max_content_chars,
            prefetch=self._settings.ltm_prefetch,
            window=self._settings.ltm_index_window,
            defaults=self._settings.message_defaults,
            poll_timeout_s=self._timing.poll_timeout_s,
        )

    def _maintenance_of(self, dispatcher: Dispatcher) -> Maintenance:
        return Maintenance(
            self._client,
            self._membership,
            self._lease,
            self._stream,
            dispatcher,
            [*(loop.liveness.alive for loop in self.working), self.updates.monitor.hears],
            stream_hours=self._settings.ltm_stream_hours,
            turns_hours=self._settings.ltm_turns_hours,
            max_backlog=self._settings.ltm_max_backlog,
            interval_s=self._timing.maintenance_interval_s,
            measure_interval_s=self._timing.measure_interval_s,
            newcomer_wait_s=self._timing.newcomer_wait_s,
            subscribed_s=self.updates.monitor.subscribed_s,
            writes=self._writes,
            counts=self._counts,
        )


def run(settings: Settings, process: str) -> None:
    """Run the loops until SIGTERM or SIGINT."""
    stopped = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopped.set())
    with exposed(settings, process) as metrics:
        adapters = Adapters(settings, traces=Traces.of(settings, process, metrics), spans=open_spans(settings, process))
        record = ProcessRecord(broker=broker_address(settings), uses=dependencies(settings.broker.get_secret_value()))
        heartbeat = HeartbeatThread(
            _client(settings),
            process,
            adapters.checks,
            record=record,
            clock=adapters.clock,
            on_sent=metrics.beat,
        )
        for thread in (*adapters.loops, heartbeat):
            thread.start()
        metrics.watch([loop.liveness.turning for loop in adapters.loops])
        log.info("adapters_ready")
        stopped.wait()
        adapters.stop()
        heartbeat.stop()
    log.info("adapters_stopped")


def _client(settings: Settings) -> redis.Redis:
    return connect(settings.redis_url.get_secret_value())


if __name__ == "__main__":
    name = os.environ.get("LTM_PROCESS_NAME", "long-term-memory-adapters")
    run(bootstrap(name), name)
