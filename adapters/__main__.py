"""Composition root of the adapters: `python -m adapters`."""

from __future__ import annotations

import os
import signal
import threading

import redis
import structlog

from adapters.dispatcher import Dispatcher
from adapters.loop import Loop
from adapters.ltm_requests import RequestAdapter
from adapters.ltm_responses import ResponsePublisher
from adapters.maintenance import Maintenance
from adapters.membership import Lease, Membership, adapter_name
from adapters.memory_updates import UpdateAdapter
from adapters.rejected import Rejected
from adapters.stream import UpdateStream
from services.runtime.heartbeat import HeartbeatThread
from services.runtime.process import bootstrap
from services.runtime.redis import connect
from services.runtime.settings import Settings
from tasks.redis_broker import build_broker

log = structlog.get_logger()


class Adapters:
    """The loops of one process, not yet started."""

    def __init__(self, settings: Settings) -> None:
        client = _client(settings)
        broker = build_broker(settings.broker.get_secret_value(), [])
        max_chars = settings.ltm_max_content_chars
        name = adapter_name()
        membership, self._lease = Membership(client, name), Lease(client, name)
        updates = UpdateStream(client, settings.ltm_stream_key, name, settings.ltm_stream_max_len)
        responses = ResponsePublisher(client, settings.ltm_responses_channel)
        queue, channel = settings.ltm_requests_queue, settings.memory_updates_channel
        self.requests = RequestAdapter(client, queue, membership, broker, responses, Rejected(client, queue), max_chars)
        heard = UpdateAdapter(client, channel, updates, self._lease, Rejected(client, channel), max_chars)
        dispatcher = Dispatcher(
            updates,
            membership,
            broker,
            Rejected(client, settings.ltm_stream_key),
            max_chars,
            prefetch=settings.ltm_prefetch,
            window=settings.ltm_index_window,
        )
        self.working = [
            Loop("ltm_requests", self.requests.turn, connect=self.requests.connect),
            Loop("memory_updates", heard.turn, connect=heard.listen),
            Loop("updates_log", dispatcher.turn, connect=dispatcher.connect),
        ]
        self._maintenance = Maintenance(
            client,
            membership,
            self._lease,
            updates,
            dispatcher,
            [loop.pulse.alive for loop in self.working],
            log_hours=settings.ltm_stream_hours,
            max_backlog=settings.ltm_max_backlog,
        )
        self.maintenance_loop = Loop("maintenance", self._maintenance.turn, connect=updates.open)

    @property
    def loops(self) -> list[Loop]:
        """All of them."""
        return [*self.working, self.maintenance_loop]

    def stop(self) -> None:
        """End the loops after what they have in hand, and give back what they hold."""
        for loop in self.working:
            loop.stop()
        for loop in self.working:
            loop.join(timeout=5)
        self.maintenance_loop.stop()
        self.maintenance_loop.join(timeout=5)
        try:
            self.requests.release()
            self._maintenance.stop()
        except redis.RedisError as error:
            # The others find it by themselves when Redis is back.
            log.warning("not_given_back", reason=type(error).__name__)


def run(settings: Settings, process: str) -> None:
    """Run the loops until SIGTERM or SIGINT."""
    stopped = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopped.set())
    adapters = Adapters(settings)
    heart = HeartbeatThread(_client(settings), process, [loop.pulse.alive for loop in adapters.loops])
    for thread in (*adapters.loops, heart):
        thread.start()
    log.info("adapters_ready")
    stopped.wait()
    adapters.stop()
    heart.stop()
    log.info("adapters_stopped")


def _client(settings: Settings) -> redis.Redis:
    return connect(settings.redis_url.get_secret_value())


if __name__ == "__main__":
    name = os.environ.get("LTM_PROCESS_NAME", "long-term-memory-adapters")
    run(bootstrap(name), name)
