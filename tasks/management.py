"""The actors that list, correct, delete, export and import memories, and list users; each makes one service call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dramatiq
from keepsake_client.protocol import (
    MemoryDeleteData,
    MemoryGetData,
    MemoryListData,
    MemoryUpdateData,
    UserExportData,
    UserForgetData,
    UserImportData,
    UserListData,
)

from tasks.middleware.retries import NO_RETRY, WRITE_RETRY
from tasks.queues import (
    BY_TYPE,
    FORGET_TIME_LIMIT_MS,
    INDEX_TIME_LIMIT_MS,
    INTERACTIVE_TIME_LIMIT_MS,
    WRITE_TIME_LIMIT_MS,
    read_data,
)

if TYPE_CHECKING:
    from tasks.middleware.resources import Resources

#: Of messages that a worker holds, those of lower numbers are run first: live events (0) before what is imported.
IMPORT_PRIORITY = 100
#: How much later than it was published an event may be received on the channel: what is pushed after it may come first.
SETTLE_S = 0.05


def declare(broker: dramatiq.Broker, resources: Resources, clock: Callable[[], float]) -> None:
    """Declare these actors on the broker; `clock` as in `tasks.actors`."""
    _declare_reads(broker, resources)
    _declare_writes(broker, resources, clock)
    _declare_import(broker, resources)


def _declare_reads(broker: dramatiq.Broker, resources: Resources) -> None:
    listing, getting, exporting = BY_TYPE["memory_list"], BY_TYPE["memory_get"], BY_TYPE["user_export"]
    listing_users = BY_TYPE["user_list"]
    options: dict[str, Any] = {"broker": broker, "retry": NO_RETRY, "time_limit": INTERACTIVE_TIME_LIMIT_MS}

    @dramatiq.actor(actor_name=listing.actor, queue_name=listing.queue, **options)
    def memory_list(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        page = resources.management.page(request["user_id"], read_data(request, MemoryListData))
        return {"memories": page.memories, "next_cursor": page.next_cursor}

    @dramatiq.actor(actor_name=getting.actor, queue_name=getting.queue, **options)
    def memory_get(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        memory, history = resources.management.get(request["user_id"], read_data(request, MemoryGetData).id)
        return {"memories": [memory], "history": history}

    @dramatiq.actor(actor_name=exporting.actor, queue_name=exporting.queue, **options)
    def user_export(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        data = read_data(request, UserExportData)
        records, next_cursor = resources.portability.export(request["user_id"], data.limit, data.cursor)
        return {"records": records, "next_cursor": next_cursor}

    @dramatiq.actor(actor_name=listing_users.actor, queue_name=listing_users.queue, **options)
    def user_list(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        users, next_cursor = resources.management.users(read_data(request, UserListData))
        return {"users": users, "next_cursor": next_cursor}


def _declare_writes(broker: dramatiq.Broker, resources: Resources, clock: Callable[[], float]) -> None:
    updating, deleting, forgetting = BY_TYPE["memory_update"], BY_TYPE["memory_delete"], BY_TYPE["user_forget"]
    options: dict[str, Any] = {"broker": broker, "retry": WRITE_RETRY}

    @dramatiq.actor(actor_name=updating.actor, queue_name=updating.queue, time_limit=WRITE_TIME_LIMIT_MS, **options)
    def memory_update(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        data = read_data(request, MemoryUpdateData)
        return {"memories": [resources.management.update(request["user_id"], data, received_at)]}

    @dramatiq.actor(actor_name=deleting.actor, queue_name=deleting.queue, time_limit=FORGET_TIME_LIMIT_MS, **options)
    def memory_delete(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        data = read_data(request, MemoryDeleteData)
        at = _settled(received_at, clock) if data.filters is not None and not data.dry_run else received_at
        return {"count": resources.management.delete(request["user_id"], data, at)}

    @dramatiq.actor(
        actor_name=forgetting.actor, queue_name=forgetting.queue, time_limit=FORGET_TIME_LIMIT_MS, **options
    )
    def user_forget(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        dry_run = read_data(request, UserForgetData).dry_run
        at = received_at if dry_run else _settled(received_at, clock)
        return {"count": resources.forgetting.forget(request["user_id"], at, dry_run=dry_run)}


def _declare_import(broker: dramatiq.Broker, resources: Resources) -> None:
    importing = BY_TYPE["user_import"]

    @dramatiq.actor(
        broker=broker,
        actor_name=importing.actor,
        queue_name=importing.queue,
        retry=WRITE_RETRY,
        time_limit=INDEX_TIME_LIMIT_MS,
        priority=IMPORT_PRIORITY,
    )
    def user_import(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        data = read_data(request, UserImportData)
        outcome = resources.portability.import_records(
            request["user_id"], data.records, received_at, restore_deleted=data.restore_deleted
        )
        return {"count": outcome.new, "known": outcome.known, "deleted": outcome.deleted}


def _settled(received_at: float, clock: Callable[[], float]) -> float:
    """The time by which a deletion goes, once what was published before it has been received on the channel.

    The deletion is not answered before, so what is said after its answer counts as said after it all the same.
    """
    settled_at = received_at + SETTLE_S
    time.sleep(min(max(settled_at - clock(), 0.0), SETTLE_S))
    return settled_at
