"""TCP keepalives of connections to Redis: they keep a NAT from forgetting idle ones, and end those that it forgot."""

from __future__ import annotations

import socket
from typing import Any

#: The first probe after 5 s without traffic; three without an answer, and the kernel closes it, within 11 s. macOS
#: has other names, and keeps its own intervals.
_INTERVALS = {
    getattr(socket, name): value
    for name, value in {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}.items()
    if hasattr(socket, name)
}


def keepalive_options(url: str) -> dict[str, Any]:
    """The options of a redis-py client at `url`; a Unix socket has none."""
    if url.startswith("unix:"):
        return {}
    return {"socket_keepalive": True, "socket_keepalive_options": _INTERVALS}
