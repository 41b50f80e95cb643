"""Composition root of the workers, and what those that are forked share."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterable
from functools import cache

import dramatiq
import dramatiq.worker
from dramatiq.middleware import TimeLimit

from adapters.ltm_responses import ResponsePublisher
from services.long_term_memory.embeddings.providers import build_embedder
from services.runtime.metrics import NO_METRICS, Metrics
from services.runtime.process import bootstrap
from services.runtime.redis import connect, connect_persistent
from services.runtime.server_clock import ServerClock
from services.runtime.settings import DEFAULT_EMBEDDER, Settings
from services.runtime.traces import Traces
from services.runtime.tracing import open_spans
from services.runtime.turns import Turns
from tasks import actors
from tasks.broker import build_broker
from tasks.log_filter import install_log_filter
from tasks.middleware.deliveries import DeliveryLimit
from tasks.middleware.overruns import Overruns
from tasks.middleware.resources import Resources, with_engine
from tasks.middleware.retries import Retries
from tasks.queues import INDEX_TIME_LIMIT_MS

#: How long a thread may keep the interpreter while another waits for it, as one does that comes back from the embedder
#: or the database. At 150 searches a second on two threads, p99 was 172 ms with Python's 5 ms, and 80 with this.
SWITCH_INTERVAL_S = 0.0005
#: The pause between attempts to reach a broker that is down; Dramatiq's own are 3 and 5 s.
RECONNECT_S = 0.5


def compose(settings: Settings, process: str, metrics: Metrics = NO_METRICS) -> dramatiq.Broker:
    """The broker of a worker process, with its middleware and actors."""
    redis_url = settings.redis_url.get_secret_value()
    spans = open_spans(settings, process)  # here, after the fork: a thread sends them
    clock = ServerClock()
    overruns, traces = Overruns(), Traces.of(settings, process, metrics)
    resources = Resources(settings, process, metrics, clock, overruns)
    # A response outlives a half-open connection, and a short outage.
    responses = ResponsePublisher(
        connect_persistent(redis_url),
        settings.ltm_responses_channel,
        traces,
        settings.response_repeats_s,
        spans,
        Turns.of(settings),
        clock,
    )
    # Dramatiq calls the `before_` hooks in this order, and the `after_` hooks in the reverse order.
    middleware = [
        resources,  # first: the services are open before any other hook runs, and closed after all of them
        responses,  # publishes what all that follow have decided
        # Before TimeLimit: a message that waits here to run alone uses up no time limit.
        DeliveryLimit(connect(redis_url, 2.0), traces, spans, clock),
        TimeLimit(time_limit=INDEX_TIME_LIMIT_MS),  # around the actor alone; the actors have limits of their own
        overruns,  # likewise
        Retries(),  # last: decides whether a message has failed, before any other `after_` hook sees it
    ]
    broker = build_broker(settings.broker.get_secret_value(), middleware, metrics)
    actors.declare(broker, resources, clock)
    return broker


def set_up(metrics: Metrics = NO_METRICS) -> dramatiq.Broker:
    """Compose the broker of this process, and set it as Dramatiq's."""
    process = process_name()
    settings = settings_of(process)
    install_log_filter(logging.getLogger().handlers)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Dramatiq reads the first of them from the environment before this module is there to set it.
    dramatiq.worker.CONSUMER_RESTART_DELAY_SECS = RECONNECT_S
    dramatiq.worker.POST_PROCESS_MESSAGE_RETRY_DELAY_SECS = RECONNECT_S  # type: ignore[assignment]
    broker = compose(settings, process, metrics)
    dramatiq.set_broker(broker)
    return broker


def process_name() -> str:
    """The name of this process in compose, the log and `ltm status`."""
    return os.environ.get("LTM_PROCESS_NAME", "long-term-memory-worker")


@cache
def settings_of(process: str) -> Settings:
    """The settings of a worker, read once: a forked process has those that the first one read."""
    return bootstrap(process)


def preload(settings: Settings, queues: Iterable[str] | None) -> None:
    """Open what processes can share: the default embedder's engine, beside the modules that are imported here.

    Connections, the broker with its id, and an embedder that is reached over HTTP are of each process alone.
    """
    if settings.ltm_embedder_provider == DEFAULT_EMBEDDER:
        build_embedder(with_engine(settings, queues)).embed("Where were we?", "search")
    # The collector writes into every object that it visits, and a page that is written is shared no longer.
    gc.freeze()
