"""docs/gateway.md is held to the code: routes, rights, errors and limits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from services.gateway.access import OPEN, NotPermitted, Right
from services.gateway.api import api
from services.gateway.connection import MAX_CONNECTIONS, MAX_REFUSED
from services.gateway.problems import STATUS
from services.gateway.request_scope import BODY_LIMITS, MAX_BODY_BYTES, MAX_STALL_S
from tests.unit.gateway_app import GatewayApp, gateway_app
from tests.unit.gateway_routes import PUBLIC, routes_of
from tests.unit.test_docs import DOCS, between, code_spans, table_rows

PAGE = (DOCS / "gateway.md").read_text()


@pytest.fixture(scope="module")
def app() -> Iterator[GatewayApp]:
    with gateway_app(api) as made:
        yield made


def test_the_page_has_every_route_with_its_right(app: GatewayApp) -> None:
    """Given the table of the HTTP API, I expect each route with the right without which it is refused."""
    rows = table_rows(between(PAGE, "With keys, each request has", "- **`user_id`**"))
    documented = {row[0].strip("`").replace("{id}", "{memory_id}"): row[1].strip("`") for row in rows}
    routes = {f"{route.method} {route.path}": route for route in routes_of(app.app) if route.path not in PUBLIC}
    refused: dict[str, list[Right]] = {name: [] for name in routes}
    for right in Right:
        app.keys.of = replace(OPEN, rights=frozenset(Right) - {right})
        for name, route in routes.items():
            sample = route.sample("u1")
            given = {"params": sample.query, "headers": sample.headers, "json": sample.json, "content": sample.content}
            response = app.send(sample.method, sample.path, **{key: each for key, each in given.items() if each})
            refused[name] += [right] if response.json().get("code") == NotPermitted.code else []

    assert {name: [documented.get(name)] for name in routes} == refused
    assert documented.keys() == routes.keys()


def test_the_page_has_every_right() -> None:
    """Given the table of rights, I expect those that a key may have."""
    rows = table_rows(between(PAGE, "### What each right permits", "A bot that only"))

    assert [name for row in rows for name in code_spans(row[0])] == list(Right)


def test_the_page_has_every_error() -> None:
    """Given the table of errors, I expect each code of the HTTP API with its status."""
    rows = table_rows(between(PAGE, "### Errors", "### Limits"))
    elsewhere = {"not_supported", "disabled", "timeout"}  # of Mem0's routes; of a client; answered as `expired`

    documented = {code: int(row[0]) for row in rows for code in code_spans(row[1])}
    assert documented == {code: status for code, status in STATUS.items() if code not in elsewhere} | {"internal": 500}


def test_the_page_has_the_limits() -> None:
    """Given the limits of bodies and connections, I expect them on the page."""
    section = re.sub(r"\s+", " ", between(PAGE, "### Limits", "## MCP"))

    assert f"{MAX_BODY_BYTES >> 20} MiB; an import {BODY_LIMITS['/v1/users/import'] >> 30} GiB" in section
    assert f"| {MAX_CONNECTIONS:,}; over that, 503" in section
    assert f"over {MAX_CONNECTIONS + MAX_REFUSED:,} closed" in section
    assert f"| {MAX_STALL_S:g} s in all" in section
