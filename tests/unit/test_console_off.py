"""The gateway without the console."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_WITHOUT = """
import sys
from services.gateway.__main__ import DOORS, _doors
from services.runtime.settings import load_settings

assert _doors(load_settings(ltm_console=False)) == DOORS
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"nicegui", "socketio", "engineio", "aiohttp"}))
"""


def test_without_the_console_its_libraries_are_not_loaded() -> None:
    """Given LTM_CONSOLE=false, I expect a gateway that has not imported NiceGUI and what that needs."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT], check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)
