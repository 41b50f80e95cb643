"""The console's own static files, by URLs that change with their contents, so that browsers keep them."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from services.gateway.console.guard import STATIC

FILES: Final = Path(__file__).parent / "static"


@cache
def file_url(name: str) -> str:
    """The URL of a file."""
    digest = hashlib.sha256((FILES / name).read_bytes()).hexdigest()
    return f"{STATIC}{name}?v={digest[:12]}"
