"""The capacity model and `ltm plan`: what grows with what, and which limit is reached first."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.cli.app import build_app
from services.long_term_memory.retrieval.candidates import EXACT_LIMIT
from services.runtime.settings import Settings
from services.stack import capacity, costs
from services.stack.capacity import Demand, Plan, memory_bytes, plan
from services.stack.processes import ADAPTERS, CHAT, GATEWAY, INDEXER, MEMORY, POSTGRES, REDIS, WORKER, WRITER

CAPACITY = Path(__file__).parents[2] / "docs" / "capacity.md"


def demand(**changed: Any) -> Demand:
    """That of 10,000 users with a hundred messages a day each."""
    return Demand(**{"users": 10_000, "messages_a_day": 1_000_000, **changed})


def replicas(found: Plan) -> dict[str, int]:
    return {need.name: need.replicas for need in found.needs}


def cores(found: Plan) -> dict[str, float]:
    return {need.name: need.cores for need in found.needs}


def limits(found: Plan) -> dict[str, float]:
    return {limit.name: limit.used for limit in found.limits}


def test_the_peak_is_a_multiple_of_the_average() -> None:
    """Given a day's messages, I expect its average second, times the peak factor, and the searches that go with it."""
    found = plan(demand(messages_a_day=864_000, peak_factor=5, searches_per_message=0.5))

    assert found.messages_a_second == pytest.approx(50)
    assert found.searches_a_second == pytest.approx(25)


def test_twice_as_many_users_who_say_the_same_take_twice_as_much() -> None:
    """Given two stacks of which one has twice the users, I expect twice the cores, disk, log and network."""
    one, two = plan(demand()), plan(demand(users=20_000, messages_a_day=2_000_000))

    assert two.memories_per_user == one.memories_per_user
    for figure in ("cores", "disk_gb", "backup_gb", "wal_gb_a_day", "network_mbit", "cached_gb"):
        assert getattr(two, figure) == pytest.approx(2 * getattr(one, figure)), figure
    whole = {"PostgreSQL's connections"}  # of whole processes
    assert limits(two).keys() == limits(one).keys()
    for name in limits(one).keys() - whole:
        assert limits(two)[name] == pytest.approx(2 * limits(one)[name]), name


def test_users_who_say_more_make_a_search_dearer() -> None:
    """Given as many messages of fewer users, I expect more cores for the same number of searches."""
    few, many = plan(demand(users=1_000)), plan(demand(users=100_000))

    assert few.searches_a_second == many.searches_a_second
    assert cores(few)[WORKER] > cores(many)[WORKER]
    assert cores(few)[POSTGRES] > cores(many)[POSTGRES]
    assert cores(few)[INDEXER] == cores(many)[INDEXER]


def test_another_embedder_costs_disk_and_no_cores_here() -> None:
    """Given vectors of four times the dimensions, I expect more disk, and the default embedder's share of CPU gone."""
    default, other = plan(demand()), plan(demand(dimensions=1_536))

    assert memory_bytes(1_536) - memory_bytes(384) > 2 * 2 * (1_536 - 384)
    assert other.disk_gb > default.disk_gb
    assert cores(other)[WORKER] < cores(default)[WORKER]
    assert cores(other)[INDEXER] < cores(default)[INDEXER]


def test_no_process_is_used_more_than_its_share() -> None:
    """Given a large demand, I expect processes enough, each one core at most, but for those that must be one."""
    found = plan(demand(messages_a_day=20_000_000))

    for need in found.needs:
        if need.name not in (REDIS, POSTGRES, MEMORY, CHAT):
            assert need.cores / need.replicas <= capacity.OTHER_SHARE, need.name
    assert replicas(found)[WORKER] > 1
    assert (replicas(found)[MEMORY], replicas(found)[CHAT]) == (1, 1)


@pytest.mark.parametrize("users", [100, 10_000, 1_000_000])
def test_the_first_limit_is_the_one_that_growth_reaches_first(users: int) -> None:
    """Given a demand, I expect each limit full at as many times of it as the plan says, and the earliest named."""
    found = plan(demand(users=users, messages_a_day=100 * users))

    assert (found.first, found.grows) == (found.limits[0].name, min(limit.grows for limit in found.limits))
    for limit in found.limits:
        people = math.floor(users * limit.grows)
        grown = plan(demand(users=people, messages_a_day=100 * people))
        assert 0.9 < limits(grown)[limit.name] <= 1.01, limit.name


def test_processes_that_are_idle_are_no_limit_to_growth() -> None:
    """Given so little to do that each process is nearly idle, I expect twice of it to need no further connection."""
    one, two = plan(demand(users=10, messages_a_day=1_000)), plan(demand(users=20, messages_a_day=2_000))

    assert one.connections == two.connections
    assert one.first != "PostgreSQL's connections"


def test_what_is_not_run_limits_nothing() -> None:
    """Given a chat service and a memory service of one's own, I expect neither among the processes or the limits."""
    found = plan(demand(without=("memory", "chat-ai", "gateway")))

    assert not {MEMORY, CHAT, GATEWAY} & set(cores(found))
    assert not [name for name in limits(found) if "one process" in name]


def test_messages_that_wait_take_redis() -> None:
    """Given a longer outage to live through, I expect a longer stream, and the memory for it."""
    short, long = plan(demand(outage_hours=1)), plan(demand(outage_hours=5))

    assert long.stream_max_len == pytest.approx(5 * short.stream_max_len, rel=0.01)
    assert long.redis_mb - short.redis_mb == pytest.approx(
        (long.stream_max_len - short.stream_max_len) * costs.WAITING_MESSAGE / 1e6
    )


@pytest.mark.parametrize(("hours", "messages"), [(1, 1_000_000 * 5 / 24), (12, 1_000_000), (30, 2_000_000)])
def test_an_outage_may_come_at_the_busiest_time(hours: float, messages: float) -> None:
    """Given five times the average at the peak, I expect room for an outage then, but for no more than days have."""
    assert plan(demand(outage_hours=hours, peak_factor=5)).stream_max_len == math.ceil(messages)


def test_no_plan_shortens_the_stream() -> None:
    """Given little to keep, I expect the stream as long as by default, and no setting to be set."""
    found, (_, output) = plan(demand(messages_a_day=1_000)), run("--users", "10", "--messages-a-day", "1000")

    assert found.stream_max_len == capacity.STREAM
    assert "LTM_STREAM_MAX_LEN" not in output


def test_a_search_of_a_user_who_said_too_much_reads_a_part() -> None:
    """Given more memories of a user than a search reads, I expect none of them to make it dearer."""
    some, many = (demand(users=1, messages_a_day=1_000, days=days) for days in (100, 10_000))

    assert cores(plan(some)) == cores(plan(many))
    assert plan(some).network_mbit == plan(many).network_mbit


def test_the_model_counts_by_the_defaults_of_the_settings() -> None:
    """Given what the model takes for granted, I expect the settings' defaults."""
    defaults = {name: field.default for name, field in Settings.model_fields.items()}

    assert defaults["ltm_trace_max_len"] == capacity.TRACES
    assert defaults["ltm_turns_max"] == capacity.TURNS
    assert defaults["memory_max_messages"] == capacity.CONVERSATION
    assert defaults["ltm_stream_max_len"] == capacity.STREAM
    assert defaults["ltm_stream_hours"] == 24 * capacity.STREAM_DAYS
    assert defaults["ltm_partitions"] == capacity.PARTITIONS
    assert capacity.READ_AT_MOST == EXACT_LIMIT
    threads = {WORKER: "ltm_interactive_threads", WRITER: "ltm_writes_threads", INDEXER: "ltm_index_threads"}
    assert {name: defaults[setting] + 1 for name, setting in threads.items()} == capacity.CONNECTIONS


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), ["plan", *arguments])
    return result.exit_code, result.output


def test_the_command_prints_the_plan() -> None:
    """Given the documented command, I expect the documented output."""
    command, shown = re.findall(r"```\nltm plan ([^\n]+)\n```\n\n```\n(.+?)```", CAPACITY.read_text(), re.DOTALL)[0]

    code, output = run(*command.split())

    assert code == 0
    assert [line.rstrip() for line in output.splitlines()] == [line.rstrip() for line in shown.splitlines()]


def test_the_command_prints_json() -> None:
    code, output = run("--users", "10000", "--messages-a-day", "1000000", "--json")

    assert code == 0
    assert json.loads(output) == json.loads(plan(demand()).model_dump_json())


@pytest.mark.parametrize(
    "arguments",
    [
        ("--users", "0", "--messages-a-day", "1"),
        ("--users", "1", "--messages-a-day", "1", "--peak-factor", "0.5"),
        ("--users", "1", "--messages-a-day", "1", "--without", "postgres"),
        ("--users", "1"),
        ("--users", "1.5", "--messages-a-day", "1"),
        ("--users", "1", "--messages-a-day", "1" + 400 * "0"),
        ("--users", "1" + 400 * "0", "--messages-a-day", "1"),
        *(
            ("--users", "1", "--messages-a-day", "1", option, number)
            for option in ("--peak-factor", "--searches-per-message", "--outage-hours", "--host-disk-gb")
            for number in ("nan", "inf", "1e400", "-1")
        ),
    ],
)
def test_a_demand_that_is_none_is_refused(arguments: tuple[str, ...]) -> None:
    assert run(*arguments)[0] == 2


def test_the_largest_demand_has_a_plan() -> None:
    """Given each option at its largest, I expect numbers, in columns that stay apart."""
    largest = {name: field.metadata[-1].le for name, field in Demand.model_fields.items() if field.metadata}
    arguments = [word for name, number in largest.items() for word in (f"--{name.replace('_', '-')}", str(number))]

    code, output = run(*arguments)

    assert code == 0
    assert all(len(line.split()) == 5 for line in output.splitlines() if line.startswith("long-term-memory"))
    assert json.loads(run(*arguments, "--json")[1])["grows"] > 0


def test_the_page_has_the_figures_of_the_model() -> None:
    """Given the costs in docs/capacity.md, I expect those that the model computes with."""
    text = CAPACITY.read_text()
    rows = {
        cells[0]: [float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", " ".join(cells[1:]))]
        for cells in (
            [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
        )
    }

    for name in (WORKER, ADAPTERS, REDIS, POSTGRES, INDEXER, MEMORY, CHAT, GATEWAY):
        expected = [
            *costs.SEARCH_MS.get(name, ()),
            *([costs.MESSAGE_MS[name]] if name in costs.MESSAGE_MS else []),
            *([costs.TURN_MS[name]] if name in costs.TURN_MS else []),
            *([costs.HTTP_MS[name]] if name in costs.HTTP_MS else []),
        ]
        assert rows[f"`{name}`"] == expected, name
