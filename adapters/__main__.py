"""Composition root of the adapters: `python -m adapters`."""

from __future__ import annotations

import os
import signal
import sys
import threading

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from adapters.loop import Loop
from adapters.ltm_requests import RequestAdapter
from adapters.ltm_responses import Responses
from adapters.memory_updates import UpdateAdapter
from adapters.rejected import Rejected
from services.errors import InvalidSetting
from services.health import Heart
from services.logs import configure_logging
from services.settings import Settings, load_settings
from tasks.broker import build_broker

log = structlog.get_logger()


def build_loops(settings: Settings) -> list[Loop]:
    """The loops that the adapters run, not yet started."""
    client = _client(settings)
    broker = build_broker(settings.broker.get_secret_value(), [])
    responses = Responses(client, settings.ltm_responses_channel)
    requests = RequestAdapter(
        client,
        settings.ltm_requests_queue,
        broker,
        responses,
        Rejected(client, settings.ltm_requests_queue),
        settings.ltm_max_content_chars,
    )
    updates = UpdateAdapter(
        client,
        settings.memory_updates_channel,
        broker,
        Rejected(client, settings.memory_updates_channel),
        settings.ltm_max_content_chars,
    )
    return [
        Loop("ltm_requests", requests.turn),
        Loop("memory_updates", updates.turn, connect=updates.listen),
    ]


def run(settings: Settings, process: str) -> None:
    """Run the loops until SIGTERM or SIGINT."""
    stopped = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopped.set())
    loops = build_loops(settings)
    heart = Heart(_client(settings), process, [loop.pulse.beating for loop in loops])
    for thread in (*loops, heart):
        thread.start()
    log.info("adapters_ready")
    stopped.wait()
    for loop in loops:
        loop.stop()
    for loop in loops:
        loop.join(timeout=5)
    heart.stop()
    log.info("adapters_stopped")


def _client(settings: Settings) -> redis.Redis:
    # The loops wait and try again themselves, and say so once; the client fails at once.
    return redis.Redis.from_url(settings.redis_url.get_secret_value(), retry=Retry(NoBackoff(), 0), socket_timeout=5)


def main() -> None:
    """Read the settings and run."""
    process = os.environ.get("LTM_PROCESS_NAME", "long-term-memory-adapters")
    try:
        settings = load_settings()
    except InvalidSetting as error:
        sys.exit(f"ltm: {error}")
    configure_logging(settings, process)
    run(settings, process)


if __name__ == "__main__":
    main()
