"""What Mem0's routes do, on the wire: the same for those of its platform and those of its open source server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from keepsake_client.errors import InvalidMessage, RequestFailed
from keepsake_client.fields import whole
from keepsake_client.protocol import LTMResponse
from keepsake_client.requests import MAX_IDS
from keepsake_client.verbs import FORGET_TIMEOUT_MS

from services.gateway.access import Caller, Right
from services.gateway.app import Gateway
from services.gateway.mem0_api.bodies import ENTITIES, BatchBody, SearchBody, UpdateBody
from services.gateway.mem0_api.errors import NotSupported
from services.gateway.mem0_api.filters import Group, parse_filters
from services.gateway.mem0_api.ids import MemoryId
from services.gateway.mem0_api.selection import DEADLINE_MS, Selection
from services.gateway.mem0_api.shapes import history_of, result_of
from services.gateway.memories import memory_of

#: Results of a search, by default as on Mem0's platform, and at most.
DEFAULT_RESULTS, MAX_RESULTS = 10, 100
#: Memories on a page, by default as on Mem0's platform, and at most.
DEFAULT_PAGE, MAX_PAGE = 100, 1_000
#: Before any time that a memory has: with filters, a deletion needs one.
_EVER: Final = "0001-01-01T00:00:00Z"
#: Parameters of a deletion that select nothing.
_NO_SELECTION: Final = frozenset({"org_id", "project_id"})


async def search(gateway: Gateway, caller: Caller, body: SearchBody, filters: Group) -> list[dict[str, Any]]:
    """The memories that match the query and meet the filter, best first.

    What the wire's filters cannot say is tested on the best `MAX_RESULTS` memories alone.
    """
    caller.check(Right.SEARCH)
    selection = Selection.of(filters, caller)
    wanted = min(_positive("top_k", body.top_k if body.top_k is not None else body.limit, DEFAULT_RESULTS), MAX_RESULTS)
    wire = {name: value for name, value in filters.wire().items() if name not in ("contains", "kind")}
    data: dict[str, Any] = {
        "query": body.query,
        "limit": wanted if filters.is_wire_alone() else MAX_RESULTS,
        "filters": wire,
        **selection.scope(),
        **({"also": list(selection.users[1:])} if len(selection.users) > 1 else {}),
        **({} if body.threshold is None else {"min_score": body.threshold}),
        **({"include_superseded": True} if body.latest_only is False else {}),
    }
    response = await gateway.ltm.request("search", selection.users[0], data, deadline_ms=DEADLINE_MS)
    found = [memory for memory in response.memories if filters.meets(memory)]
    return [result_of(memory, body.fields) for memory in found[:wanted]]


@dataclass(frozen=True)
class Page:
    """A page of a list.

    Args:
        number: from 1 on.
        count: of all memories that meet the filter; None where this is not the last page, as they are not counted.
        more: whether another follows.
    """

    number: int
    results: list[dict[str, Any]]
    count: int | None
    more: bool


async def page_of(
    gateway: Gateway, caller: Caller, filters: Group, page: Any, page_size: Any, fields: Sequence[str] | None = None
) -> Page:
    """A page of the memories that meet the filter, newest first.

    The wire has cursors and Mem0 has numbers, so the pages before are read, too.
    """
    caller.check(Right.READ)
    selection = Selection.of(filters, caller)
    filters.check_one_kind()
    size = min(_positive("page_size", page_size, DEFAULT_PAGE), MAX_PAGE)
    number = _positive("page", page, 1)
    start = (number - 1) * size
    results: list[dict[str, Any]] = []
    seen = 0
    async with aclosing(selection.walk(gateway)) as walk:
        async for memory in walk:
            if seen == start + size:
                return Page(number, results, None, more=True)
            if seen >= start:
                results.append(result_of(memory, fields))
            seen += 1
    return Page(number, results, seen, more=False)


async def get(gateway: Gateway, caller: Caller, memory_id: str) -> dict[str, Any]:
    """The memory of an id."""
    return result_of((await _read(gateway, caller, memory_id)).memories[0])


async def history(gateway: Gateway, caller: Caller, memory_id: str) -> list[dict[str, Any]]:
    """The changes of a memory, oldest first."""
    response = await _read(gateway, caller, memory_id)
    return history_of(response.memories[0], response.history or [])


async def update(gateway: Gateway, caller: Caller, memory_id: str, body: UpdateBody) -> dict[str, Any]:
    """Correct a memory; the memory as it is now."""
    caller.check(Right.WRITE)
    named = MemoryId.read(memory_id, caller)
    await _check_agent(gateway, caller, named)
    response = await gateway.ltm.memory_update(
        named.user, named.uuid, content=body.content, metadata=body.metadata, deadline_ms=DEADLINE_MS
    )
    return result_of(response.memories[0])


async def delete(gateway: Gateway, caller: Caller, memory_id: str) -> None:
    """Delete a memory."""
    caller.check(Right.DELETE)
    named = MemoryId.read(memory_id, caller)
    await _check_agent(gateway, caller, named)
    response = await gateway.ltm.memory_delete(named.user, ids=[named.uuid], deadline_ms=DEADLINE_MS)
    if not response.count:
        raise RequestFailed("not_found: the user has no memory of this id")


async def delete_all(gateway: Gateway, caller: Caller, params: Mapping[str, str]) -> int:
    """Delete the memories of a user, and of an agent, app or run where those are named; their number.

    The wire deletes the shared memories with an agent's, and Mem0 does not: those of an agent are deleted by their ids.

    Raises:
        InvalidMessage: something else is named, which must not be passed over.
    """
    caller.check(Right.DELETE)
    if unknown := sorted(params.keys() - set(ENTITIES) - _NO_SELECTION):
        raise InvalidMessage(f"{unknown[0][:64]!r} selects nothing to delete; there are {', '.join(ENTITIES)}")
    filters = parse_filters({name: params[name] for name in ENTITIES if name in params}, gateway.settings.timezone)
    selection = Selection.of(filters, caller)
    named = filters.conditions()
    by_wire = all(each.name == "user_id" or (each.name == "run_id" and each.operator == "eq") for each in named)
    if caller.agent is not None or not by_wire:
        return await _delete_by_ids(gateway, selection, caller.agent)
    response = await gateway.ltm.memory_delete(
        selection.user, filters={"since": _EVER, **filters.wire()}, all_agents=True, deadline_ms=FORGET_TIMEOUT_MS
    )
    return response.count or 0


async def _delete_by_ids(gateway: Gateway, selection: Selection, agent: str | None) -> int:
    """Delete what a selection has, of one agent alone where one is given."""
    walk = selection.walk(gateway, most=None)
    ids = [memory.id async for memory in walk if agent is None or memory.agent_id == agent]
    count = 0
    for start in range(0, len(ids), MAX_IDS):
        part = ids[start : start + MAX_IDS]
        response = await gateway.ltm.memory_delete(selection.user, ids=part, deadline_ms=FORGET_TIMEOUT_MS)
        count += response.count or 0
    return count


async def batch_update(gateway: Gateway, caller: Caller, body: BatchBody) -> int:
    """Correct several memories, one after the other; their number."""
    caller.check(Right.WRITE)
    for each in body.memories:
        MemoryId.read(each.memory_id or "", caller)  # all of them, before the first is changed
    for each in body.memories:
        await update(gateway, caller, each.memory_id or "", each)
    return len(body.memories)


async def batch_delete(gateway: Gateway, caller: Caller, body: BatchBody) -> int:
    """Delete several memories; the number of those that there were."""
    caller.check(Right.DELETE)
    by_user: dict[str, list[str]] = {}
    for named in [MemoryId.read(each.memory_id or "", caller) for each in body.memories]:
        await _check_agent(gateway, caller, named)
        by_user.setdefault(named.user, []).append(named.uuid)
    count = 0
    for user, ids in by_user.items():
        response = await gateway.ltm.memory_delete(user, ids=ids, deadline_ms=FORGET_TIMEOUT_MS)
        count += response.count or 0
    return count


async def forget(gateway: Gateway, caller: Caller, kind: str, name: str) -> int:
    """Forget a user: memories, profile, conversation, all of it; the number of memories."""
    caller.check(Right.FORGET)
    if kind != "user":
        raise NotSupported("only users are forgotten; of an agent or run, delete_all with user_id deletes the memories")
    user = caller.user_of(name)
    caller.agent_of(None, all_agents=True)
    response = await gateway.ltm.user_forget(user, deadline_ms=FORGET_TIMEOUT_MS)
    return response.count or 0


async def _read(gateway: Gateway, caller: Caller, memory_id: str) -> LTMResponse:
    """The response that has a memory and its history."""
    caller.check(Right.READ)
    named = MemoryId.read(memory_id, caller)
    return await memory_of(gateway, caller, named.user, named.uuid, DEADLINE_MS)


async def _check_agent(gateway: Gateway, caller: Caller, named: MemoryId) -> None:
    """Check that a memory is of the caller's agent, where its key is bound to one."""
    if caller.agent is not None:
        await memory_of(gateway, caller, named.user, named.uuid, DEADLINE_MS)


def _positive(name: str, value: Any, default: int) -> int:
    """A whole number above 0.

    Raises:
        InvalidMessage: it is none.
    """
    if value is None:
        return default
    try:
        number = int(whole(value))
    except (TypeError, ValueError):
        number = 0
    if not 0 < number < 2**31:
        raise InvalidMessage(f"{name}: a whole number from 1 on is needed")
    return number
