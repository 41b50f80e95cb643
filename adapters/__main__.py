"""Composition root of the adapters: `python -m adapters`."""

from __future__ import annotations

import os
import signal
import threading

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from adapters.hand_over import HandOver
from adapters.keeper import Keeper
from adapters.log import UpdateLog
from adapters.loop import Loop
from adapters.ltm_requests import RequestAdapter
from adapters.ltm_responses import Responses
from adapters.memory_updates import UpdateAdapter
from adapters.rejected import Rejected
from adapters.roll import Lease, Roll, adapter_name
from services.health import Heart
from services.running import begin
from services.settings import Settings
from tasks.broker import build_broker

log = structlog.get_logger()


class Adapters:
    """The loops of one process, not yet started."""

    def __init__(self, settings: Settings) -> None:
        client = _client(settings)
        broker = build_broker(settings.broker.get_secret_value(), [])
        max_chars = settings.ltm_max_content_chars
        name = adapter_name()
        roll, self._lease = Roll(client, name), Lease(client, name)
        updates = UpdateLog(client, settings.ltm_updates_log, name, settings.ltm_log_max_len)
        responses = Responses(client, settings.ltm_responses_channel)
        queue, channel = settings.ltm_requests_queue, settings.memory_updates_channel
        self.requests = RequestAdapter(client, queue, roll, broker, responses, Rejected(client, queue), max_chars)
        heard = UpdateAdapter(client, channel, updates, self._lease, Rejected(client, channel), max_chars)
        hand_over = HandOver(
            updates,
            roll,
            broker,
            Rejected(client, settings.ltm_updates_log),
            max_chars,
            read_ahead=settings.ltm_read_ahead,
            window=settings.ltm_index_window,
        )
        self.working = [
            Loop("ltm_requests", self.requests.turn, connect=self.requests.connect),
            Loop("memory_updates", heard.turn, connect=heard.listen),
            Loop("updates_log", hand_over.turn, connect=hand_over.connect),
        ]
        self._keeper = Keeper(
            client,
            roll,
            self._lease,
            updates,
            hand_over,
            [loop.pulse.beating for loop in self.working],
            log_hours=settings.ltm_log_hours,
            max_backlog=settings.ltm_max_backlog,
        )
        self.keeping = Loop("keeper", self._keeper.turn, connect=updates.open)

    @property
    def loops(self) -> list[Loop]:
        """All of them."""
        return [*self.working, self.keeping]

    def stop(self) -> None:
        """End the loops after what they have in hand, and give back what they hold."""
        for loop in self.working:
            loop.stop()
        for loop in self.working:
            loop.join(timeout=5)
        self.keeping.stop()
        self.keeping.join(timeout=5)
        try:
            self.requests.give_back()
            self._keeper.stop()
        except redis.RedisError as error:
            # The others find it by themselves when Redis is back.
            log.warning("not_given_back", reason=type(error).__name__)


def run(settings: Settings, process: str) -> None:
    """Run the loops until SIGTERM or SIGINT."""
    stopped = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopped.set())
    adapters = Adapters(settings)
    heart = Heart(_client(settings), process, [loop.pulse.beating for loop in adapters.loops])
    for thread in (*adapters.loops, heart):
        thread.start()
    log.info("adapters_ready")
    stopped.wait()
    adapters.stop()
    heart.stop()
    log.info("adapters_stopped")


def _client(settings: Settings) -> redis.Redis:
    # The loops wait and try again themselves, and say so once; the client fails at once.
    return redis.Redis.from_url(settings.redis_url.get_secret_value(), retry=Retry(NoBackoff(), 0), socket_timeout=5)


if __name__ == "__main__":
    name = os.environ.get("LTM_PROCESS_NAME", "long-term-memory-adapters")
    run(begin(name), name)
