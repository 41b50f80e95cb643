"""The pods of deploy/kubernetes: their commands run natively, in the pods' environments, on local servers.

Their probes are asked as a kubelet asks them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.stack.processes import MEMORY, WORKER
from tests.acceptance.kubernetes_manifests import (
    METRICS_PORT,
    Manifest,
    container_of,
    needs_kubectl,
    pod_of,
    settings_map,
    workloads,
)
from tests.acceptance.native_host import HEALTHY_WITHIN_S, Container, Host, check_a_conversation
from tests.support import free_port, wait_until

pytestmark = needs_kubectl


class KubernetesHost(Host):
    """This machine in place of a cluster."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, {name: container(each) for name, each in workloads("base").items()})
        self.ports = {name: free_port() for name in self.containers}

    def local(self, name: str) -> dict[str, str]:
        return {f"^{METRICS_PORT}$": str(self.ports[name])}

    def passes(self, name: str, probe: str) -> bool:
        """Whether a probe of the pod passes."""
        get = container_of(workloads("base")[name])[f"{probe}Probe"]["httpGet"]
        return self.answers(self.ports[name], get["path"])

    def healthy(self, name: str) -> bool:
        return self.passes(name, "readiness")


#: What an operator makes of deploy/kubernetes/secrets.example.yaml.
SECRETS = {
    "keepsake": {"REDIS_URL": "redis://redis:6379/0"},
    "keepsake-database": {"DATABASE_URL": "postgresql://postgres@postgres:5432/keepsake"},
}


def container(workload: Manifest) -> Container:
    """What a kubelet runs of a workload's pod."""
    described, labels = container_of(workload), workload["spec"]["template"]["metadata"]["labels"]
    environment: dict[str, str] = {}
    for source in described["envFrom"]:
        if "configMapRef" in source:
            environment |= settings_map("base")
        elif source["secretRef"]["name"] in SECRETS:
            environment |= SECRETS[source["secretRef"]["name"]]
        else:
            assert source["secretRef"]["optional"] is True
    for variable in described["env"]:
        if "value" in variable:
            environment[variable["name"]] = variable["value"]
        else:
            [label] = re.findall(r"metadata\.labels\['(.+)'\]", variable["valueFrom"]["fieldRef"]["fieldPath"])
            environment[variable["name"]] = labels[label]
    # As the file of the Secret is called where it is mounted.
    environment = {name: value.replace("/keepsake/keys.json", "/gateway-keys") for name, value in environment.items()}
    return Container(described["command"], environment, pod_of(workload)["terminationGracePeriodSeconds"])


@pytest.fixture
def host(place: Path) -> Iterator[KubernetesHost]:
    host = KubernetesHost(place)
    yield host
    host.close()


def test_the_pods_process_a_conversation(host: KubernetesHost) -> None:
    """Given every process but the extractor, I expect a conversation remembered, and each to stop gracefully."""
    check_a_conversation(host)


def test_an_outage_restarts_nothing(host: KubernetesHost) -> None:
    """Given pods without servers, I expect them alive and not ready, and ready once the servers answer."""
    host.start(MEMORY)
    host.start(WORKER)
    for name in (MEMORY, WORKER):
        wait_until(lambda name=name: host.passes(name, "startup"), HEALTHY_WITHIN_S, f"the start of {name}")  # type: ignore[misc]
        assert (host.passes(name, "liveness"), host.passes(name, "readiness")) == (True, False)

    host.start_servers()

    for name in (MEMORY, WORKER):
        wait_until(lambda name=name: host.healthy(name), HEALTHY_WITHIN_S, f"the readiness of {name}")  # type: ignore[misc]
