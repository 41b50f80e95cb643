"""The command `ltm` as a test runs it: in the test's own process, or as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path
from unittest.mock import patch

from services.cli.app import main
from services.runtime.settings import RENAMED_SETTINGS, Settings
from tests.support import end_subreaper, restored_logging

LTM = str(Path(sys.executable).parent / "ltm")
WITHIN_S = 180.0
#: For which a command has handlers, and the one that ends a command in this process that does not end.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


def clean_environment(**variables: str) -> dict[str, str]:
    """This environment without Keepsake's settings, and with `variables`."""
    settings = {name.upper() for name in (*Settings.model_fields, *RENAMED_SETTINGS)}
    return {**{name: value for name, value in os.environ.items() if name not in settings}, **variables}


def run_ltm(
    *arguments: str, stdin: str | None = None, encoding: str = "utf-8", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run one `ltm` command to its end; in this process where it can be, for loading its modules takes a second."""
    run = _in_a_process if "mcp" in arguments[:1] else _in_this_process  # it takes over this process's standard input
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
        _restored_signals(),
        patch.dict(os.environ, {"LTM_INDEX_NICE": "0", **environment}, clear=True),  # this process's, for good
        patch.object(sys, "argv", [LTM, *arguments]),
        patch.object(sys, "stdin", typed),
        redirect_stdout(printed),
        redirect_stderr(errors),
    ):
        signal.signal(signal.SIGALRM, _give_up)
        signal.setitimer(signal.ITIMER_REAL, WITHIN_S)
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            end_subreaper()  # `up` has begun it
    assert isinstance(code, int), code
    return subprocess.CompletedProcess([LTM, *arguments], code, _text(printed), _text(errors))


@contextmanager
def _restored_signals() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _give_up(*_: object) -> None:
    raise AssertionError(f"the command did not end within {WITHIN_S} s")


def _text(file: TextIOWrapper) -> str:
    file.seek(0)
    return file.read()
