"""A service of Keepsake as a real process, started as compose starts it, or in a thread of the tests' process."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import redis
from keepsake_client.protocol import alive_key

from services.runtime.settings import load_settings
from tests.support import PATIENCE_S, wait_until


class ServiceProcess:
    """One process, its log, and whether it works."""

    def __init__(self, module: str, name: str, redis_url: str, log: Path, **environment: str) -> None:
        self._client = redis.Redis.from_url(redis_url)
        self._key = alive_key(name)
        self._log = log
        # PATH and the like, but none of the settings of the shell that runs the tests.
        clean = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                env={**clean, "REDIS_URL": redis_url, **environment},
                stderr=stderr,
            )

    def works(self) -> bool:
        """Whether the heartbeat key holds this process's heartbeat."""
        assert self.process.poll() is None, f"the process ended:\n{self.log()}"
        try:
            sign = self._client.get(self._key)
        except redis.RedisError:
            return False
        return isinstance(sign, bytes) and sign.split(b":")[1] == b"%d" % self.process.pid

    def log(self) -> str:
        return self._log.read_text()

    def stop(self, seconds: float = 60) -> int:
        """Its exit code after SIGTERM, within `seconds`."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running {seconds} s after SIGTERM:\n{self.log()}") from None

    def close(self) -> None:
        """Kill it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._client.close()


@contextmanager
def running(module: str, name: str, redis_url: str, log: Path, **environment: str) -> Iterator[ServiceProcess]:
    """The process, once it works."""
    service = ServiceProcess(module, name, redis_url, log, **environment)
    try:
        wait_until(service.works, description=f"a heartbeat of {name}")
        yield service
    finally:
        service.close()


@contextmanager
def serving(module: str, name: str, redis_url: str, **environment: str) -> Iterator[None]:
    """The service in a thread, once it works; for tests of what it does, not of its end or its log.

    A process takes half a second of processor time more, for its imports.
    """
    with patch.dict(os.environ, {"REDIS_URL": redis_url, **environment}, clear=True):
        settings = load_settings()
    run = importlib.import_module(f"{module}.__main__").run
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    errors: list[BaseException] = []

    def serve() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            try:
                runner.run(run(settings, stop))
            except BaseException as error:  # noqa: BLE001 - raised in the thread of the test
                errors.append(error)

    thread = threading.Thread(target=serve, name=name)
    with redis.Redis.from_url(redis_url) as client:
        thread.start()
        try:
            wait_until(lambda: client.exists(alive_key(name)) or errors, description=f"a heartbeat of {name}")
            yield
        finally:
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(stop.set)
            thread.join(PATIENCE_S)
    assert not thread.is_alive()
    if errors:
        raise errors[0]
