"""The log set-up: one line an event on stderr, JSON where no person watches."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog


def configure_logging(level: str, process: str) -> None:
    """Route structlog and the standard library's logging to stderr, each line naming its `process`.

    Args:
        level: debug, info, warning or error.
        process: what the operator calls this process: its name in compose and `ltm status`.
    """

    def name_process(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["process"] = process
        return event

    shared: list[structlog.typing.Processor] = [
        name_process,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=False,  # tests reconfigure
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Mem0 and its clients write contents and addresses at info.
    logging.getLogger("mem0.utils.spacy_models").setLevel(logging.ERROR)  # we rank words ourselves, without spaCy
    for noisy in ("mem0", "httpx", "httpx2", "openai", "psycopg.pool"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
