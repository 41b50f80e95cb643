"""Natively run containers: the commands of a compose file or of Kubernetes's manifests, on this machine's servers."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import redis
from keepsake_client.protocol import REQUESTS_QUEUE

from services.runtime.settings import GATEWAY_PORT
from services.stack.embedded_postgres import postgres_spec
from services.stack.embedded_valkey import valkey_spec
from services.stack.processes import SERVICES, service_specs
from services.stack.sockets import free_port
from services.stack.supervisor import Supervisor
from tests.support import wait_until

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()

HEALTHY_WITHIN_S = 120.0
REMEMBERED_WITHIN_S = 60.0
REPLIED_WITHIN_S = 60.0
END_OF_MONITOR = "end of monitor"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments."""
    lines = [line for line in DOCKERFILE.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def of_kind(kind: str) -> list[str]:
    return [rest for word, rest in instructions() if word == kind]


def image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for arguments in of_kind("ENV") for pair in shlex.split(arguments))


def essence(command: list[str]) -> tuple[str, ...]:
    """The command without its interpreter, and a worker's by its queues alone."""
    words = [word for word in command if word not in ("python", sys.executable, "-m")]
    return (words[0], *words[words.index("--queues") :]) if words[0] == "tasks" else tuple(words)


def commands_of_a_stack() -> dict[str, tuple[str, ...]]:
    """What `ltm up` runs, by the name of the process."""
    return {spec.name: essence(list(spec.argv)) for spec in service_specs(extracts=True)}


@dataclass(frozen=True)
class Container:
    """What an orchestrator is told to run of one process.

    Args:
        environment: without that of the image.
        grace_s: how long after SIGTERM it is killed.
    """

    command: list[str]
    environment: dict[str, str]
    grace_s: int


class Host(ABC):
    """This machine in place of an orchestrator: starts containers' commands on local servers.

    Args:
        home: for data and logs.
        containers: by the name of the process.
    """

    def __init__(self, home: Path, containers: dict[str, Container]) -> None:
        self.home = home
        self.containers = containers
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
        given = {**image_environment(), **self.containers[name].environment}
        mapping = {rf"(?<=[/@]){address}\b": local for address, local in self.addresses.items()}
        mapping |= {r"^/tmp\b": str(self.home / "tmp"), r"^/run/secrets\b": str(self.home / "secrets")}
        mapping[f"^{GATEWAY_PORT}$"] = str(self.gateway_port)
        mapping |= self.local(name)
        for pattern, local in mapping.items():
            given = {variable: re.sub(pattern, local, value) for variable, value in given.items()}
        # As a user would set it in .env: a loaded machine may take longer over a search than the default.
        return {"PATH": f"{BIN}:{os.defpath}", "LTM_SEARCH_TIMEOUT_MS": "30000", **given}

    def local(self, name: str) -> dict[str, str]:
        """Further patterns of values of a container's environment, each with what stands for it on this machine."""
        return {}

    @abstractmethod
    def healthy(self, name: str) -> bool:
        """The result of the container's health check."""

    @staticmethod
    def answers(port: int, path: str) -> bool:
        """Whether a page of this machine is there and its status is a success."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
                return bool(200 <= response.status < 300)
        except OSError:  # no server; an HTTPError, too
            return False

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
        """Run the container's command."""
        with (self.home / "logs" / f"{name}.log").open("wb") as output:
            self.processes[name] = subprocess.Popen(
                self.containers[name].command,
                env=self.environment(name),
                cwd=self.home / "work",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self, name: str) -> int:
        """Do what an orchestrator does: SIGTERM to the container's first process alone, then its grace period."""
        process = self.processes.pop(name)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=self.containers[name].grace_s)
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


def check_a_conversation(host: Host) -> None:
    """Run every process but the extractor, and expect of them a remembered conversation and a graceful end."""
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

    # Stopped as an orchestrator stops it, each shuts down gracefully, in time, and is no longer healthy
    for name in SERVICES:
        assert host.stop(name) == 0, name
        assert not host.healthy(name)
    # The root file system may be read-only: everything was written to /tmp
    assert list((host.home / "work").iterdir()) == []
