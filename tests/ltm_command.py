"""The command `ltm` as a test runs it: in the test's own process, or as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path
from unittest.mock import patch

from services.cli.app import main
from services.runtime.settings import RENAMED_SETTINGS, Settings
from tests.support import restored_logging

LTM = str(Path(sys.executable).parent / "ltm")
#: They end by signals, or with their standard input.
IN_A_PROCESS = frozenset({"up", "mcp"})
WITHIN_S = 180.0


def clean_environment(**variables: str) -> dict[str, str]:
    """This environment without Keepsake's settings, and with `variables`."""
    settings = {name.upper() for name in (*Settings.model_fields, *RENAMED_SETTINGS)}
    return {**{name: value for name, value in os.environ.items() if name not in settings}, **variables}


def run_ltm(
    *arguments: str, stdin: str | None = None, encoding: str = "utf-8", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run one `ltm` command to its end; in this process where it can be, for loading its modules takes a second."""
    run = _in_a_process if IN_A_PROCESS & set(arguments[:1]) else _in_this_process
    return run(arguments, stdin, encoding, clean_environment(**variables))


def run_ltm_process(
    *arguments: str, stdin: str | None = None, encoding: str = "utf-8", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run one `ltm` command to its end, as a shell does."""
    return _in_a_process(arguments, stdin, encoding, clean_environment(**variables))


def _in_a_process(
    arguments: tuple[str, ...], stdin: str | None, encoding: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LTM, *arguments],
        env={**environment, "PYTHONIOENCODING": encoding},
        input=stdin,
        capture_output=True,
        encoding=encoding,
        timeout=WITHIN_S,
        check=False,
    )


def _in_this_process(
    arguments: tuple[str, ...], stdin: str | None, encoding: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    typed = TextIOWrapper(BytesIO((stdin or "").encode(encoding)), encoding=encoding)
    printed = TextIOWrapper(BytesIO(), encoding=encoding)
    errors = TextIOWrapper(BytesIO(), encoding=encoding, errors="backslashreplace")
    code: object = 0
    with (
        restored_logging(),
        patch.dict(os.environ, {"LTM_INDEX_NICE": "0", **environment}, clear=True),  # this process's, for good
        patch.object(sys, "argv", [LTM, *arguments]),
        patch.object(sys, "stdin", typed),
        redirect_stdout(printed),
        redirect_stderr(errors),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int), code
    return subprocess.CompletedProcess([LTM, *arguments], code, _text(printed), _text(errors))


def _text(file: TextIOWrapper) -> str:
    file.seek(0)
    return file.read()
