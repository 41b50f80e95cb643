"""The page queues: what waits, over an hour; what failed; how extraction is; and the counters."""

from __future__ import annotations

from functools import partial

import nicegui

from services.gateway.access import Right
from services.gateway.console.components import heading, span
from services.gateway.console.depths import DepthSampler
from services.gateway.console.page import ConsolePages
from services.gateway.console.pages.queues.counters import counters
from services.gateway.console.pages.queues.extraction import extraction
from services.gateway.console.pages.queues.failed import dead_letters, rejects
from services.gateway.console.pages.queues.waiting import waiting
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import Viewer
from services.runtime.failed_messages import FailedMessages
from services.runtime.stack_metrics import StackReader


def add(pages: ConsolePages) -> None:
    """Register the page, and have the depths sampled from the start of the gateway."""
    gateway = pages.gateway
    reader = StackReader(gateway.settings, gateway.redis)
    sampler = DepthSampler(reader, partial(gateway.counts.count, "gateway_failed"))
    nicegui.app.on_startup(sampler.start)
    nicegui.app.on_shutdown(sampler.close)
    failed = FailedMessages(gateway.settings)

    async def build(viewer: Viewer, text: Texts, query: dict[str, str]) -> None:
        await sampler.refresh()
        heading(text("title"), 1)
        waiting(viewer, text, sampler)
        if viewer.sees_everyone:
            dead_letters(viewer, text, failed, sampler)
            rejects(viewer, text, failed)
        else:
            span(text("for_all_users"), "state quiet")
        extraction(viewer, text, gateway)
        counters(text, sampler)

    pages.add("queues", "/queues", build, Right.TRACE, Right.METRICS)
