"""Cost of the turn records: `python -m bench.latency.turns [--memories N ...] [--times N]`.

What a record of `ltm:turns` costs a worker after the response of a search is out, both variants in turns, so that a
disturbance affects both: the search with and without its explanation, with its query embedded before; and the
publication of its response with and without the record. The difference is what LTM_TURNS=off saves.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import dramatiq
import redis
from keepsake_client.protocol import SearchData
from structlog.testing import capture_logs

from adapters.ltm_responses import ResponsePublisher
from bench.harness.stack import running_stack
from bench.harness.statistics import quantile, timed
from bench.harness.tables import show, track
from bench.harness.texts import TextGenerator
from bench.harness.workload import past_messages, user_id
from bench.latency.traces import _BROKER, CHANNEL, TRACES
from services.long_term_memory.factory import LongTermMemory, open_long_term_memory
from services.long_term_memory.memory_service import SearchResult
from services.runtime.turns import NO_TURNS, Turns
from services.stack.processes import SERVICES

TURNS = Turns(2_000, contents=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, nargs="+", default=[100, 3_000])
    parser.add_argument("--times", type=int, default=500)
    given = parser.parse_args()
    rows = {}
    with running_stack(without=SERVICES) as stack, capture_logs():
        ltm = open_long_term_memory(stack.settings, connections=1)
        with redis.Redis.from_url(stack.redis_url) as client:
            for number, memories in enumerate(given.memories):
                texts = TextGenerator(number)
                updates = [
                    one.model_copy(update={"user_id": user_id(number)}) for one in past_messages(1, memories, texts)
                ]
                for begin in track(range(0, len(updates), 500), f"storing {memories:,}"):
                    ltm.memories.index_many(updates[begin : begin + 500])
                queries = [texts.query(number) for _ in range(50)]
                rows[f"a search of {memories:,} memories"] = _searches(ltm, user_id(number), queries, given.times)
            found = ltm.memories.search(user_id(0), SearchData(query=queries[0]))
            rows["its response is published"] = _compared(
                _publish(client, found, NO_TURNS), _publish(client, found, TURNS), given.times
            )
            bytes_each = (client.memory_usage("ltm:turns", samples=0) or 0) / client.xlen("ltm:turns")
    show("milliseconds", rows, 3)
    show("the stream", {"bytes": {"a record": bytes_each}}, 0)


def _searches(ltm: LongTermMemory, user: str, queries: Sequence[str], times: int) -> dict[str, float]:
    for query in queries:  # embedded once; the cache has it from then on
        ltm.memories.search(user, SearchData(query=query))
    asked = iter(queries[place % len(queries)] for place in range(2 * times + 2))

    def explained() -> None:
        found = ltm.memories.search(user, SearchData(query=next(asked)))
        if found.explain is not None:
            found.explain()

    return _compared(lambda: ltm.memories.search(user, SearchData(query=next(asked))), explained, times)


def _publish(client: redis.Redis, found: SearchResult, turns: Turns) -> Callable[[], object]:
    publisher = ResponsePublisher(client, CHANNEL, TRACES, turns=turns)
    request = {
        "request_id": f"req-{'0' * 32}",
        "user_id": "bench-user",
        "type": "search",
        "data": {"query": "What is my cat called?", "deadline_ms": 300},
    }
    explained = found.explain() if found.explain else None
    result = {"memories": found, "stages": found.timings, "explain": lambda: explained}

    def call() -> None:
        now = time.time()
        kwargs = {"request": {**request, "pushed_at": now}, "received_at": now, "enqueued_at": now}
        message = dramatiq.MessageProxy(dramatiq.Message("interactive", "memory.search", (), kwargs, {}))
        publisher.after_process_message(_BROKER, message, result=result)

    return call


def _compared(without: Callable[[], object], with_record: Callable[[], object], times: int) -> dict[str, float]:
    took: list[tuple[float, float]] = []
    for _ in track(range(times), "in turns"):
        took.append((timed(without)[1], timed(with_record)[1]))
    off, on = ([pair[place] for pair in took] for place in (0, 1))
    return {
        "without, p50": statistics.median(off),
        "with, p50": statistics.median(on),
        "without, p99": quantile(off, 0.99),
        "with, p99": quantile(on, 0.99),
        "more": statistics.median(one - other for other, one in took),
    }


if __name__ == "__main__":
    main()
