"""`ltm config`: every setting, its value and where it comes from."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir
from services.cli.output import Output, printable
from services.runtime.setting_values import values_of
from services.runtime.settings import load_settings
from services.stack.data_directory import DataDirectory
from services.stack.locate import find_stack


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
