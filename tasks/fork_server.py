"""Fork server of `ltm up`: `python -m tasks.fork_server QUEUE [QUEUE ...] DESCRIPTOR`.

It has loaded what a worker of these queues needs, of which the other processes need a part.
"""

from __future__ import annotations

import socket
import sys

from services.runtime.logging import configure_logging
from services.runtime.settings import load_settings
from services.stack.forking import serve
from services.stack.processes import FORK_SERVER
from tasks.composition import preload


def main() -> None:
    """Load, and fork until `ltm up` ends."""
    *queues, descriptor = sys.argv[1:]
    settings = load_settings()
    configure_logging(settings, FORK_SERVER)
    preload(settings, queues)
    serve(socket.socket(fileno=int(descriptor)))


if __name__ == "__main__":
    main()
