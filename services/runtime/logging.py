"""Logging: one line per event on stderr, as JSON unless stderr is a terminal, and without contents or secrets.

Contents and secrets are redacted at info and above. Keepsake's own lines name the event and its user. Errors and lines
of other libraries quote their arguments, so only those parts are written that cannot hold any. At debug nothing is
redacted.
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
from keepsake_client.errors import CREDENTIALS_REFUSED, InvalidMessage, KeepsakeError, RequestFailed

from services.runtime.settings import Settings, mask_url

#: Loggers that write contents into their lines: Mem0 what it could not store, asyncio the error of a task that was not
#: awaited, NiceGUI the URLs of its pages.
VERBOSE_LOGGERS = ("mem0", "openai", "httpx", "httpx2", "httpcore", "asyncio", "nicegui", "engineio", "socketio")
MAX_REASON_CHARS = 500
#: Events that `ltm up` reads from the logs of starting processes: what they wait for, and what no waiting changes.
START_AWAITS = "start_awaits"
START_REFUSED = "start_refused"

_WARNING_HEAD = re.compile(r".*?:\d+: \w+")
#: Errors whose messages are about the program or its servers, and quote no contents.
_WITHOUT_CONTENTS = (
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
    """Route structlog and the standard library's logging to stderr, each line with its `process`.

    Args:
        process: the name of this process in compose and `ltm status`.
    """
    level, unredacted = settings.ltm_log_level, settings.ltm_log_level == "debug"

    def name_process(_: Any, __: str, event: Event) -> Event:
        event["process"] = process
        return event

    shared: list[structlog.typing.Processor] = [
        name_process,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not settings.ltm_log_user_ids:
        shared.append(_hashed_user_ids(user_id_hasher(settings)))
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
                # The client library logs with the standard library's logger.
                structlog.stdlib.ExtraAdder(allow=["user_id"]),
                *shared,
                structlog.stdlib.add_logger_name,
                *([] if unredacted else [_redact_line]),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info
                if unredacted
                else structlog.processors.ExceptionRenderer(_format_traceback),
                renderer,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(True)
    _log_crashes()
    logging.getLogger("mem0.utils.spacy_models").setLevel(logging.ERROR)  # it asks for spaCy, which is not used
    for noisy in ("mcp", "mem0", "openai", "httpx", "httpx2", "psycopg.pool"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def redact(error: BaseException) -> str:
    """Text of an error for the log: its type, and its message where that quotes neither contents nor secrets.

    The message is one line of at most `MAX_REASON_CHARS`, with the passwords of URLs masked.
    """
    match error:
        case InvalidMessage() | RequestFailed():  # they quote field names, which the sender chose
            reason = error.code
        case redis.ResponseError():
            # redis-py puts the command and the beginning of its arguments before the server's own message.
            reason = str(error).rpartition(" of pipeline caused error: ")[2].partition(", with args")[0]
        case redis.AuthenticationError():
            reason = CREDENTIALS_REFUSED
        case KeepsakeError():
            reason = str(error)
        case _ if isinstance(error, _WITHOUT_CONTENTS):
            reason = str(error)
        case _:
            reason = ""
    reason = mask_url(" ".join(reason.split()))[:MAX_REASON_CHARS]
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def user_id_hasher(settings: Settings) -> Callable[[str], str]:
    """What the log and the traces write for a user id: the id itself or, with LTM_LOG_USER_IDS=false, a hash of it."""
    if settings.ltm_log_user_ids:
        return str
    key = settings.ltm_log_key.get_secret_value() if settings.ltm_log_key else ""
    # BLAKE2b accepts keys of up to 64 bytes, so the setting, of any length, is hashed to one.
    secret = blake2b(key.encode()).digest() if key else b""

    def hash_user_id(user_id: str) -> str:
        encoded = user_id.encode("utf-8", "surrogatepass")
        return blake2b(encoded, digest_size=8, key=secret, person=b"ltm-user-id").hexdigest()

    return hash_user_id


def _hashed_user_ids(hash_user_id: Callable[[str], str]) -> structlog.typing.Processor:
    def hash_field(_: Any, __: str, event: Event) -> Event:
        if "user_id" in event:
            event["user_id"] = hash_user_id(str(event["user_id"]))
        return event

    return hash_field


def _redact_line(_: Any, __: str, event: Event) -> Event:
    """Replace a line that may quote contents by the place in the code that wrote it, where its wording can be read."""
    record: logging.LogRecord = event["_record"]
    if record.name == "py.warnings":
        event["event"] = found[0] if (found := _WARNING_HEAD.match(str(event["event"]))) else "a warning"
    elif record.name.partition(".")[0] in VERBOSE_LOGGERS:
        event["event"] = "library_log"
        event["at"] = f"{record.name} {record.filename}:{record.lineno}"
    return event


def _format_traceback(
    exc_info: tuple[type[BaseException] | None, BaseException | None, TracebackType | None] | Any,
) -> str:
    """The traceback as Python formats it, with each error redacted."""
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
    """Log an uncaught exception of the process or a thread as a line like any other, in place of a bare traceback."""
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
