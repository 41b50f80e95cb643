"""`ltm status`: which servers and processes answer, and the depth of each queue."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import redis
import typer
from keepsake_client.protocol import COUNTERS

from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, found_stack
from services.cli.output import Output
from services.long_term_memory.postgres.pool import reachable
from services.runtime.queues import queue_depths
from services.runtime.redis import connect, words
from services.runtime.settings import mask_url
from services.stack.locate import FoundStack
from services.stack.probe import probe
from services.stack.processes import ADAPTERS, POSTGRES, REDIS, SERVICES, WORKER, check_names
from services.stack.readiness import Readiness, stream_backlog

TIMEOUT_S = 2.0


def status(
    name: Annotated[str | None, typer.Argument(help="Check only this server or process.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Show whether each server and process answers, and the queue depths; exit 1 if anything is down."""
    check_names([name] if name else [])
    stack = found_stack(data_dir)
    client = connect(stack.redis_url, TIMEOUT_S)
    database_url = stack.settings.database_url.get_secret_value()
    readiness = Readiness(client, partial(reachable, database_url, TIMEOUT_S))
    output = Output()
    if name:
        answers = readiness.answers(name)
        output.line(f"{name:<26} {'answers' if answers else 'DOWN'}", None if answers else "bold red")
        raise typer.Exit(0 if answers else 1)

    addresses = {REDIS: mask_url(stack.redis_url), POSTGRES: mask_url(database_url)}
    down = False
    for each in (REDIS, POSTGRES, *SERVICES):
        if each in stack.without and each in SERVICES:
            output.line(f"{each:<26} left out", "dim")
        elif each == POSTGRES and not stack.database_known:
            output.line(f"{each:<26} not checked: DATABASE_URL is not set", "dim")
        else:
            answers = readiness.answers(each)
            down |= not answers
            text = f"{each:<26} {'answers' if answers else 'DOWN':<8} {addresses.get(each, '')}"
            output.line(text.rstrip(), "green" if answers else "bold red")
    if not {WORKER, ADAPTERS} & set(stack.without):
        problem = probe(stack.settings, TIMEOUT_S)
        down |= problem is not None
        output.line(f"{'a search over the wire':<26} {problem or 'answered'}", "bold red" if problem else "green")
    _show_queues(stack, client, output)
    raise typer.Exit(1 if down else 0)


def _show_queues(stack: FoundStack, client: redis.Redis, output: Output) -> None:
    settings = stack.settings
    try:
        for queue in (settings.user_input_queue, settings.ltm_requests_queue):
            output.line(f"queue {queue:<20} waiting {client.llen(queue)}")
        stream = settings.ltm_stream_key
        output.line(f"stream {stream:<19} not yet dispatched {stream_backlog(client, stream)}")
        for name, count in sorted(client.hgetall(COUNTERS).items()):
            output.line(f"count {_text(name):<20} {_text(count)}")
    except redis.RedisError as error:
        output.line(f"the queues cannot be read: {words(error)}", "bold red")
        return
    broker_url = settings.broker.get_secret_value()
    if not broker_url.startswith(("redis", "unix")):
        output.line(f"the workers' queues are on {mask_url(broker_url)}: see RabbitMQ's own tools", "dim")
        return
    try:
        depths = queue_depths(connect(broker_url, TIMEOUT_S))
    except redis.RedisError as error:
        output.line(f"the workers' queues cannot be read: {words(error)}", "bold red")
        return
    for queue, numbers in depths.items():
        output.line(f"queue {queue:<20} " + "  ".join(f"{kind} {number}" for kind, number in numbers.items()))
    if dead := sum(numbers["dead"] for numbers in depths.values()):
        output.line(f"{dead} failed for good: `ltm dead list`", "bold red")


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
