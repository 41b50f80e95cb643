"""Locating the running stack: `REDIS_URL`, or else the data directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.runtime.errors import StackError
from services.runtime.settings import RENAMED_SETTINGS, Settings, load_settings
from services.stack.data_directory import DataDirectory

#: Settings on which clients and processes must agree: names and addresses, in which zone dates are shown, and whether
#: facts are found in what was said.
SHARED_SETTINGS = (
    "broker_url",
    "ltm_requests_queue",
    "ltm_manage_queue",
    "ltm_responses_channel",
    "memory_updates_channel",
    "ltm_stream_key",
    "user_input_queue",
    "ai_responses_channel",
    "ltm_timezone",
    "ltm_llm_provider",
)


@dataclass(frozen=True)
class FoundStack:
    """A running stack, as a client sees it.

    Args:
        settings: with the addresses and names that it uses.
        database_known: whether the address of its PostgreSQL is known, and not just the default.
        without: the names of the processes left out of it.
    """

    settings: Settings
    database_known: bool
    without: tuple[str, ...]

    @property
    def redis_url(self) -> str:
        """The pipeline's Redis."""
        return self.settings.redis_url.get_secret_value()


def shared_settings(settings: Settings) -> dict[str, str]:
    """The settings of `SHARED_SETTINGS` that are set, in plain text."""
    plain = {}
    for name in SHARED_SETTINGS:
        value = getattr(settings, name)
        if name in settings.model_fields_set and value is not None:
            plain[name] = value if isinstance(value, str) else value.get_secret_value()
    return plain


def find_stack(directory: DataDirectory, environment: Mapping[str, str]) -> FoundStack:
    """The stack that the environment names, or the one that runs in the data directory.

    A variable that is set wins over the recorded setting. The record may be of a version before settings were renamed.

    Raises:
        StackError: neither names one.
        InvalidSetting: a variable has an invalid value.
    """
    record = directory.read()
    if environment.get("REDIS_URL"):
        return FoundStack(load_settings(), bool(environment.get("DATABASE_URL")), ())
    if record is None:
        raise StackError(f"no stack runs in {directory.path}: start one with `ltm up`, or set REDIS_URL")
    recorded: dict[str, Any] = {"redis_url": record.redis_url, "database_url": record.database_url, **record.settings}
    given = {_field(variable.lower()) for variable, value in environment.items() if value}
    overrides = {_field(name): value for name, value in recorded.items() if _field(name) not in given}
    return FoundStack(load_settings(**overrides), True, tuple(record.without))


def _field(name: str) -> str:
    """The present name of a setting's field."""
    return RENAMED_SETTINGS.get(name, name)
