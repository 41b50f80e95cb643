"""What extraction costs: calls and prompt tokens, counted at the server."""

from __future__ import annotations

import pytest

from bench.retrieval import datasets
from bench.retrieval.chats import SEEN
from bench.retrieval.extraction_cost import measure


def test_a_thousand_messages_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given 1,000 messages of tests/data, I expect at most 80 calls and 150,000 prompt tokens."""
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)

    cost = measure(datasets.read(SEEN), 1_000, as_said=True)

    assert cost["messages"] == 1_000
    assert cost["calls"] <= 80
    assert cost["prompt tokens"] <= 150_000
    assert cost["facts"] > cost["of users"] / 3
