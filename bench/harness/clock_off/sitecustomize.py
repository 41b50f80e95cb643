"""What Python imports first in a process under libfaketime, whose directory is on PYTHONPATH there.

libfaketime 0.9.10 makes an invalid argument of the monotonic time until which Python 3.11 and later sleep. So
`time.sleep` waits in select(2), which is told for how long.
"""

from __future__ import annotations

import select
import time
from typing import SupportsIndex


def sleep(seconds: float | SupportsIndex, /) -> None:
    """Wait as `time.sleep` does."""
    until = time.monotonic() + float(seconds)
    while (left := until - time.monotonic()) > 0:
        select.select((), (), (), left)


time.sleep = sleep
