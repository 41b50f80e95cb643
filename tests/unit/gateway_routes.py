"""The gateway's routes, each with a request that it takes: built from the OpenAPI description, or from a sample."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount

#: Open to all by intent: they hold nothing of a user.
PUBLIC = frozenset({"/healthz", "/readyz", "/openapi.json", "/mem0/openapi.json"})
MEMORY_ID = "5d1c2f0e-8c1b-5a55-9a6e-0f8f7f0c3a11"


@dataclass(frozen=True)
class Sample:
    """A request to a route, about a user and a character.

    Attributes:
        path: with its parameters filled in.
        json: the body; None for none.
    """

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    content: str | None = None


@dataclass(frozen=True)
class Route:
    """A route of the application.

    Attributes:
        path: as it was declared, with names of parameters.
        operation: of the OpenAPI description; None where it is not in there.
        document: that description.
    """

    method: str
    path: str
    operation: Mapping[str, Any] | None
    document: Mapping[str, Any]

    def sample(self, user: str, **scope: Any) -> Sample:
        """A request that the route takes, about a user.

        Args:
            scope: `agent_id`, `also` and `all_agents`, for the request as far as it can have them.
        """
        if made := SAMPLES.get(f"{self.method} {self.path}"):
            return made(user, scope.get("agent_id"))
        return _from_description(self, {"user_id": user, **scope})


def routes_of(app: FastAPI, prefix: str = "") -> Iterator[Route]:
    """Every route of an application and of those mounted in it; one without routes counts as one."""
    document = app.openapi()
    for found in iter_route_contexts(app.routes):
        route = found.original_route
        if isinstance(route, Mount):
            if isinstance(route.app, FastAPI):
                yield from routes_of(route.app, prefix + route.path)
            else:
                yield Route("POST", prefix + route.path, None, document)
            continue
        path = str(found.path_format or found.path)
        for method in sorted(set(found.methods or ()) - {"HEAD", "OPTIONS"}):
            operation = document["paths"].get(path, {}).get(method.lower())
            yield Route(method, prefix + path, operation, document)


def _from_description(route: Route, scope: Mapping[str, Any]) -> Sample:
    user = str(scope["user_id"])
    operation: Mapping[str, Any] = route.operation or {}
    mem0 = route.path.startswith("/mem0/")
    # Mem0's routes read their queries themselves, and no description has them.
    lists = mem0 and route.method in {"GET", "DELETE"} and route.path.rstrip("/").endswith("/memories")
    query: dict[str, Any] = {"user_id": user} if lists else {}
    headers: dict[str, Any] = {}
    path = route.path
    for name, value in (_mem0_ids(user) if mem0 else {"memory_id": MEMORY_ID}).items():
        path = path.replace(f"{{{name}}}", value)
    for parameter in operation.get("parameters", []):
        name, place = parameter["name"], parameter["in"]
        if place == "path":
            path = path.replace(f"{{{name}}}", str(scope.get(name, "1")))
        elif name in scope or parameter.get("required"):
            value = scope[name] if name in scope else _value(parameter["schema"], route.document, parameter)
            (headers if place == "header" else query)[name] = value
    contents: dict[str, Any] = operation.get("requestBody", {}).get("content", {})
    if not contents:
        return Sample(route.method, path, query, headers)
    media_type = next(iter(contents))
    schema = contents[media_type].get("schema", {})
    fields = str(_resolved(schema, route.document))
    body = _about(
        _value(schema, route.document, contents[media_type]),
        {name: value for name, value in scope.items() if f"'{name}'" in fields},
    )
    if isinstance(body, str):
        return Sample(route.method, path, query, {**headers, "content-type": media_type}, content=body)
    return Sample(route.method, path, query, {**headers, "content-type": media_type}, json=body)


def _about(body: Any, scope: Mapping[str, Any]) -> Any:
    """The body, or each part of a list, with the user and what else is given."""
    if isinstance(body, list):
        return [_about(part, scope) for part in body]
    if not isinstance(body, dict):
        return body
    rest = {name: value for name, value in body.items() if name not in {"agent_id", "also", "all_agents"}}
    return {**rest, **scope}


def _value(schema: Mapping[str, Any], document: Mapping[str, Any], examples: Mapping[str, Any]) -> Any:
    """A value of a schema: an example, or the least that it asks for."""
    found = [one for holder in (examples, schema) for one in _examples(holder)]
    if found:
        return found[0]
    if "$ref" in schema:
        return _value(_resolved(schema, document), document, {})
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return _value(next(one for one in schema[several] if one.get("type") != "null"), document, {})
    return _least(schema, document)


def _resolved(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a reference leads to, or the schema itself; of one of several, the first."""
    if "anyOf" in schema:
        return _resolved(schema["anyOf"][0], document)
    if "$ref" not in schema:
        return schema
    found: Mapping[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def _examples(holder: Mapping[str, Any]) -> list[Any]:
    """The examples of a schema, a list, or of a parameter or body, a mapping of them by name."""
    several = holder.get("examples", [])
    named = [one["value"] for one in several.values()] if isinstance(several, dict) else list(several)
    return [*([holder["example"]] if "example" in holder else []), *named]


def _least(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Any:
    match schema:
        case {"const": value} | {"enum": [value, *_]}:
            return value
        case {"type": "object"}:
            properties: Mapping[str, Any] = schema.get("properties", {})
            wanted = {*schema.get("required", []), *({"user_id"} & properties.keys())}
            return {name: _value(part, document, {}) for name, part in properties.items() if name in wanted}
        case {"type": "array"}:
            return [_value(schema.get("items", {}), document, {})]
        case {"type": "integer" | "number"}:
            return schema.get("minimum", 1)
        case {"type": "boolean"}:
            return False
    return MEMORY_ID


def _mem0_ids(user: str) -> dict[str, str]:
    """Parameters of paths for Mem0's clients, whose ids hold the user."""
    packed = base64.urlsafe_b64encode(user.encode()).decode().rstrip("=")
    return {
        "memory_id": f"{MEMORY_ID}.{packed}",
        "event_id": f"{'0' * 32}.1.1712345678000.{packed}",
        "kind": "user",
        "name": user,
    }


def _mem0_batch(method: str) -> Callable[[str, str | None], Sample]:
    def made(user: str, agent: str | None) -> Sample:
        change = {"text": "a dog"} if method == "PUT" else {}
        body = {"memories": [{"memory_id": _mem0_ids(user)["memory_id"], **change}]}
        return Sample(method, "/mem0/v1/batch/", json=body)

    return made


def _named(user: str, agent: str | None) -> dict[str, str]:
    """Headers that name a user and a character."""
    return {"x-keepsake-user": user, **({"x-keepsake-agent": agent} if agent else {})}


def _mcp(user: str, agent: str | None) -> Sample:
    arguments = {"query": "cat"}
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "search_memories", "arguments": arguments},
    }
    accepted = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-06-18"}
    return Sample("POST", "/mcp", headers={**accepted, **_named(user, agent)}, json=call)


def _chat(user: str, agent: str | None) -> Sample:
    messages = [{"role": "user", "content": "What is my cat called?"}]
    body = {"model": "m", "messages": messages}
    return Sample("POST", "/openai/v1/chat/completions", headers=_named(user, agent), json=body)


#: Requests to routes whose bodies are in no description, or whose users are in headers.
SAMPLES: Mapping[str, Callable[[str, str | None], Sample]] = {
    "POST /mcp": _mcp,
    "POST /openai/v1/chat/completions": _chat,
    "PUT /mem0/v1/batch/": _mem0_batch("PUT"),
    "DELETE /mem0/v1/batch/": _mem0_batch("DELETE"),
}
