"""The checks of a starting stack: what no waiting changes is an error at once, what may pass is one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection
from functools import partial

import redis
from keepsake_client.errors import Unavailable

from services.runtime.errors import EXIT_CANNOT_START, InvalidSetting
from services.runtime.settings import DEFAULT_EMBEDDER, Settings
from services.stack.broker_check import check_broker, check_redis
from services.stack.processes import BROKER, POSTGRES, REDIS, ROOT

#: Of the check of the embedder and LLM: two seconds of CPU, which a busy machine gives it in five, and their answers.
PROVIDER_TIMEOUT_S = 10.0


class ServerChecks:
    """Checks each server until it can be used.

    Args:
        client: a connection to the pipeline's Redis, with a time-out of a second or two.
        redis_url: its address.
        check_database: raises `CannotStart` or `Unavailable` while the database cannot be used.
        broker_url: that of `BROKER_URL`, where it is set.
        embedded: the names of the servers that the stack itself is starting, which are waited for without a line.
        say: prints a line.
    """

    def __init__(
        self,
        client: redis.Redis,
        redis_url: str,
        check_database: Callable[[], None],
        broker_url: str | None,
        embedded: Collection[str],
        say: Callable[[str], None],
    ) -> None:
        self._checks: dict[str, Callable[[], None]] = {
            REDIS: partial(check_redis, client, "REDIS_URL", redis_url),
            POSTGRES: check_database,
        }
        if broker_url:
            self._checks[BROKER] = partial(check_broker, broker_url)
        self._embedded = embedded
        self._say = say
        self._waiting: set[str] = set()

    @property
    def awaited(self) -> list[str]:
        """The servers that could not be used so far."""
        return list(self._checks)

    def run(self) -> None:
        """Check the servers that could not be used so far; to be called until the stack is ready.

        Raises:
            CannotStart: one cannot be used, whatever time passes.
        """
        for name, check in list(self._checks.items()):
            try:
                check()
            except Unavailable as error:
                if name not in self._embedded and name not in self._waiting:
                    self._waiting.add(name)
                    self._say(f"waiting: {error}; start that server, or correct the address")
            else:
                del self._checks[name]


def check_providers(settings: Settings, say: Callable[[str], None]) -> None:
    """Check an embedder or LLM other than the default: a worker takes seconds to find out.

    Raises:
        InvalidSetting: one of them cannot be used.
    """
    if settings.ltm_embedder_provider == DEFAULT_EMBEDDER and settings.ltm_llm_provider is None:
        return
    command = [sys.executable, "-m", "services.long_term_memory.provider_check"]
    try:
        # Not in this session, where it would get the Ctrl-C too.
        checked = subprocess.run(
            command,
            check=False,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PROVIDER_TIMEOUT_S,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        say(f"waiting: LTM_EMBEDDER_PROVIDER {settings.ltm_embedder_provider!r} has not answered yet; is it reachable?")
        return
    reason = checked.stdout.strip()
    if checked.returncode == EXIT_CANNOT_START:
        raise InvalidSetting(reason)
    if checked.returncode:
        say(f"waiting: {reason or 'the check of LTM_EMBEDDER_PROVIDER failed'}")
