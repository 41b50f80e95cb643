"""`ltm config`: every setting, its value and where it comes from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import typer
from pydantic import SecretStr

from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir
from services.cli.output import Output, printable
from services.runtime.settings import RENAMED_SETTINGS, Settings, load_settings, mask_url
from services.stack.data_directory import DataDirectory
from services.stack.locate import find_stack

Source = Literal["environment", "old name", "running stack", "default"]


class Value(NamedTuple):
    """One setting.

    Args:
        variable: its environment variable.
        value: as text, secrets masked; None where it is unset.
        source: where the value comes from.
        read_from: the variable that was read, where it is the old name.
    """

    variable: str
    value: str | None
    source: Source
    read_from: str | None = None


def config(
    as_json: Annotated[bool, typer.Option("--json", help="Print the settings as JSON.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Show every setting as the commands see it here, and where its value comes from; passwords and keys are masked."""
    directory = DataDirectory(data_dir)
    running = directory.read() is not None and not os.environ.get("REDIS_URL")
    settings = find_stack(directory, os.environ).settings if running else load_settings()
    values, output = values_of(settings, os.environ), Output()
    if as_json:
        output.json([value._asdict() for value in values])
        return
    for value in values:
        source = f"{value.source} {value.read_from}" if value.read_from else value.source
        shown = "-" if value.value is None else printable(value.value)
        output.line(f"{value.variable:<26} {shown:<40} {source}", "dim" if value.source == "default" else None)


def values_of(settings: Settings, environment: Mapping[str, str]) -> list[Value]:
    """Every setting with its source, in the order of docs/configuration.md."""
    given = {name.lower() for name, value in environment.items() if value}
    old_names = {new: old for old, new in RENAMED_SETTINGS.items() if old in given}
    values = []
    for name in Settings.model_fields:
        source: Source = "default"
        old = None
        if name in given:
            source = "environment"
        elif name in old_names:
            source, old = "old name", old_names[name].upper()
        elif name in settings.model_fields_set:
            source = "running stack"
        values.append(Value(name.upper(), _masked(name, getattr(settings, name)), source, old))
    return values


def _masked(name: str, value: object) -> str | None:
    if isinstance(value, SecretStr):
        return mask_url(value.get_secret_value()) if name.endswith("_url") else "***"
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)
