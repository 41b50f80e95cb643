"""The actor that extracts facts from what was said; declared where an LLM is set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dramatiq

from tasks.middleware.retries import OUTBOX_RETRY
from tasks.queues import EXTRACT, EXTRACT_BESIDES_CALL_MS

if TYPE_CHECKING:
    from tasks.middleware.resources import Resources


def declare(broker: dramatiq.Broker, resources: Resources) -> None:
    """Declare this actor on the broker.

    A message of it may fail or be lost: the outbox is in the database, and what a lease left there is due again.
    """
    call_ms = int(resources.settings.ltm_llm_timeout_s * 1000)

    @dramatiq.actor(
        broker=broker,
        actor_name=EXTRACT.actor,
        queue_name=EXTRACT.queue,
        retry=OUTBOX_RETRY,
        time_limit=call_ms + EXTRACT_BESIDES_CALL_MS,
    )
    def memory_extract(user_number: int, lease: str) -> None:
        try:
            extracted = resources.extraction.extract(user_number, lease)
        except Exception:
            resources.count("extraction_failed")
            raise
        if extracted.calls and not (extracted.failed or extracted.discarded):
            resources.extract_next()
        if extracted.calls:
            outcome = "failed" if extracted.failed else "discarded" if extracted.discarded else "stored"
            resources.metrics.extracted(outcome, extracted.tokens)
        resources.count("extraction_calls", extracted.calls)
        resources.count("extraction_tokens", extracted.tokens)
        resources.count("extraction_failed", extracted.failed)
        resources.count("extraction_discarded", extracted.discarded)
        resources.count("facts_stored", extracted.facts_stored)
        resources.count("facts_superseded", extracted.facts_superseded)
        resources.count("facts_confirmed", extracted.facts_confirmed)
        resources.count("facts_dropped", extracted.facts_dropped)
        resources.count("messages_set_aside", extracted.messages_set_aside)
