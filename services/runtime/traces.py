"""Traces: one compact record for each message, request and reply that came to an end, in a capped stream.

A record has ids, times and an outcome, no contents. It is sent with a command that the process sends anyway, so it
costs no round trip, and it never makes that command fail. `services/runtime/trace_reader.py` reads the records.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from keepsake_client.protocol import TRACE_FIELD, TRACES_STREAM

from services.runtime.logging import user_id_hasher
from services.runtime.metrics import NO_METRICS, Metrics
from services.runtime.settings import Settings


@dataclass(frozen=True)
class Traces:
    """The trace records of one process, which its metrics observe, too; without arguments, it writes none.

    Args:
        max_len: how many records the stream keeps, approximately; 0 writes none.
        process: the process's name in compose and `ltm status`.
        user: makes a record's `user` of a user id.
        metrics: of this process; they observe every record, also where none is written.
    """

    max_len: int = 0
    process: str = ""
    user: Callable[[str], str] = str
    metrics: Metrics = NO_METRICS
    _host: str = field(default_factory=socket.gethostname)

    @classmethod
    def of(cls, settings: Settings, process: str, metrics: Metrics = NO_METRICS) -> Traces:
        """The traces that the settings ask for."""
        return cls(settings.ltm_trace_max_len, process, user_id_hasher(settings), metrics)

    @property
    def wanted(self) -> bool:
        """Whether anything is to be recorded: written, or observed."""
        return self.max_len > 0 or self.metrics.enabled

    def record(self, kind: str, user_id: str, **fields: Any) -> str:
        """A `TraceRecord` as JSON, without fields that have no value; "" where none is written.

        Not validated: the fields are this program's own, and the reader validates them.
        """
        self.metrics.observe(kind, fields)
        if not self.max_len:
            return ""
        known = {"kind": kind, "process": self.process, "host": self._host, "user": self.user(user_id), **fields}
        for name, digits in (("times", 4), ("ms", 1)):
            # What is not a number is of a message that no adapter has validated.
            stages = (known.get(name) or {}).items()
            known[name] = {stage: round(value, digits) for stage, value in stages if isinstance(value, int | float)}
        return json.dumps({name: value for name, value in known.items() if value not in (None, {})})

    def add(self, pipeline: Any, record: str) -> None:
        """Queue the command that writes a record, if there is one, on a pipeline of redis-py, synchronous or asyncio.

        The pipeline is no transaction, which a refused record would abort, and its caller raises no error of this one.
        """
        if record:
            pipeline.xadd(TRACES_STREAM, {TRACE_FIELD: record}, maxlen=self.max_len, approximate=True)


#: Writes no records.
NO_TRACES = Traces()
