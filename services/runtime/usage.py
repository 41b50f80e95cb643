"""Token usage of a call of an LLM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a call: counted by the provider or, where it does not say, estimated."""

    prompt_tokens: int
    completion_tokens: int
