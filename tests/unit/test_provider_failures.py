"""The errors of providers whose libraries are not installed, by the attributes that these give them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from services.long_term_memory.extraction.provider_failures import retry_after_s, translated
from services.runtime.errors import ProviderRefuses, ProviderWaits, UnusableAnswer


def error(name: str, base: type[Exception] = Exception, **attributes: Any) -> Exception:
    made: Exception = type(name, (base,), {})("hush")
    for attribute, value in attributes.items():
        setattr(made, attribute, value)
    return made


def wrapped(cause: Exception) -> Exception:
    """As Mem0 wraps errors of Bedrock and Sarvam: a RuntimeError that quotes it, raised within `except`."""
    raised = RuntimeError(f"Failed to generate response: {cause}")
    raised.__context__ = cause
    return raised


def botocore(status: int) -> Exception:
    return error("ClientError", response={"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {}})


WAITING = {
    "Anthropic, overloaded": error("OverloadedError", status_code=529),
    "Anthropic, time-out": error("APITimeoutError", error("APIConnectionError").__class__),
    "Ollama": error("ResponseError", status_code=503),
    "Ollama is not running": error("ConnectError"),
    "Gemini": error("ServerError", code=503),
    "Gemini, quota": error("ClientError", code=429),
    "Sarvam": wrapped(error("HTTPError", OSError, response=SimpleNamespace(status_code=500, headers={}))),
    "Sarvam is not reached": wrapped(error("ReadTimeout", OSError)),
    "Bedrock, throttled": wrapped(botocore(429)),
    "Bedrock is not reached": wrapped(error("EndpointConnectionError")),
    "a connection of Python's": ConnectionResetError(),
    "an error that is not known": error("StrangeError"),
    "gRPC's code": error("RpcError", code=lambda: 14),
}


@pytest.mark.parametrize("failed", WAITING.values(), ids=WAITING)
def test_an_outage_of_any_library(failed: Exception) -> None:
    """Given an error by which a provider does not serve just now, I expect ProviderWaits, without its text."""
    found = translated(failed)

    assert isinstance(found, ProviderWaits)
    assert "hush" not in str(found)


REFUSING = {
    "Anthropic": (error("AuthenticationError", status_code=401), 401),
    "Ollama, no such model": (error("ResponseError", status_code=404), 404),
    "Gemini, wrong key": (error("ClientError", code=400), 400),
    "Sarvam": (wrapped(error("HTTPError", OSError, response=SimpleNamespace(status_code=403, headers={}))), 403),
    "Bedrock, no access": (wrapped(botocore(403)), 403),
}


@pytest.mark.parametrize(("failed", "status"), REFUSING.values(), ids=REFUSING)
def test_a_refusal_by_any_library(failed: Exception, status: int) -> None:
    """Given an error by which a provider refuses the configuration, I expect ProviderRefuses with its status."""
    found = translated(failed)

    assert isinstance(found, ProviderRefuses)
    assert found.status == status


@pytest.mark.parametrize("failed", [IndexError(), TypeError(), KeyError(), ValueError("hush")], ids=repr)
def test_a_response_that_mem0_cannot_read(failed: Exception) -> None:
    """Given an error of Mem0's reading of a response without an answer, I expect UnusableAnswer."""
    assert isinstance(translated(failed), UnusableAnswer)


def test_retry_after_of_what_was_wrapped() -> None:
    """Given a wrapped error, I expect the header of its response."""
    response = SimpleNamespace(status_code=429, headers={"retry-after": "3"})

    assert retry_after_s(wrapped(error("HTTPError", OSError, response=response))) == 3.0


def test_errors_that_name_each_other() -> None:
    """Given errors that are each other's cause, I expect an end."""
    first, second = error("A"), error("B")
    first.__cause__, second.__cause__ = second, first

    assert isinstance(translated(first), ProviderWaits)
