"""Translation of a provider's errors: wait, stop, or try a smaller batch.

The library of each provider has errors of its own, and most are not installed. What they have in common are attributes
with the HTTP status, the response, and the names of their classes. Nothing of their text is passed on: it may quote the
key or the chat.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

from services.runtime.errors import ProviderRefuses, ProviderWaits, UnusableAnswer
from services.runtime.usage import Usage

#: A provider that asks for more is asked again all the same after this time.
MAX_RETRY_AFTER_S: Final = 3_600.0
#: No answer: nothing was generated, and what was sent is not paid for.
NOT_PAID: Final = Usage(0, 0)
#: 4xx that pass by themselves.
_TRANSIENT: Final = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,
    HTTPStatus.LOCKED,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
}
#: Of a parameter that the provider does not take: 422 by servers on FastAPI and Mistral's.
_PARAMETER: Final = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}
#: Of a batch that is refused for what it holds: 403 by OpenRouter's moderation.
_MODERATED: Final = {*_PARAMETER, HTTPStatus.FORBIDDEN}
#: What such a response says that is about this batch and not about all calls: two users must not stop all others.
_TOO_LONG: Final = (
    "context_length",
    "context length",
    "context window",
    "maximum context",
    "too long",
    "too many tokens",
)
_CONTENT_REFUSED: Final = (
    "content_filter",
    "content management policy",
    "content policy",
    "invalid_prompt",
    "moderation",
    "flagged",
)
#: What a 400 says about the parameters that reasoning models do not take.
_SAMPLING: Final = ("temperature", "top_p", "max_tokens", "sampling")
#: In the names of exceptions of every library: the server is not reached, or does not answer in time.
_UNREACHABLE: Final = ("timeout", "connection", "connect", "transport", "network", "remoteprotocol", "ratelimit", "ssl")
#: Of them, that it was reached, for all one knows.
_TIMED_OUT: Final = "timeout"
#: The form of the body is not that of a chat completion: something else answers, such as a proxy with a page.
_NO_COMPLETION: Final = (AttributeError,)
#: It is one in form, and has no choice, or no text.
_NO_CHOICE: Final = (TypeError, LookupError, ValueError)


def translated(error: Exception) -> ProviderWaits | ProviderRefuses | UnusableAnswer:
    """The error of a call in one of three terms.

    Args:
        error: what the library of the provider, or Mem0, raised.
    """
    status = status_of(error)
    if status is None:
        return _without_status(error)
    if status in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ProviderWaits(f"the provider answers {status}", retry_after_s(error))
    text = _text(error)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or (status in _PARAMETER and _says(text, _TOO_LONG)):
        return UnusableAnswer("the batch is too long for the model", NOT_PAID)
    if status in _MODERATED and _says(text, _CONTENT_REFUSED):
        return UnusableAnswer("the provider refuses the contents of the batch", NOT_PAID)
    return ProviderRefuses(f"the provider answers {status}", status)


def refuses_parameter(error: Exception) -> bool:
    """Whether a call is refused as a whole, which another form of it may mend."""
    return isinstance(refusal := translated(error), ProviderRefuses) and refusal.status in _PARAMETER


def refuses_sampling(error: Exception) -> bool:
    """Whether the text of a refusal is about parameters that reasoning models do not take."""
    return _says(_text(error), _SAMPLING)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error, or of what it was raised from."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        metadata = response.get("ResponseMetadata") if isinstance(response, Mapping) else None
        found = (
            getattr(one, "status_code", None),  # of most libraries
            getattr(response, "status_code", None),  # of requests and httpx
            metadata.get("HTTPStatusCode") if isinstance(metadata, Mapping) else None,  # of botocore
            getattr(one, "code", None),  # of google-genai
        )
        for status in found:
            if isinstance(status, int) and 400 <= status <= 599:
                return int(status)
    return None


def retry_after_s(error: BaseException) -> float | None:
    """For how long the provider asks to be left alone: its Retry-After header, in seconds or as a date."""
    for one in _chain(error):
        headers = getattr(getattr(one, "response", None), "headers", None)
        value = headers.get("retry-after") if isinstance(headers, Mapping) else None
        if isinstance(value, str) and (seconds := _seconds(value.strip())) is not None:
            return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)
    return None


def _seconds(value: str) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        pass
    else:
        return seconds if math.isfinite(seconds) else None
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


def _without_status(error: Exception) -> ProviderWaits | UnusableAnswer:
    name = type(error).__name__
    names = [parent.__name__.lower() for one in _chain(error) for parent in type(one).__mro__]
    if any(part in one for one in names for part in _UNREACHABLE) or isinstance(error, OSError):
        timed_out = any(_TIMED_OUT in one for one in names)
        return ProviderWaits(f"the provider does not answer ({name})", may_be_paid=timed_out)
    if isinstance(error, _NO_COMPLETION):
        return ProviderWaits("what answers at the provider's address is no chat completion")
    if isinstance(error, _NO_CHOICE):
        return UnusableAnswer(f"the provider's response has no answer ({name})", NOT_PAID)
    return ProviderWaits(f"the call of the provider failed ({name})")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, which Mem0 does of some providers."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def _text(error: BaseException) -> str:
    return " ".join(f"{one} {getattr(one, 'body', '')}" for one in _chain(error)).lower()


def _says(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text for word in words)
