"""The benchmark of retrieval with facts: what it measures with a provider, and what it pays."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.harness.llm_server import RULES, LLMServer, Status
from bench.retrieval import facts

#: Of two sessions, each longer than a batch. The second home replaces the first one.
SESSIONS = (("I live in Oslo", "rainy"), ("I moved to Lisbon", "sunny"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set: a user who has moved and is asked where the home is, and what was never said."""
    messages: list[dict[str, Any]] = []
    for session, (home, weather) in enumerate(SESSIONS):
        lines = [f"{home}. It is {weather} today.", *(f"Lunch number {n} was {weather}" for n in range(20))]
        for text in lines:
            at = 1_700_000_000.0 + 100_000 * session + 60 * len(messages)
            known = {"id": f"m{len(messages)}", "session": f"s{session}", "source": "user"}
            messages.append({**known, "text": text, "timestamp": at})
    asked_at = messages[-1]["timestamp"] + 3_600
    questions = [
        {"text": "Where does the user live now?", "evidence": ["m21"], "kind": "plain", "asked_at": asked_at},
        {"text": "What is the cousin's car?", "evidence": [], "kind": "never said", "asked_at": asked_at},
    ]
    path = tmp_path / "moved.json"
    path.write_text(json.dumps([{"user": "u1", "messages": messages, "questions": questions}]))
    return path


@pytest.fixture
def measure(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[LLMServer], dict[str, Any]]:
    """Runs the command with a provider, and gives its figures; the answers are kept for the next run."""
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    monkeypatch.setenv("LTM_LLM_API_KEY", "secret")

    def run(server: LLMServer) -> dict[str, Any]:
        figures = tmp_path / "figures.json"
        provider = ["--provider", "openai", "--model", "some", "--base-url", server.url]
        kept = ["--answers", str(tmp_path / "answers"), "--json", str(figures)]
        monkeypatch.setattr(sys, "argv", ["facts", "--data", str(data), *provider, *kept])
        facts.main()
        found: dict[str, Any] = json.loads(figures.read_text())["moved"]
        return found

    return run


def test_a_run_that_was_stopped_pays_for_no_answer_twice(measure: Callable[[LLMServer], dict[str, Any]]) -> None:
    """Given a provider that refuses the key from the third batch on, I expect the run to end by saying so; the next
    one to ask for the third batch alone; and figures with and without facts, tokens and calls."""
    with LLMServer() as server:
        server.then(RULES, RULES)
        server.behaviour = Status(401)
        with pytest.raises(SystemExit, match="stopped: the provider answers 401"):
            measure(server)
        paid, server.behaviour = server.prompt_tokens, RULES
        server.requests.clear()

        found = measure(server)

        assert server.calls == 1
        assert server.requests[0].authorization == "Bearer secret"
        assert server.requests[0].body["model"] == "some"
    extraction, retrieval = found["extraction"], found["retrieval"]
    assert extraction["paid now"]["prompt_tokens"] == server.prompt_tokens - paid > 0
    assert extraction["answers"]["prompt_tokens"] == server.prompt_tokens
    assert (extraction["answers"]["calls"], extraction["answers"]["superseded"]) == (3, 1)
    assert (retrieval["without"]["n"], retrieval["with facts"]["recall@5"]) == (1, 1)
