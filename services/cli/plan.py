"""`ltm plan`: the cores, memory, disk and network that a stack needs for so many users and messages."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.output import Output
from services.stack.capacity import OTHER_SHARE, SEARCHING_SHARE, STREAM, Demand, Plan, plan
from services.stack.costs import MEASURED_ON
from services.stack.processes import OPTIONAL

_DEFAULTS = Demand(users=1, messages_a_day=1)


def plan_command(
    users: Annotated[int, typer.Option(min=1, max=10_000_000_000, help="Users who are active within a day.")],
    messages_a_day: Annotated[
        int, typer.Option(min=1, max=1_000_000_000_000, help="Messages a day of all of them, the AI's included.")
    ],
    searches_per_message: Annotated[
        float,
        typer.Option(min=0, max=100, help="Searches for each message; 0.5 where the AI answers each of a user's."),
    ] = _DEFAULTS.searches_per_message,
    peak_factor: Annotated[
        float, typer.Option(min=1, max=1_000, help="The busiest minutes, as a multiple of the day's average.")
    ] = _DEFAULTS.peak_factor,
    days: Annotated[int, typer.Option(min=1, max=36_500, help="For how many days memories are kept.")] = _DEFAULTS.days,
    dimensions: Annotated[
        int, typer.Option(min=1, max=16_000, help="Of the embedder; the cost of another one is not counted.")
    ] = _DEFAULTS.dimensions,
    outage_hours: Annotated[
        float,
        typer.Option(
            min=0, max=720, help="How long messages can wait in Redis, at any time of day, while nothing is indexed."
        ),
    ] = _DEFAULTS.outage_hours,
    http_share: Annotated[
        float, typer.Option(min=0, max=1, help="The share of searches that come by the gateway.")
    ] = _DEFAULTS.http_share,
    host_cores: Annotated[
        int, typer.Option(min=1, max=4_096, help="Of the largest host for PostgreSQL.")
    ] = _DEFAULTS.host_cores,
    host_disk_gb: Annotated[
        float, typer.Option(min=1, max=1_000_000, help="Of the largest host for PostgreSQL.")
    ] = _DEFAULTS.host_disk_gb,
    without: Annotated[
        list[str] | None, typer.Option(help="A process that you run yours of instead: memory, chat-ai or gateway.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Compute what a stack needs for so many users and messages; it reads nothing and connects to nothing."""
    if unknown := set(without or []) - set(OPTIONAL):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))} cannot be left out; {', '.join(OPTIONAL)} can")
    found = plan(
        Demand.model_validate(
            {
                "users": users,
                "messages_a_day": messages_a_day,
                "searches_per_message": searches_per_message,
                "peak_factor": peak_factor,
                "days": days,
                "dimensions": dimensions,
                "outage_hours": outage_hours,
                "http_share": http_share,
                "host_cores": host_cores,
                "host_disk_gb": host_disk_gb,
                "without": without or [],
            }
        )
    )
    output = Output()
    if as_json:
        output.json(found.model_dump())
    else:
        _show(found, output)


def _show(found: Plan, output: Output) -> None:
    demand = found.demand
    output.line(
        f"at the peak: {found.searches_a_second:,.1f} searches and {found.messages_a_second:,.1f} messages a second"
    )
    output.line(f"memories after {demand.days} days: {found.memories:,}, {found.memories_per_user:,} of each user")
    output.line()
    output.line(f"{'process':<28}{'cores used':>12}{'replicas':>10}{'memory':>12}", "bold")
    for need in found.needs:
        kept = "" if need.memory_mb is None else f"{need.memory_mb / 1000:,.1f} GB"
        output.line(f"{need.name:<28}{need.cores:>12,.2f} {need.replicas:>9,} {kept:>11}")
    output.line(f"{'all':<28}{found.cores:>12,.2f}")
    output.line()
    output.line(
        f"PostgreSQL: {found.disk_gb:,.1f} GB of disk, {found.cached_gb:,.1f} of them indexes, best kept in memory"
    )
    output.line(f"            {found.wal_gb_a_day:,.1f} GB of write-ahead log a day, {found.connections:,} connections")
    output.line(f"a backup:   {found.backup_gb:,.1f} GB")
    stream = f"; set LTM_STREAM_MAX_LEN={found.stream_max_len}" if found.stream_max_len > STREAM else ""
    output.line(
        f"Redis:      {found.redis_mb:,.0f} MB, with room for {demand.outage_hours:g} hours of messages waiting{stream}"
    )
    output.line(f"network:    {found.network_mbit:,.1f} Mbit/s to and from Redis and PostgreSQL, at the peak")
    output.line()
    output.line(f"{'used':>7}{'full at':>10}   what more processes do not help", "bold")
    for limit in found.limits:
        line = f"{limit.used:>7.0%} {limit.grows:>8,.1f}x   {limit.name}: {limit.remedy}"
        output.line(line, "red" if limit.used > 1 else None)
    times = (
        f"{found.grows:,.1f} times this" if found.grows >= 1 else f"{found.grows:,.2f} times this, so this is too much"
    )
    output.line(f"first of them: {found.first}, at {times}")
    output.line()
    shares = f"{SEARCHING_SHARE:.0%} used where one waits for an answer, and {OTHER_SHARE:.0%} elsewhere"
    output.line(f"Replicas are of one core each, {shares}, on {MEASURED_ON}: see docs/capacity.md.")
