"""The start of an embedder or LLM: its errors name the settings to change, and a slow start is reported."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import structlog
from keepsake_client.errors import KeepsakeError, Unavailable

from services.long_term_memory.mem0_bridge import provider_errors
from services.runtime.errors import InvalidSetting
from services.runtime.logging import START_AWAITS, redact
from services.runtime.settings import Settings, mask_url

#: Within this time a provider that runs has mostly answered; the libraries' own time-outs are minutes.
SLOW_AFTER_S = 1.0
#: Names of the exceptions of a server that is not reached, in the libraries that Mem0 uses and in Python.
_UNREACHABLE = {"ConnectionError", "TimeoutError", "Timeout", "TransportError", "HTTPClientError"}
_KEY_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_TRANSIENT = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT}

log = structlog.get_logger()


@contextmanager
def starting_provider(kind: str, settings: Settings) -> Iterator[None]:
    """Translate the errors of making and first using a provider into one line each.

    Args:
        kind: `LTM_EMBEDDER` or `LTM_LLM`, with which its settings begin.

    Raises:
        InvalidSetting: it will not work with these settings.
        Unavailable: it does not answer yet.
    """
    where = _where(kind, settings)
    try:
        with provider_errors():
            yield
    except Unavailable as error:
        raise Unavailable(f"{where} does not answer ({error}): start it, or correct {kind}_BASE_URL") from error
    except KeepsakeError:
        raise
    except ImportError as error:
        raise InvalidSetting(f"{where} needs a library that is not installed: {error}") from None
    except Exception as error:
        # Of any class, by the library of the provider, and with the key in its text.
        raise _translated(kind, where, settings, error) from error


@contextmanager
def reporting_silence(kind: str, settings: Settings, after_s: float = SLOW_AFTER_S) -> Iterator[None]:
    """Log a line where the block, the first call of a provider, takes long."""
    where = _where(kind, settings)
    slow = threading.Timer(after_s, lambda: log.warning(START_AWAITS, reason=f"{where} has not answered yet"))
    slow.daemon = True
    slow.start()
    try:
        yield
    finally:
        slow.cancel()


def _where(kind: str, settings: Settings) -> str:
    base_url = getattr(settings, f"{kind.lower()}_base_url")
    at = f" at {kind}_BASE_URL {mask_url(base_url.get_secret_value())!r}" if base_url else ""
    return f"{kind}_PROVIDER {getattr(settings, f'{kind.lower()}_provider')!r}{at}"


def _translated(kind: str, where: str, settings: Settings, error: Exception) -> KeepsakeError:
    key, model = (getattr(settings, f"{kind.lower()}_{name}") for name in ("api_key", "model"))
    response = getattr(error, "response", None)
    status = getattr(error, "status_code", None) or getattr(response, "status_code", None)
    if _UNREACHABLE & {parent.__name__ for parent in type(error).__mro__}:
        return Unavailable(f"{where} does not answer ({redact(error)}): start it, or correct {kind}_BASE_URL")
    if not isinstance(status, int):
        settings_to_check = f"{kind}_API_KEY{'' if key else ' (not set)'}, {kind}_MODEL and {kind}_BASE_URL"
        return InvalidSetting(f"{where} cannot be used ({redact(error)}): check {settings_to_check}")
    if status in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Unavailable(f"{where} answers {status}")
    if status in _KEY_REFUSED:
        remedy = f"correct {kind}_API_KEY" if key else f"set {kind}_API_KEY"
    else:
        remedy = f"correct {kind}_MODEL ({repr(model) if model else 'not set'}) or {kind}_BASE_URL"
    return InvalidSetting(f"{where} answers {status}: {remedy}")
