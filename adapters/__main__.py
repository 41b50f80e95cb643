"""Composition root of the adapters: `python -m adapters`."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass

import redis
import structlog

from adapters.dispatcher import Dispatcher
from adapters.leader import Lease
from adapters.loop import POLL_TIMEOUT_S, Loop
from adapters.ltm_requests import CLAIM_INTERVAL_S, RequestAdapter
from adapters.ltm_responses import ResponsePublisher
from adapters.maintenance import INTERVAL_S, MEASURE_INTERVAL_S, Maintenance
from adapters.membership import FAILED_AFTER_S, Membership, adapter_name
from adapters.memory_updates import UpdateAdapter
from adapters.stream import UpdateStream
from services.runtime.heartbeat import HeartbeatThread
from services.runtime.process import bootstrap
from services.runtime.redis import connect
from services.runtime.rejected import RejectSink
from services.runtime.settings import Settings
from tasks.broker import build_broker

log = structlog.get_logger()


@dataclass(frozen=True)
class Timing:
    """The adapters' time-outs and intervals, in seconds."""

    poll_timeout_s: float = POLL_TIMEOUT_S
    failed_after_s: float = FAILED_AFTER_S
    claim_interval_s: float = CLAIM_INTERVAL_S
    maintenance_interval_s: float = INTERVAL_S
    measure_interval_s: float = MEASURE_INTERVAL_S


class Adapters:
    """The loops of one process, not yet started."""

    def __init__(self, settings: Settings, timing: Timing = Timing()) -> None:
        client = _client(settings)
        broker = build_broker(settings.broker.get_secret_value(), [])
        max_chars = settings.ltm_max_content_chars
        name = adapter_name()
        membership, lease = Membership(client, name, timing.failed_after_s), Lease(client, name)
        stream = UpdateStream(client, settings.ltm_stream_key, name, settings.ltm_stream_max_len)
        self.requests = RequestAdapter(
            client,
            settings.ltm_requests_queue,
            membership,
            broker,
            ResponsePublisher(client, settings.ltm_responses_channel),
            RejectSink(client, settings.ltm_requests_queue),
            max_chars,
            poll_timeout_s=timing.poll_timeout_s,
            claim_interval_s=timing.claim_interval_s,
        )
        updates = UpdateAdapter(
            client,
            settings.memory_updates_channel,
            stream,
            lease,
            RejectSink(client, settings.memory_updates_channel),
            max_chars,
            poll_timeout_s=timing.poll_timeout_s,
        )
        dispatcher = Dispatcher(
            stream,
            membership,
            broker,
            RejectSink(client, settings.ltm_stream_key),
            max_chars,
            prefetch=settings.ltm_prefetch,
            window=settings.ltm_index_window,
            poll_timeout_s=timing.poll_timeout_s,
        )
        self.working = [
            Loop("ltm_requests", self.requests.run_once, connect=self.requests.connect),
            Loop("memory_updates", updates.run_once, connect=updates.connect),
            Loop("dispatcher", dispatcher.run_once, connect=dispatcher.connect),
        ]
        self._maintenance = Maintenance(
            client,
            membership,
            lease,
            stream,
            dispatcher,
            [loop.liveness.alive for loop in self.working],
            stream_hours=settings.ltm_stream_hours,
            max_backlog=settings.ltm_max_backlog,
            interval_s=timing.maintenance_interval_s,
            measure_interval_s=timing.measure_interval_s,
        )
        self.maintenance_loop = Loop("maintenance", self._maintenance.run_once, connect=stream.open)

    @property
    def loops(self) -> list[Loop]:
        """All loops of the process, maintenance last."""
        return [*self.working, self.maintenance_loop]

    def stop(self) -> None:
        """Shut down gracefully: end the loops after their current iterations, and release what this adapter holds."""
        for loop in self.working:
            loop.stop()
        for loop in self.working:
            loop.join(timeout=5)
        self.maintenance_loop.stop()
        self.maintenance_loop.join(timeout=5)
        try:
            self.requests.release()
            self._maintenance.release()
        except redis.RedisError as error:
            # The other adapters claim it once Redis is back.
            log.warning("release_failed", reason=type(error).__name__)


def run(settings: Settings, process: str) -> None:
    """Run the loops until SIGTERM or SIGINT."""
    stopped = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopped.set())
    adapters = Adapters(settings)
    heartbeat = HeartbeatThread(_client(settings), process, [loop.liveness.alive for loop in adapters.loops])
    for thread in (*adapters.loops, heartbeat):
        thread.start()
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
