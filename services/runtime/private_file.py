"""Files that hold secrets: written atomically, and readable by their owner alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Write a file atomically, readable by its owner alone."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # 0600: URLs may hold passwords
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
