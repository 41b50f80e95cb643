"""The HTTP API against its own OpenAPI description, with a stack behind it: what is sent, it answers as described."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.gateway.__main__ import DOORS
from services.gateway.access import ALL_RIGHTS, OPEN, Caller
from tests.acceptance.conftest import Stack
from tests.served_gateway import OneCaller, served, settings_of

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
#: The same requests in each run; some 30 s in all.
BOUNDED = settings(
    max_examples=6,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
VICTIM, SECRET = "victim", "Xylophone-4711"


@pytest.fixture(scope="module")
def caller() -> OneCaller:
    """The caller of every request."""
    return OneCaller()


@pytest.fixture(scope="module")
def gateway(stack: Stack, caller: OneCaller) -> Iterator[str]:
    """The URL of a gateway on the stack, which has a memory and a profile of another user."""
    with served(settings_of(stack.redis_url), DOORS, caller) as gateway:
        added = httpx.post(f"{gateway}/v1/memories", json={"user_id": VICTIM, "content": SECRET, "deadline_ms": 60_000})
        profile = httpx.patch(f"{gateway}/v1/profile?user_id={VICTIM}", json={"word": SECRET})
        assert (added.status_code, profile.status_code) == (201, 200)
        yield gateway


def for_each_operation(gateway: str, check: Callable[[Case[Any]], None]) -> None:
    """Check requests made from the description: some that keep to it, and some that do not."""
    described = schemathesis.openapi.from_url(f"{gateway}/openapi.json")
    for found in described.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            with suppress(Unsatisfiable):  # where there is nothing to get wrong
                BOUNDED(given(operation.as_strategy(generation_mode=mode))(check))()


def name_user(case: Case[Any], user_id: str) -> None:
    """Have a request be about this user, where it is about one."""
    if case.path == "/v1/traces":
        return
    events = case.body if isinstance(case.body, list) else [case.body]
    for event in events:
        if isinstance(event, dict) and case.path != "/v1/profile":
            event["user_id"] = user_id
    if case.method != "POST" or "import" in case.path:
        case.query = {**(case.query or {}), "user_id": user_id}


def test_every_answer_is_as_described(gateway: str, caller: OneCaller) -> None:
    """Given requests made from the description, hostile ones among them, I expect answers as described, and no 500."""

    def check(case: Case[Any]) -> None:
        if case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE:
            name_user(case, "u1")
        response = case.call_and_validate(base_url=gateway, checks=CHECKS)
        assert response.status_code != 500

    caller.of = OPEN
    for_each_operation(gateway, check)


def test_a_key_of_one_user_reads_nothing_of_another(gateway: str, caller: OneCaller) -> None:
    """Given a key of one user, and requests that name another one, I expect nothing of the other's data."""

    def check(case: Case[Any]) -> None:
        name_user(case, VICTIM)
        response = case.call(base_url=gateway)
        assert response.status_code != 500
        assert SECRET not in response.text

    caller.of = Caller("bound", ALL_RIGHTS, user="bound")
    for_each_operation(gateway, check)

    caller.of = OPEN
    left = httpx.get(f"{gateway}/v1/memories?user_id={VICTIM}").json()["memories"]
    assert [memory["content"] for memory in left] == [SECRET]
