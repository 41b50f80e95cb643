"""The ports of metrics under `ltm up`: one a process, checked before anything starts."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from services.runtime.errors import PortTaken
from services.stack import metrics_ports
from services.stack.metrics_ports import metrics_address
from services.stack.processes import EXTRACTOR, GATEWAY, SERVICES, WORKER, ProcessSpec, service_specs
from services.stack.supervisor import Supervisor
from tests.support import free_ports, wait_until


def test_each_process_has_a_port_in_the_order_of_the_stack() -> None:
    """Given a first port, I expect those after it in the order in which processes start, the extractor's last."""
    specs = service_specs(extracts=True, metrics_port=19_400)

    assert {spec.name: spec.metrics_port for spec in specs} == {
        name: 19_400 + number for number, name in enumerate((*SERVICES, EXTRACTOR))
    }


def test_without_the_setting_no_process_has_one() -> None:
    """Given no LTM_METRICS_PORT, I expect no port, and nothing announced."""
    specs = service_specs()

    assert {spec.metrics_port for spec in specs} == {None}
    assert metrics_address(specs, "127.0.0.1") is None


def test_the_address_names_the_first_and_the_last() -> None:
    """Given processes with ports, I expect one line that says where they are."""
    first = free_ports(len(SERVICES))

    line = metrics_address(service_specs(metrics_port=first), "127.0.0.1")

    assert line == f"http://127.0.0.1:{first}/metrics ({WORKER}) to {first + 6} ({GATEWAY})"


def test_a_port_in_use_is_reported_with_the_process() -> None:
    """Given a port of one of the processes in use, I expect an error that names both, and the setting."""
    first = free_ports(len(SERVICES))
    with socket.create_server(("127.0.0.1", first + 2)), pytest.raises(PortTaken, match="LTM_METRICS_PORT") as raised:
        metrics_address(service_specs(metrics_port=first), "127.0.0.1")

    assert f"port {first + 2} " in str(raised.value)
    assert SERVICES[2] in str(raised.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b"])
def test_an_address_that_this_host_does_not_have_is_reported(host: str) -> None:
    """Given an address of another host, or no host name, as LTM_METRICS_HOST, I expect an error that names both."""
    with pytest.raises(PortTaken, match=rf"^port \d+ on {host} .*or correct LTM_METRICS_HOST$"):
        metrics_address(service_specs(metrics_port=free_ports(len(SERVICES))), host)


def test_an_address_of_ipv6_has_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the loopback of IPv6, I expect a URL."""
    monkeypatch.setattr(metrics_ports, "check_port", lambda port, *_: port)

    line = metrics_address([ProcessSpec("a-process", ("true",), 19_400)], "::1")

    assert line == "http://[::1]:19400/metrics (a-process) to 19400 (a-process)"


def test_a_port_above_the_highest_is_refused() -> None:
    """Given a first port so high that not all fit, I expect an error that says to lower it."""
    with pytest.raises(PortTaken, match="lower LTM_METRICS_PORT"):
        metrics_address([ProcessSpec("a-process", ("true",), 65_536)], "127.0.0.1")


def test_a_supervised_process_is_given_its_own_port(tmp_path: Path) -> None:
    """Given two processes of which one has a port, I expect it in that one's environment alone."""
    script = "import json, os, sys; print(json.dumps(os.environ.get('LTM_METRICS_PORT')), flush=True); sys.stdin.read()"
    argv = (sys.executable, "-c", f"{script}; import time; time.sleep(60)")
    specs = [ProcessSpec("serving", argv, 19_404), ProcessSpec("silent", argv)]
    supervisor = Supervisor(specs, {}, tmp_path, tmp_path, lambda _: None)
    try:
        supervisor.poll()
        logs = [tmp_path / f"{spec.name}.log" for spec in specs]
        wait_until(lambda: all(log.read_text() for log in logs), description="both to print")
    finally:
        supervisor.stop()

    assert [json.loads(log.read_text()) for log in logs] == ["19404", None]
