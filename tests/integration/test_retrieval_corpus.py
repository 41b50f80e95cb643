"""The benchmark's columns against PostgreSQL's."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from keepsake_client.protocol import MemoryUpdateMessage, encode_user_id

from bench.retrieval.corpus import columns_of
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.retrieval.columns import MemoryColumns


def test_the_benchmark_ranks_what_a_search_reads(memories: MemoryService, store: MemoryStore) -> None:
    """Given messages of sessions and of days, of both sources, I expect every column that PostgreSQL returns."""
    texts = ("Anna: I live in Lyon", "我的猫叫豆腐。", "Where is it?", "We saw 3 films [photo: a cinema]", "")
    messages = [
        MemoryUpdateMessage(
            user_id="u1",
            content=f"{texts[n % 5]} {n}",
            source="ai" if n % 3 else "user",
            timestamp=1_700_000_000.25 + 40_000 * (n % 4) + n,
            meta={"session_id": f"s{n % 2}"} if n % 4 else {},
            message_id=str(n),
        )
        for n in range(20)
    ]
    memories.index_many(messages)

    stored, ours = store.columns.read(Owner(encode_user_id("u1")), None), columns_of(messages)[0]

    compared = [f.name for f in fields(MemoryColumns) if f.name not in ("number", "cosine")]
    assert {name: getattr(ours, name).tolist() for name in compared} == {
        name: getattr(stored, name).tolist() for name in compared
    }
    assert (np.argsort(ours.number) == np.argsort(stored.number)).all()
