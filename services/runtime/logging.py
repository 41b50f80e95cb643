"""The log set-up: one line an event on stderr, JSON where no person watches, and never what people said.

Contents and secrets stay out of it at info and above. Our own lines name what happened and to whom; errors and other
libraries' lines quote what they were given, so of these only what cannot hold it is written. At debug everything is.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, MutableMapping
from hashlib import blake2b
from types import TracebackType
from typing import Any

import redis
import structlog
from keepsake_client.errors import InvalidMessage, KeepsakeError, RequestFailed

from services.runtime.settings import Settings, mask_url

#: Loggers that write contents into their lines: Mem0 what it could not store, asyncio the error of a lost task.
VERBOSE_LOGGERS = ("mem0", "openai", "httpx", "httpx2", "httpcore", "asyncio")
MAX_REASON_CHARS = 500

_WARNING_HEAD = re.compile(r".*?:\d+: \w+")
#: Errors whose words are about the program or its servers, not about a message.
_ABOUT_THE_PROGRAM = (
    OSError,
    ImportError,
    AttributeError,
    NameError,
    TypeError,
    MemoryError,
    RuntimeError,
    redis.ConnectionError,
    redis.TimeoutError,
)

Event = MutableMapping[str, Any]


def configure_logging(settings: Settings, process: str) -> None:
    """Route structlog and the standard library's logging to stderr, each line naming its `process`.

    Args:
        process: what the operator calls this process: its name in compose and `ltm status`.
    """
    level, open_ = settings.ltm_log_level, settings.ltm_log_level == "debug"

    def name_process(_: Any, __: str, event: Event) -> Event:
        event["process"] = process
        return event

    shared: list[structlog.typing.Processor] = [
        name_process,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not settings.ltm_log_user_ids:
        key = settings.ltm_log_key.get_secret_value() if settings.ltm_log_key else ""
        shared.append(_hashed_user_ids(key))
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
            foreign_pre_chain=[
                # AsyncClient, which others import too, has the standard library's logger.
                structlog.stdlib.ExtraAdder(allow=["user_id"]),
                *shared,
                structlog.stdlib.add_logger_name,
                *([] if open_ else [_silence]),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info if open_ else structlog.processors.ExceptionRenderer(_written),
                renderer,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(True)
    _log_crashes()
    logging.getLogger("mem0.utils.spacy_models").setLevel(logging.ERROR)  # we rank words ourselves, without spaCy
    for noisy in (*VERBOSE_LOGGERS[:4], "psycopg.pool"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def redact(error: BaseException) -> str:
    """What of an error may be logged: its type, and its words only where they cannot be a message's or a secret."""
    match error:
        case InvalidMessage() | RequestFailed():  # they name fields of the message, which its sender made up
            words = error.code
        case redis.ResponseError():
            # redis-py puts the command before the server's words, with the beginning of its arguments.
            words = str(error).rpartition(" of pipeline caused error: ")[2].partition(", with args")[0]
        case KeepsakeError():
            words = str(error)
        case _ if isinstance(error, _ABOUT_THE_PROGRAM):
            words = str(error)
        case _:
            words = ""
    words = mask_url(" ".join(words.split()))[:MAX_REASON_CHARS]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _hashed_user_ids(key: str) -> structlog.typing.Processor:
    # BLAKE2b takes keys of up to 64 bytes; any other is made into one.
    secret = blake2b(key.encode()).digest() if key else b""

    def hash_user_id(_: Any, __: str, event: Event) -> Event:
        if "user_id" in event:
            told_id = str(event["user_id"]).encode("utf-8", "surrogatepass")
            event["user_id"] = blake2b(told_id, digest_size=8, key=secret, person=b"ltm-user-id").hexdigest()
        return event

    return hash_user_id


def _silence(_: Any, __: str, event: Event) -> Event:
    """Of a line that may quote contents, where in the code it was written: the words are there to be read."""
    record: logging.LogRecord = event["_record"]
    if record.name == "py.warnings":
        event["event"] = found[0] if (found := _WARNING_HEAD.match(str(event["event"]))) else "a warning"
    elif record.name.partition(".")[0] in VERBOSE_LOGGERS:
        event["event"] = "library_log"
        event["at"] = f"{record.name} {record.filename}:{record.lineno}"
    return event


def _written(
    exc_info: tuple[type[BaseException] | None, BaseException | None, TracebackType | None] | Any,
) -> str:
    """The traceback as Python writes it, but with what `told` leaves of each error's words."""
    error = exc_info[1]
    return "" if error is None else "".join(_lines(error, set())).rstrip("\n")


def _lines(error: BaseException, seen: set[int]) -> list[str]:
    seen.add(id(error))
    lines: list[str] = []
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        join = "The above exception was the direct cause of the following exception:"
        if not error.__cause__:
            join = "During handling of the above exception, another exception occurred:"
        lines += [*_lines(before, seen), f"\n{join}\n\n"]
    lines += ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__), f"{redact(error)}\n"]
    if isinstance(error, BaseExceptionGroup):
        for number, member in enumerate(error.exceptions, 1):
            lines += [f"  ---- {number} ----\n", *_lines(member, seen)]
    return lines


def _log_crashes() -> None:
    """What ends a process or a thread is a line of the log like any other, not a bare traceback with its words."""
    crashes = structlog.get_logger()

    def crashed(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, at)
        else:
            crashes.critical("crashed", exc_info=(kind, error, at))

    def thread_crashed(crash: threading.ExceptHookArgs) -> None:
        if crash.exc_value is not None and not isinstance(crash.exc_value, SystemExit):
            name = crash.thread.name if crash.thread else None
            crashes.critical(
                "thread_crashed", thread=name, exc_info=(crash.exc_type, crash.exc_value, crash.exc_traceback)
            )

    hooks: tuple[Callable[..., None], Callable[..., None]] = (crashed, thread_crashed)
    sys.excepthook, threading.excepthook = hooks
