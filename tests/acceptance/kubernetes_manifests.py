"""The manifests of deploy/kubernetes, rendered as `kubectl apply -k` does."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from typing import Any, get_args

import pytest
import yaml
from pydantic import SecretStr

from services.runtime.settings import Settings
from services.stack.processes import NAMES, SERVERS
from tests.acceptance.native_host import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("base", "overlays/production")
#: The oldest that the manifests are for, and the newest whose schemas are here.
VERSIONS = ("1.27", "1.37")
KUBECTL = shutil.which("kubectl")
METRICS_PORT = 9400

needs_kubectl = pytest.mark.skipif(not KUBECTL, reason="kubectl, which renders the manifests, is not installed")

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


def command_of(workload: Manifest) -> list[str]:
    return list(container_of(workload)["command"])


def secret_settings() -> set[str]:
    """The settings whose values are secret."""
    return {
        name.upper()
        for name, field in Settings.model_fields.items()
        if SecretStr in (field.annotation, *(part for kind in get_args(field.annotation) for part in _parts(kind)))
    }


def _parts(kind: Any) -> tuple[Any, ...]:
    return (kind, *get_args(kind))


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


every_workload = pytest.mark.parametrize(
    ("overlay", "name"), [(overlay, name) for overlay in OVERLAYS for name in NAMES if name not in SERVERS]
)
