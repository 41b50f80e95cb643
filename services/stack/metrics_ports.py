"""The ports on which the processes of `ltm up` serve their metrics."""

from __future__ import annotations

from collections.abc import Sequence

from services.runtime.errors import PortTaken
from services.runtime.settings import MAX_PORT, http_url
from services.stack.processes import ProcessSpec
from services.stack.sockets import LOOPBACK, check_port


def metrics_address(specs: Sequence[ProcessSpec], host: str) -> str | None:
    """Where the metrics will be, in one line; None where none are served.

    Raises:
        PortTaken: one of the ports is in use, or would be above the highest, or the host is none of this machine's.
    """
    elsewhere = "" if host == LOOPBACK else ", or correct LTM_METRICS_HOST"
    ports = {spec.name: spec.metrics_port for spec in specs if spec.metrics_port is not None}
    for name, port in ports.items():
        if port > MAX_PORT:
            raise PortTaken(f"{name} would serve its metrics on port {port}; lower LTM_METRICS_PORT")
        check_port(port, f"LTM_METRICS_PORT, from which {name} has its own{elsewhere}", host)
    if not ports:
        return None
    names = list(ports)
    first, last = names[0], names[-1]
    return f"{http_url(host, ports[first])}/metrics ({first}) to {ports[last]} ({last})"
