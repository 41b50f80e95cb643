"""The manifests of deploy/kubernetes, as far as they can be tested without a cluster.

They are rendered as `kubectl apply -k` does, and validated against Kubernetes's schemas. test_kubernetes_pods.py runs
the pods' commands, test_kubernetes_scaling.py is about the number of pods.
"""

from __future__ import annotations

import re

import kubernetes_validate
import pytest
import yaml

from services.runtime.heartbeat import HEARTBEAT_TTL_S
from services.runtime.settings import Settings
from services.stack import costs
from services.stack.processes import (
    ADAPTERS,
    CHAT,
    EXTRACTOR,
    GATEWAY,
    INDEXER,
    MEMORY,
    NAMES,
    SERVICES,
    WORKER,
    WRITER,
)
from tests.acceptance.kubernetes_manifests import (
    KUBERNETES,
    METRICS_PORT,
    OVERLAYS,
    VERSIONS,
    command_of,
    container_of,
    every_workload,
    example_secrets,
    needs_kubectl,
    of_kind,
    pod_of,
    rendered,
    secret_settings,
    selects,
    settings_map,
    workloads,
)
from tests.acceptance.native_host import ROOT, commands_of_a_stack, essence

pytestmark = needs_kubectl


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
    """Given a pod, I expect the memory that was measured requested, twice it allowed, and CPU time without a quota."""
    resources = container_of(workloads(overlay)[name])["resources"]
    requested, allowed = (megabytes(resources[each]["memory"]) for each in ("requests", "limits"))

    assert costs.PROCESS_MB.get(name, costs.PROCESS_MB[WRITER]) <= requested <= allowed / 2
    assert set(resources["limits"]) == {"memory"}
    assert re.fullmatch(r"\d+m|\d+", resources["requests"]["cpu"])


def megabytes(quantity: str) -> float:
    assert quantity.endswith("Mi")
    return int(quantity[:-2]) * 1.048576


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
    # A heartbeat that was sent before the first failure is not taken for readiness.
    failed_after_s = container["readinessProbe"]["periodSeconds"] * container["readinessProbe"]["failureThreshold"]
    assert workloads(overlay)[name]["spec"]["minReadySeconds"] > HEARTBEAT_TTL_S + failed_after_s


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


def test_the_steps_of_an_upgrade_apply_one_process_each() -> None:
    """Given the commands of docs/deployment.md, I expect each selector to be of one workload, or of what is of none."""
    section = (ROOT / "docs" / "deployment.md").read_text().split("**Upgrade.**")[1].split("```")[1]
    names = re.search(r"for name in (.+); do", section)
    applied = [
        component
        for given in re.findall(r"-l app.kubernetes.io/component=(\S+)", section)
        for component in ([given.replace("$name", name) for name in names[1].split()] if names else [])
    ]
    labelled = {
        each["metadata"]["labels"].get("app.kubernetes.io/component")
        for each in rendered("overlays/production")
        if each["kind"] in ("Deployment", "StatefulSet")
    }

    assert list(dict.fromkeys(applied)) == [INDEXER, WRITER, WORKER, ADAPTERS]
    assert labelled == {*SERVICES, EXTRACTOR}


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
    # Pods that are not ready, as all are while Redis is away, keep no node from being drained.
    policies = {each["spec"]["unhealthyPodEvictionPolicy"] for each in of_kind(overlay, "PodDisruptionBudget").values()}
    assert policies == {"AlwaysAllow"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_network_policies_are_for_these_pods_alone(overlay: str) -> None:
    """Given the policies, I expect them to select Keepsake's pods, and not a Redis beside them in the namespace."""
    selectors = {name: each["spec"]["podSelector"] for name, each in of_kind(overlay, "NetworkPolicy").items()}
    selected = {
        policy: {
            name
            for name, each in workloads(overlay).items()
            if selects(selector["matchLabels"], each["spec"]["template"]["metadata"]["labels"])
        }
        for policy, selector in selectors.items()
    }

    assert selected == {"metrics": set(workloads(overlay)), "gateway": {GATEWAY}}
    redis = {"app.kubernetes.io/name": "redis", "app.kubernetes.io/component": "redis"}
    assert not [policy for policy, selector in selectors.items() if selects(selector["matchLabels"], redis)]


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


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_alarm_comes_before_the_loss(overlay: str) -> None:
    """Given the settings, I expect the backlog's alarm with as many messages still to come before the stream is cut."""
    settings = Settings.model_validate({name.lower(): value for name, value in settings_map(overlay).items()})

    assert 2 * settings.ltm_max_backlog <= settings.ltm_stream_max_len


def test_every_secret_has_a_placeholder() -> None:
    """Given the example, I expect each secret setting named in it, placeholders alone, and valid manifests."""
    text = (KUBERNETES / "secrets.example.yaml").read_text()
    named = set(re.findall(r"^  (?:# )?([A-Z_]+): ", text, re.MULTILINE))

    assert named == secret_settings()
    values = [value for secret in example_secrets().values() for value in secret["stringData"].values()]
    assert [value for value in values if "CHANGE-ME" not in value] == []
    filled_in = re.sub("^  # ", "  ", text, flags=re.MULTILINE).replace("stringData: {}", "stringData:")
    for secret in (*example_secrets().values(), *yaml.safe_load_all(filled_in)):
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
    stopped = re.findall(
        r"scaledobject ([\w-]+) autoscaling.keda.sh/paused-replicas=0|deployment ([\w-]+) --replicas 0", section
    )
    assert {name for names in stopped for name in names if name} == {INDEXER, WRITER}  # and never what searches
    config = yaml.safe_load(section.split("```yaml\n")[1].split("```")[0])
    assert {job["job_name"] for job in config["scrape_configs"]} == {"keepsake", "keepsake-stack"}
