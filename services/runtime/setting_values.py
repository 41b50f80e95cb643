"""Every setting with its value, secrets masked, and where it comes from: for `ltm config` and the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import SecretStr

from services.runtime.settings import RENAMED_SETTINGS, SET_BY_UP, Settings, mask_url

Source = Literal["environment", "old name", "ltm up", "running stack", "default"]


class SettingValue(NamedTuple):
    """One setting.

    Args:
        variable: its environment variable.
        value: as text, secrets masked; None where it is unset.
        source: where the value comes from: `ltm up` of what that has chosen for its processes, `running stack` of what
            a command takes from there.
        read_from: the variable that was read, where it is the old name.
    """

    variable: str
    value: str | None
    source: Source
    read_from: str | None = None


def values_of(settings: Settings, environment: Mapping[str, str]) -> list[SettingValue]:
    """Every setting with its source, in the order of docs/configuration.md."""
    given = {name.lower() for name, value in environment.items() if value}
    by_up = set(environment.get(SET_BY_UP, "").lower().split(","))
    old_names = {new: old for old, new in RENAMED_SETTINGS.items() if old in given}
    values = []
    for name in Settings.model_fields:
        source: Source = "default"
        old = None
        if name in given:
            source = "ltm up" if name in by_up else "environment"
        elif name in old_names:
            source, old = "old name", old_names[name].upper()
        elif name in settings.model_fields_set:
            source = "running stack"
        values.append(SettingValue(name.upper(), _masked(name, getattr(settings, name)), source, old))
    return values


def _masked(name: str, value: object) -> str | None:
    if isinstance(value, SecretStr):
        return mask_url(value.get_secret_value()) if name.endswith("_url") else "***"
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)
