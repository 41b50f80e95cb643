"""The manifests of deploy/kubernetes, as far as they can be tested without a cluster.

They are rendered as `kubectl apply -k` does, validated against Kubernetes's schemas, and each pod's command runs
natively, in the pod's environment, on local servers; its probes are asked as a kubelet asks them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import jsonschema
import kubernetes_validate
import pytest
import yaml
from pydantic import SecretStr

from services.runtime.settings import Settings
from services.stack.processes import CHAT, EXTRACTOR, GATEWAY, INDEXER, MEMORY, NAMES, SERVERS, WORKER
from tests.acceptance.native_host import (
    HEALTHY_WITHIN_S,
    ROOT,
    Container,
    Host,
    check_a_conversation,
    commands_of_a_stack,
    essence,
)
from tests.support import free_port, wait_until
from tests.unit.test_monitoring import PROMTOOL, metric_names

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("base", "overlays/production")
#: The oldest that the manifests are for, and the newest whose schemas are here.
VERSIONS = ("1.27", "1.37")
KUBECTL = shutil.which("kubectl")
METRICS_PORT = 9400

pytestmark = pytest.mark.skipif(not KUBECTL, reason="kubectl, which renders the manifests, is not installed")

Manifest = dict[str, Any]


@cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    """The manifests that an overlay applies."""
    assert KUBECTL
    text = subprocess.run(
        [KUBECTL, "kustomize", str(KUBERNETES / overlay)], check=True, capture_output=True, text=True
    ).stdout
    return tuple(yaml.safe_load_all(text))


def of_kind(overlay: str, *kinds: str) -> dict[str, Manifest]:
    """The manifests of these kinds, by name."""
    return {each["metadata"]["name"]: each for each in rendered(overlay) if each["kind"] in kinds}


def workloads(overlay: str) -> dict[str, Manifest]:
    return of_kind(overlay, "Deployment", "StatefulSet")


def pod_of(workload: Manifest) -> Manifest:
    pod: Manifest = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: Manifest) -> Manifest:
    [container] = pod_of(workload)["containers"]
    return dict(container)


def settings_map(overlay: str) -> dict[str, str]:
    [settings] = of_kind(overlay, "ConfigMap").values()
    return dict(settings["data"])


def example_secrets() -> dict[str, Manifest]:
    documents = yaml.safe_load_all((KUBERNETES / "secrets.example.yaml").read_text())
    return {each["metadata"]["name"]: each for each in documents}


def scaled_objects() -> dict[str, Manifest]:
    return of_kind("overlays/production", "ScaledObject")


def queries() -> dict[str, list[str]]:
    """The expressions that KEDA asks Prometheus for, by the workload that it scales."""
    return {
        name: [trigger["metadata"]["query"] for trigger in each["spec"]["triggers"]]
        for name, each in scaled_objects().items()
    }


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


every_workload = pytest.mark.parametrize(
    ("overlay", "name"), [(overlay, name) for overlay in OVERLAYS for name in NAMES if name not in SERVERS]
)


# --- The manifests


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_manifests_are_valid(overlay: str, version: str) -> None:
    """Given what `kubectl apply -k` sends, I expect Kubernetes's schemas to hold, without an unknown field."""
    plain = [manifest for manifest in rendered(overlay) if not manifest["apiVersion"].startswith("keda.sh/")]

    for manifest in plain:
        kubernetes_validate.validate(manifest, version, strict=True)
    assert len(plain) > len(NAMES)


def test_a_field_that_there_is_not_would_be_noticed() -> None:
    """Given a slip in a manifest, I expect the validation to name it."""
    slip = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"clusterIp": "None"}}

    with pytest.raises(kubernetes_validate.ValidationError, match="clusterIp"):
        kubernetes_validate.validate(slip, VERSIONS[-1], strict=True)


def test_the_scaled_objects_are_valid() -> None:
    """Given what KEDA is to do, I expect its schema to hold, and the workloads that it scales to be there."""
    schema = json.loads((ROOT / "tests" / "data" / "kubernetes" / "keda_scaled_object.json").read_text())

    assert set(scaled_objects()) == {WORKER, INDEXER}
    for name, scaled in scaled_objects().items():
        jsonschema.Draft202012Validator(schema).validate(scaled)
        target = workloads("overlays/production")[scaled["spec"]["scaleTargetRef"]["name"]]
        assert (target["kind"], target["metadata"]["name"]) == ("Deployment", name)
        # Or each apply would set back what KEDA has decided.
        assert "replicas" not in target["spec"]


def test_every_query_is_about_metrics_that_there_are() -> None:
    names = [name for query in chain(*queries().values()) for name in re.findall(r"\bkeepsake_\w+", query)]

    assert len(names) > 5
    assert [name for name in names if name not in metric_names()] == []


@pytest.mark.skipif(not PROMTOOL, reason="promtool is not installed")
def test_the_queries_ask_for_as_many_replicas_as_are_needed(tmp_path: Path) -> None:
    """Given a hundred searches a second on two workers, I expect more asked for while they are late, and only then."""
    assert PROMTOOL
    (rate, late), (backlog,) = queries()[WORKER], queries()[INDEXER]
    rules = [{"record": name, "expr": expr} for name, expr in (("rate", rate), ("late", late), ("backlog", backlog))]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "keda", "rules": rules}]}))
    worker = 'keepsake_requests{}_total{{type="search",instance="{}"{}}}'
    info = 'keepsake_process_info{{process="long-term-memory-worker",instance="{}"}}'

    def series(late_a_minute: int) -> list[dict[str, str]]:
        counted = {f"a{late_a_minute}": 3000, "b": 3000}
        return [
            *(
                {"series": worker.format("", pod, ',outcome="ok"'), "values": f"0+{number}x10"}
                for pod, number in counted.items()
            ),
            *({"series": worker.format("_late", pod, ""), "values": f"0+{late_a_minute}x10"} for pod in counted),
            *({"series": info.format(pod), "values": "1x10"} for pod in counted),
            # Two gateways tell the same of the one stack.
            *({"series": f'keepsake_backlog_messages{{instance="{pod}"}}', "values": "9000x10"} for pod in "cd"),
            *(
                {
                    "series": f'keepsake_queue_messages{{queue="index",state="waiting",instance="{pod}"}}',
                    "values": "100x10",
                }
                for pod in "cd"
            ),
        ]

    def expect(expr: str, *values: float) -> dict[str, Any]:
        return {
            "expr": f"sum({expr})",
            "eval_time": "8m",
            "exp_samples": [{"labels": "{}", "value": value} for value in values],
        }

    tests = [
        {"interval": "1m", "input_series": series(29), "promql_expr_test": [expect("late")]},
        {
            "interval": "1m",
            "input_series": series(31),
            "promql_expr_test": [expect("late", 3.0), expect("rate", 100.0), expect("backlog", 9_100.0)],
        },
    ]
    (tmp_path / "test.yml").write_text(json.dumps({"rule_files": ["rules.yml"], "tests": tests}))

    done = subprocess.run(
        [PROMTOOL, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_process_is_a_workload_that_runs_what_ltm_up_runs(overlay: str) -> None:
    commands = {name: essence(container_of(each)["command"]) for name, each in workloads(overlay).items()}

    assert commands == commands_of_a_stack()


@every_workload
def test_a_pod_has_least_privilege(overlay: str, name: str) -> None:
    """Given a pod, I expect what the strictest of Kubernetes's Pod Security Standards asks for, and compose gives."""
    pod, container = pod_of(workloads(overlay)[name]), container_of(workloads(overlay)[name])

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/tmp"]


@every_workload
def test_a_pod_requests_what_it_needs(overlay: str, name: str) -> None:
    """Given a pod, I expect no more memory requested than it may take, and CPU time that no quota interrupts."""
    resources = container_of(workloads(overlay)[name])["resources"]

    assert megabytes(resources["requests"]["memory"]) <= megabytes(resources["limits"]["memory"])
    assert set(resources["limits"]) == {"memory"}
    assert re.fullmatch(r"\d+m|\d+", resources["requests"]["cpu"])


def megabytes(quantity: str) -> int:
    assert quantity.endswith("Mi")
    return int(quantity[:-2])


@every_workload
def test_the_probes_tell_a_start_a_hang_and_an_outage_apart(overlay: str, name: str) -> None:
    """Given a pod, I expect a restart where it hangs, no work while its servers are away, and time to start."""
    container = container_of(workloads(overlay)[name])
    probes = {probe: container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")}

    assert {port["name"]: port["containerPort"] for port in container["ports"]}["metrics"] == METRICS_PORT
    assert {probe: (get["path"], get["port"]) for probe, get in probes.items()} == {
        "startup": ("/livez", "metrics"),
        "liveness": ("/livez", "metrics"),
        "readiness": ("/readyz", "metrics"),
    }


@every_workload
def test_a_pod_has_as_long_to_stop_as_in_compose(overlay: str, name: str) -> None:
    """Given a worker's shutdown timeout, and the gateway's wait before it, I expect a longer grace period."""
    workload = workloads(overlay)[name]
    command, grace_s = container_of(workload)["command"], pod_of(workload)["terminationGracePeriodSeconds"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][name]

    waits_s = int(container_of(workload).get("lifecycle", {"preStop": _NO_WAIT})["preStop"]["exec"]["command"][1])
    assert f"{grace_s - waits_s}s" == compose["stop_grace_period"]
    if "--worker-shutdown-timeout" in command:
        assert int(command[command.index("--worker-shutdown-timeout") + 1]) < 1000 * grace_s


_NO_WAIT = {"exec": {"command": ["sleep", "0"]}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_must_be_one_is_never_two(overlay: str) -> None:
    """Given `memory` and `chat-ai`, I expect StatefulSets of one, which nothing scales; all else may be several."""
    kinds = {name: each["kind"] for name, each in workloads(overlay).items()}

    assert {name for name, kind in kinds.items() if kind == "StatefulSet"} == {MEMORY, CHAT}
    assert {workloads(overlay)[name]["spec"]["replicas"] for name in (MEMORY, CHAT)} == {1}


def test_what_needs_an_llm_or_keys_is_started_on_demand() -> None:
    none = {name for name, each in workloads("base").items() if each["spec"]["replicas"] == 0}

    assert none == {EXTRACTOR, GATEWAY}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_drain_takes_one_pod_of_a_kind_after_the_other(overlay: str) -> None:
    """Given what may be several, I expect a budget each; what is one has none, or no node could be drained."""
    budgets = {
        name: each["spec"]["selector"]["matchLabels"] for name, each in of_kind(overlay, "PodDisruptionBudget").items()
    }
    covered = {
        (budget, name)
        for budget, selector in budgets.items()
        for name, each in workloads(overlay).items()
        if selects(selector, each["spec"]["template"]["metadata"]["labels"])
    }

    assert covered == {(name, name) for name in workloads(overlay) if name not in (MEMORY, CHAT)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_services_lead_to_the_pods(overlay: str) -> None:
    """Given the two Services, I expect all pods behind the one of the metrics, and the gateways behind the other."""
    behind = {
        service: {
            name
            for name, each in workloads(overlay).items()
            if selects(manifest["spec"]["selector"], each["spec"]["template"]["metadata"]["labels"])
        }
        for service, manifest in of_kind(overlay, "Service").items()
    }

    assert behind == {"keepsake-metrics": set(workloads(overlay)), "keepsake-gateway": {GATEWAY}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_are_settings_and_no_secrets(overlay: str) -> None:
    """Given the ConfigMap, I expect settings that there are, and none that is secret."""
    names = set(settings_map(overlay)) - {"OMP_NUM_THREADS"}

    assert {name.lower() for name in names} <= set(Settings.model_fields)
    assert names & secret_settings() == set()
    assert of_kind(overlay, "Secret") == {}


def secret_settings() -> set[str]:
    """The settings whose values are secret."""
    return {
        name.upper()
        for name, field in Settings.model_fields.items()
        if SecretStr in (field.annotation, *(part for kind in get_args(field.annotation) for part in _parts(kind)))
    }


def _parts(kind: Any) -> tuple[Any, ...]:
    return (kind, *get_args(kind))


def test_every_secret_has_a_placeholder() -> None:
    """Given the example, I expect each secret setting named in it, placeholders alone, and valid manifests."""
    text = (KUBERNETES / "secrets.example.yaml").read_text()
    named = set(re.findall(r"^  (?:# )?([A-Z_]+): ", text, re.MULTILINE))

    assert named == secret_settings()
    values = [value for secret in example_secrets().values() for value in secret["stringData"].values()]
    assert [value for value in values if "CHANGE-ME" not in value] == []
    for secret in example_secrets().values():
        kubernetes_validate.validate(secret, VERSIONS[-1], strict=True)


@every_workload
def test_a_pod_gets_the_secrets_that_it_uses(overlay: str, name: str) -> None:
    """Given a pod, I expect secrets of the example alone, and the database's in workers alone."""
    workload = workloads(overlay)[name]
    sources = container_of(workload)["envFrom"]
    secrets = {source["secretRef"]["name"] for source in sources if "secretRef" in source}
    mounted = {volume["secret"]["secretName"] for volume in pod_of(workload)["volumes"] if "secret" in volume}

    assert secrets | mounted <= set(example_secrets())
    assert ("keepsake-database" in secrets) == name.startswith("long-term-memory-") & ("tasks" in command_of(workload))
    assert mounted == ({"keepsake-gateway-keys"} if name == GATEWAY else set())


def test_the_documentation_names_what_is_applied() -> None:
    """Given the section of docs/deployment.md, I expect its Services, ports, Deployments and files in the manifests."""
    section = (ROOT / "docs" / "deployment.md").read_text().split("\n## Kubernetes\n")[1].split("\n## ")[0]
    services = of_kind("overlays/production", "Service")

    scraped = re.findall(r"regex: ([\w-]+);([\w-]+)", section)
    assert len(scraped) == 2
    for service, port in scraped:
        assert port in [each["name"] for each in services[service]["spec"]["ports"]]
    deployments = set(re.findall(r"(?:deploy/|deployment )(long-term-memory-\w+)", section))
    assert deployments <= set(workloads("overlays/production"))
    for path in re.findall(r"deploy/kubernetes/[\w./-]+", section):
        assert path.endswith("/mine") or (ROOT / path.rstrip(".")).exists(), path
    config = yaml.safe_load(section.split("```yaml\n")[1].split("```")[0])
    assert {job["job_name"] for job in config["scrape_configs"]} == {"keepsake", "keepsake-stack"}


def command_of(workload: Manifest) -> list[str]:
    return list(container_of(workload)["command"])


# --- The pods


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
