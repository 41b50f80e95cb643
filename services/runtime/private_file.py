"""Files that hold secrets: written atomically, and readable by their owner alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_private(path: Path, text: str, like: os.stat_result | None = None) -> None:
    """Write a file atomically, readable by its owner alone.

    Args:
        like: the owner and mode that it gets in place of these.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # 0600: URLs may hold passwords
    try:
        with os.fdopen(handle, "w") as file:
            if like is not None:
                os.fchown(handle, like.st_uid, like.st_gid)
                os.fchmod(handle, like.st_mode & 0o777)
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
