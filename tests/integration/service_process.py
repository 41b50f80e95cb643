"""A service of ours as a real process, started as compose starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from keepsake_client.protocol import alive_key

from tests.support import wait_until


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
