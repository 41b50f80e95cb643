"""Answers of an LLM that are kept on disk: a measurement that was stopped does not pay for them twice."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from services.long_term_memory.extraction.batch import (
    Batch,
    Confirmation,
    Extraction,
    FoundFact,
    SlotChange,
    Usage,
)
from services.long_term_memory.extraction.prompt import Prompts
from services.long_term_memory.extraction.service import Finder


@dataclass(frozen=True)
class Spent:
    """Calls that were made, and their tokens."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, usage: Usage) -> Spent:
        """With one call more."""
        prompt, completion = self.prompt_tokens + usage.prompt_tokens, self.completion_tokens + usage.completion_tokens
        return Spent(self.calls + 1, prompt, completion)


class KeptAnswers:
    """A finder whose answers are kept; thread-safe. An answer of no use is not kept.

    An answer is kept as it was validated, under its prompt and the model's name; the numbers of messages and facts are
    kept as their places in the batch, because another database has other numbers.

    Args:
        finder: asks the LLM.
        prompts: the same that the finder makes.
        directory: where the answers are kept; None for nowhere.
        model: what tells the LLM from others: its provider, name and address.
    """

    def __init__(self, finder: Finder, prompts: Prompts, directory: Path | None, model: str) -> None:
        self._finder = finder
        self._prompts = prompts
        self._directory = directory
        self._model = model
        self._lock = threading.Lock()
        #: Of calls that were made, and of all answers, kept ones too.
        self.paid = Spent()
        self.used = Spent()

    def estimate_tokens(self, batch: Batch) -> int:
        """An estimate of what the call for a batch costs, the answer included."""
        return self._finder.estimate_tokens(batch)

    def find(self, batch: Batch) -> Extraction:
        """What the LLM finds in a batch, or found in it before."""
        path = self._path(batch)
        if path is not None and path.exists():
            found, paid = _of_json(json.loads(path.read_text()), batch), False
        else:
            found, paid = self._finder.find(batch), True
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                written = path.with_suffix(".new")  # an answer is there as a whole, or not at all
                written.write_text(json.dumps(_as_json(found, batch), ensure_ascii=False))
                written.replace(path)
        with self._lock:
            self.used = self.used.plus(found.usage)
            self.paid = self.paid.plus(found.usage) if paid else self.paid
        return found

    def _path(self, batch: Batch) -> Path | None:
        if self._directory is None:
            return None
        asked = json.dumps([self._model, self._prompts.messages(batch), self._prompts.schema])
        return self._directory / f"{sha256(asked.encode()).hexdigest()[:32]}.json"


def _as_json(found: Extraction, batch: Batch) -> dict[str, Any]:
    said = {message.number: place for place, message in enumerate(batch.messages)}
    known = {fact.number: place for place, fact in enumerate(batch.facts)}
    return {
        "facts": [
            [f.text, f.about, [said[n] for n in f.evidence], f.when, f.kind, [known[n] for n in f.replaces]]
            for f in found.facts
        ],
        "confirmations": [[known[c.fact_number], [said[n] for n in c.evidence]] for c in found.confirmations],
        "slots": [[s.slot, s.value, [said[n] for n in s.evidence]] for s in found.slots],
        "usage": [found.usage.prompt_tokens, found.usage.completion_tokens],
        "dropped": dict(found.dropped),
    }


def _of_json(kept: dict[str, Any], batch: Batch) -> Extraction:
    def said(places: list[int]) -> tuple[int, ...]:
        return tuple(batch.messages[place].number for place in places)

    def known(places: list[int]) -> tuple[int, ...]:
        return tuple(batch.facts[place].number for place in places)

    return Extraction(
        [
            FoundFact(text, about, said(evidence), when, kind, known(replaces))
            for text, about, evidence, when, kind, replaces in kept["facts"]
        ],
        [Confirmation(batch.facts[fact].number, said(evidence)) for fact, evidence in kept["confirmations"]],
        [SlotChange(slot, value, said(evidence)) for slot, value, evidence in kept["slots"]],
        Usage(*kept["usage"]),
        kept["dropped"],
    )
