"""`ltm status`, `ltm chat` and `ltm dead` where something cannot be seen or does not run, on a real Redis."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from keepsake_client.protocol import alive_key, instances_key, process_key

from services.runtime.process_record import REPLICA_DEPENDENCY, Dependency, ProcessRecord, broker_address, other_broker
from services.runtime.settings import load_settings
from services.stack.locate import FoundStack
from services.stack.processes import ADAPTERS, CHAT, EXTRACTOR, GATEWAY, INDEXER, MEMORY, SERVICES, WORKER, WRITER
from services.stack.status import StatusReader
from services.stack.status_report import StatusReport
from tests.integration.responder import responding
from tests.ltm_command import run_ltm
from tests.support import wait_until

#: RabbitMQ's address, as the processes state it.
RABBIT = "amqp://rabbit:5672/keepsake"


@pytest.fixture
def client(valkey_url: str) -> Iterator[Any]:
    """A connection to an empty Valkey."""
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
        yield client
        client.flushall()


def stack_at(url: str) -> FoundStack:
    return FoundStack(load_settings(redis_url=url), False, ())


def states(report: StatusReport) -> dict[str, str]:
    return {part.name: part.state for part in report.parts}


def start(client: Any, *names: str) -> None:
    """What heartbeats of these processes leave in Redis."""
    for name in names:
        client.set(alive_key(name), "host:2:1")
        client.set(process_key(name), ProcessRecord(broker="").model_dump_json())


def test_services_of_ones_own_are_not_missed(client: Any, valkey_url: str) -> None:
    """Given a stack in which no optional process ever ran, I expect them not running, and everything in order."""
    start(client, WORKER, WRITER, INDEXER, ADAPTERS)

    with responding(valkey_url):
        report = StatusReader(stack_at(valkey_url)).report()

    assert states(report) | {"redis": "", "postgres": ""} == {
        "redis": "",
        "postgres": "",
        **dict.fromkeys((WORKER, WRITER, INDEXER, ADAPTERS), "answers"),
        **dict.fromkeys((MEMORY, CHAT, GATEWAY), "not running"),
    }
    assert report.search is not None
    assert (report.search.state, report.ok, report.unseen) == ("answers", True, [])


def test_a_process_that_ran_or_is_always_needed_is_down(client: Any, valkey_url: str) -> None:
    """Given chat-ai that had a heartbeat within a day, and an indexer without any, I expect both down."""
    start(client, WORKER, WRITER, ADAPTERS, MEMORY, CHAT)
    client.delete(alive_key(CHAT))

    with responding(valkey_url):
        report = StatusReader(stack_at(valkey_url)).report()

    assert {name for name, state in states(report).items() if state == "down"} == {CHAT, INDEXER}
    assert not report.ok


def test_what_ltm_up_left_out_is_not_missed(client: Any, valkey_url: str) -> None:
    """Given processes that `ltm up` noted as left out, I expect exit code 0 where the Redis alone is known."""
    start(client, WORKER, ADAPTERS)
    left_out = [WRITER, INDEXER, MEMORY, CHAT, GATEWAY]
    for name in left_out:
        client.set(process_key(name), ProcessRecord(left_out=True).model_dump_json())

    with responding(valkey_url):
        done = run_ltm("status", "--json", REDIS_URL=valkey_url)

    report = StatusReport.model_validate_json(done.stdout)
    assert [name for name, state in states(report).items() if state == "left out"] == left_out
    assert (done.returncode, report.ok) == (0, True)


def test_a_writer_that_does_not_know_the_replica_is_named(client: Any, valkey_url: str) -> None:
    """Given workers of which some know the replica, I expect the writers named whose writes are not noted for it."""
    start(client, *SERVICES)
    knowing = ProcessRecord(uses=[Dependency(name=REPLICA_DEPENDENCY)])
    for name, record in ((WORKER, knowing), (INDEXER, knowing), (WRITER, ProcessRecord())):
        client.set(process_key(name), record.model_dump_json())

    with responding(valkey_url):
        notes = StatusReader(stack_at(valkey_url)).report().notes

    assert [note.partition(";")[0] for note in notes] == [f"without DATABASE_READ_URL: {WRITER}"]


def test_the_address_of_the_gateway_is_shown(client: Any, valkey_url: str) -> None:
    """Given a gateway whose record has its addresses, I expect them beside its state, while it answers."""
    start(client, *SERVICES)
    client.set(
        process_key(GATEWAY),
        ProcessRecord(address="http://[::]:18380", console="http://[::1]:18380/").model_dump_json(),
    )

    with responding(valkey_url):
        shown = run_ltm("status", REDIS_URL=valkey_url)
        client.delete(alive_key(GATEWAY))
        down = run_ltm("status", REDIS_URL=valkey_url)

    assert f"{GATEWAY:<26} answers  http://[::]:18380 (console http://[::1]:18380/)\n" in shown.stdout
    assert f"{GATEWAY:<26} DOWN: no heartbeat\n" in down.stdout


def test_processes_of_one_name_are_shown_by_host(client: Any, valkey_url: str) -> None:
    """Given three workers on two hosts, of which one has just removed the key of all as it stopped, and a host that was
    lost, I expect each host with its count, and for how long the lost one has been silent."""
    start(client, *SERVICES)
    client.delete(alive_key(WORKER))

    def beat() -> None:
        last = client.time()[0]
        client.zadd(instances_key(WORKER), {"a:7": last, "a:8": last, "b:7": last, "lost:7": last - 60})

    def shown() -> bool:
        beat()
        done = run_ltm("status", REDIS_URL=valkey_url)
        told = re.search(rf"{WORKER} +answers; 2 on a, 1 on b, none on lost for \d+ s\n", done.stdout)
        return told is not None and done.returncode == 0

    def read() -> bool:
        beat()
        return StatusReader(stack_at(valkey_url)).part(WORKER).instances.live == {"a": 2, "b": 1}

    with responding(valkey_url):  # again where it takes longer than a heartbeat counts
        wait_until(shown, description="the hosts")
    wait_until(read, description="the hosts in the report")


def test_a_heartbeat_that_cannot_be_read_is_told_with_its_reason(client: Any, valkey_url: str) -> None:
    """Given a key of a heartbeat that another program took for a list, I expect Redis's words, and no permission
    missed."""
    client.lpush(alive_key(WORKER), "x")

    part = StatusReader(stack_at(valkey_url)).part(WORKER)

    assert (part.state, (part.detail or "").partition(" ")[0]) == ("unknown", "ResponseError:")


def test_queues_on_a_broker_that_is_not_known_here_are_no_zeros(client: Any, valkey_url: str) -> None:
    """Given processes with RabbitMQ and a shell without BROKER_URL, I expect the broker named, without its password."""
    there = load_settings(redis_url=valkey_url, broker_url="amqp://ltm:s3cret@rabbit:5672/keepsake")
    start(client, *SERVICES)
    client.set(process_key(WORKER), ProcessRecord(broker=broker_address(there)).model_dump_json())

    with responding(valkey_url):
        status = run_ltm("status", REDIS_URL=valkey_url)
    dead = run_ltm("dead", "list", REDIS_URL=valkey_url)

    assert f"the workers' queues are on {RABBIT}, which is not looked into: BROKER_URL is not set here" in status.stdout
    assert "queue index" not in status.stdout
    assert "s3cret" not in status.stdout + dead.stderr
    assert (status.returncode, dead.returncode) == (0, 1)
    assert dead.stderr == f"ltm: the workers' queues are on {RABBIT}: set BROKER_URL as for the processes\n"


@pytest.mark.parametrize(
    ("redis_url", "broker_url", "stated"),
    [
        ("redis://h:6379/0", None, ""),
        ("redis://a:b@h:6379/0", "redis://c:d@h:6379/0", ""),
        ("redis://h:6379/0", "redis://h:6379/1", "redis://h:6379/1"),
        ("redis://h:6379/0", "redis://h:6379/1?password=secret", "redis://h:6379/1?password=***"),
    ],
)
def test_a_broker_is_stated_without_its_user(redis_url: str, broker_url: str | None, stated: str) -> None:
    """Given the URLs of a process, I expect the broker's address, or nothing where it is the pipeline's Redis."""
    assert broker_address(load_settings(redis_url=redis_url, broker_url=broker_url)) == stated


@pytest.mark.parametrize(
    ("here", "there", "other"),
    [
        (None, None, None),
        (None, "amqp://rabbit/", "amqp://rabbit/"),
        (None, "redis://queues:6379/0", "redis://queues:6379/0"),
        ("amqps://me:pw@localhost/", "amqps://rabbit/", None),
        ("redis://localhost:6379/1", "redis://queues:6379/1", None),
        ("redis://localhost:6379/1", "redis://queues:6379/2", "redis://queues:6379/2"),
        ("redis://localhost:6379/1", "amqp://rabbit/", "amqp://rabbit/"),
        ("redis://localhost:6379/1", None, "the pipeline's Redis"),
        ("redis://localhost:6379", None, None),
        ("rediss+sentinel://localhost/queues/0", "redis+sentinel://a:1,b:2/queues?sentinel_password=secret", None),
        ("redis+sentinel://a/other", "redis+sentinel://:pw@a/queues", "redis+sentinel://a/queues"),
        ("redis+sentinel://a/queues/1", "redis+sentinel://[::1],a/queues", "redis+sentinel://[::1],a/queues"),
    ],
)
def test_a_broker_of_other_settings_is_found(
    client: Any, here: str | None, there: str | None, other: str | None
) -> None:
    """Given BROKER_URL here and for the processes, I expect theirs where it is another one; names of hosts differ."""
    theirs = load_settings(redis_url="redis://redis:6379/0", broker_url=there)
    client.set(process_key(WORKER), ProcessRecord(broker=broker_address(theirs)).model_dump_json())

    own = load_settings(redis_url="redis://127.0.0.1:6379/0", broker_url=here)
    assert other_broker(client, own, SERVICES) == other


def test_a_user_without_rights_sees_that_it_may_not(client: Any, valkey_url: str) -> None:
    """Given a Redis user who may only connect, I expect each thing that it cannot see, and no process called down."""
    start(client, *SERVICES)
    client.execute_command("ACL", "SETUSER", "weak", "on", ">pw", "-@all", "+@connection")
    try:
        url = valkey_url.replace("://", "://weak:pw@")
        report = StatusReader(stack_at(url)).report()
        alone = run_ltm("status", CHAT, REDIS_URL=url)
        others = [run_ltm(*command, stdin="hello\n", REDIS_URL=url) for command in (["chat"], ["dead", "list"])]
        traced = run_ltm("trace", "m1", REDIS_URL=url)
    finally:
        client.execute_command("ACL", "DELUSER", "weak")

    assert states(report) == {"redis": "answers", "postgres": "not checked", **dict.fromkeys(SERVICES, "unknown")}
    assert {part.detail for part in report.parts[2:]} == {
        f"no permission for GET {alive_key(name)}" for name in SERVICES
    }
    assert report.search is not None
    assert (report.search.state, report.ok) == ("unknown", False)
    assert [reason.split(",")[0] for reason in report.unseen] == [
        "no permission for LLEN user_input_queue",
        "no permission for LLEN ltm_requests",
        "no permission for XINFO GROUPS memory_updates:log",
        "no permission for HGETALL ltm:counters",
        "no permission for the workers' queues",
    ]
    assert [(done.returncode, " refuses: " in done.stderr) for done in others] == [(1, True), (1, True)]
    assert "not looked into: ltm:trace: no permission" in traced.stdout
    assert alone.returncode == 1
    assert f"{CHAT:<26} cannot see: no permission for GET ltm:alive:chat-ai" in alone.stdout


def test_a_wrong_password_is_told(valkey_url: str) -> None:
    """Given a password that Redis refuses, I expect that, and no process called down."""
    report = StatusReader(stack_at(valkey_url.replace("://", "://weak:wrong@"))).report()

    assert set(states(report).values()) == {"unknown", "not checked"}
    assert "it asks for another user or password" in str(report.parts[0].detail)


def test_a_frozen_redis_is_waited_for_once() -> None:
    """Given a Redis that accepts connections and answers nothing, I expect one attempt, and no process called down."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            try:
                while True:
                    accepted.append(server.accept()[0])
            except OSError:
                return

        threading.Thread(target=accept, daemon=True).start()
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        report = StatusReader(stack_at(url), timeout_s=0.2).report()
        server.shutdown(socket.SHUT_RDWR)

    assert len(accepted) == 1
    assert states(report) == {"redis": "down", "postgres": "not checked", **dict.fromkeys(SERVICES, "unknown")}
    assert not report.ok
    for connection in accepted:
        connection.close()


def extracting(url: str, database_url: str, **settings: Any) -> FoundStack:
    return FoundStack(
        load_settings(redis_url=url, database_url=database_url, ltm_llm_provider="openai", **settings), True, ()
    )


def test_without_an_llm_there_is_no_word_of_extraction(client: Any, valkey_url: str) -> None:
    """Given no LLM, I expect neither the extractor nor its queue nor a report."""
    start(client, *SERVICES)

    with responding(valkey_url):
        report = StatusReader(stack_at(valkey_url)).report()
        shown = run_ltm("status", REDIS_URL=valkey_url)

    assert (report.ok, EXTRACTOR in states(report), sorted(report.queues)) == (
        True,
        False,
        ["index", "interactive", "writes"],
    )
    assert report.extraction is None
    assert "extract" not in shown.stdout


def test_an_extractor_is_expected_where_an_llm_is_set(client: Any, valkey_url: str, database: str) -> None:
    """Given an LLM and no extractor, I expect it down; with its heartbeat, everything in order, and the report."""
    start(client, *SERVICES)
    with responding(valkey_url):
        missing = StatusReader(extracting(valkey_url, database)).report()
        start(client, EXTRACTOR)
        report = StatusReader(extracting(valkey_url, database)).report()

    assert (missing.ok, states(missing)[EXTRACTOR]) == (False, "down")
    assert (report.ok, states(report)[EXTRACTOR], report.unseen) == (True, "answers", [])
    assert report.extraction is not None
    assert (report.extraction.state, report.extraction.messages) == ("working", 0)
    assert "extract" in report.queues


def test_an_extractor_that_ran_is_known_without_the_setting(client: Any, valkey_url: str) -> None:
    """Given a shell that knows the Redis alone, I expect an extractor that had a heartbeat within a day down."""
    start(client, *SERVICES, EXTRACTOR)
    client.delete(alive_key(EXTRACTOR))

    with responding(valkey_url):
        report = StatusReader(stack_at(valkey_url)).report()

    assert (states(report)[EXTRACTOR], report.ok) == ("down", False)


def test_a_stop_is_told_with_its_reason(client: Any, valkey_url: str, database: str) -> None:
    """Given a provider that refused the key, messages that wait, one set aside, and usage, I expect them in a line
    each, and exit code 1; as JSON, the same."""
    start(client, *SERVICES, EXTRACTOR)
    with psycopg.connect(database) as connection:
        connection.execute(
            "INSERT INTO extraction_state (state, reason, since)"
            " VALUES ('stopped', '401 of openai', '2024-04-05 19:34Z')"
        )
        connection.execute(
            "INSERT INTO extraction (user_number, pending, pending_tokens, from_user, first_at, last_at)"
            " VALUES (1, 1200, 9, 9, '2024-04-05 19:30Z', now())"
        )
        connection.execute(
            "INSERT INTO extraction_usage (day, user_number, calls, prompt_tokens, completion_tokens)"
            " VALUES ((now() AT TIME ZONE 'UTC')::date, 0, 5, 9000, 1000)"
        )
        connection.execute(
            "INSERT INTO to_extract (memory_number, user_number, tokens, from_user, set_aside)"
            " VALUES (1, 1, 9, true, 'no JSON')"
        )
    variables = {"REDIS_URL": valkey_url, "DATABASE_URL": database, "LTM_LLM_PROVIDER": "openai"}

    with responding(valkey_url):
        shown = run_ltm("status", LTM_TIMEZONE="Asia/Shanghai", **variables)
        as_json = run_ltm("status", "--json", **variables)

    assert (
        "extraction                 stopped since 2024-04-06 03:34: 401 of openai; 1,200 messages of 1 user wait,"
        " the oldest since 2024-04-06 03:30; today 5 calls, 10,000 tokens\n"
        "1 message set aside by extraction: `ltm extract list`\n"
    ) in shown.stdout
    assert (shown.returncode, as_json.returncode) == (1, 1)
    extraction = StatusReport.model_validate_json(as_json.stdout).extraction
    assert extraction is not None
    assert (extraction.state, extraction.messages, extraction.tokens) == ("stopped", 1_200, 10_000)


def test_a_database_that_has_no_report_is_told(client: Any, valkey_url: str, empty_database: str) -> None:
    """Given an LLM and a database without the tables, I expect why there is no report."""
    start(client, *SERVICES, EXTRACTOR)

    with responding(valkey_url):
        report = StatusReader(extracting(valkey_url, empty_database)).report()

    assert report.unseen == ['extraction: relation "extraction_state" does not exist']
    assert not report.ok


@pytest.mark.parametrize(("running", "missing"), [([MEMORY], "chat-ai"), ([], "memory and chat-ai")])
def test_chat_says_at_once_what_does_not_run(client: Any, valkey_url: str, running: list[str], missing: str) -> None:
    """Given no chat-ai, I expect one line before the first message, and nothing left in the list."""
    start(client, *running)

    done = run_ltm("chat", stdin="hello\n", REDIS_URL=valkey_url)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"ltm: {missing} of Keepsake do")
    assert done.stderr.count("\n") == 1
    assert client.keys("user_input_queue*") == []


def test_completion_prints_completions_alone(valkey_url: str) -> None:
    """Given a setting under its old name, I expect TAB to complete names and print nothing else."""
    done = run_ltm(
        _LTM_COMPLETE="complete_bash",
        COMP_WORDS="ltm status long-term-memory-w",
        COMP_CWORD="2",
        LTM_READ_AHEAD="100",
    )

    assert done.stdout.split() == [WORKER, WRITER]
    assert done.stderr == ""
