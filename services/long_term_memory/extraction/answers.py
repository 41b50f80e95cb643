"""Validation of an LLM's answer to a batch: facts with their evidence, confirmations, and changes of slots.

What an answer holds is data of a stranger. An answer whose *shape* is wrong anywhere is unusable as a whole: it is not
known what else the LLM meant, and a smaller batch may give a better one. An item of the right shape that *content*
rules forbid is left out alone, and counted by its reason in `Extraction.dropped`; no smaller batch would mend it. A
detail that the fact can stand without, such as an impossible date, is left out of the fact, and counted too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, get_args

from services.long_term_memory.extraction.answer_fields import (
    cleaned_text,
    evidence_in,
    in_order,
    normalized,
    numbers_in,
)
from services.long_term_memory.extraction.answer_json import NoAnswer, read_answer
from services.long_term_memory.extraction.batch import (
    Batch,
    Confirmation,
    Extraction,
    FoundFact,
    Usage,
)
from services.long_term_memory.extraction.dates import read_when
from services.long_term_memory.extraction.prompt import AI, USER
from services.long_term_memory.extraction.secrets import holds_secret
from services.long_term_memory.extraction.slot_changes import read_slot_changes
from services.long_term_memory.postgres.facts import FactKind
from services.runtime.errors import UnusableAnswer

#: What is left out of an answer and counted in `Extraction.dropped`, by reason.
DROPPED: Final = {
    "without_evidence": "a fact that no message of the batch says",
    "secret": "a fact or a slot with a card or identity number, a key or a password",
    "date": "the date of a fact that is kept, which no calendar has",
    "kind": "the kind of a fact that is kept, which does not exist",
    "unknown_fact": "that a fact replaces or confirms one that was not shown",
    "unknown_slot": "a slot that is not in LTM_PROFILE_SLOTS",
    "slot_without_evidence": "a slot that no message of the user says",
    "blank_slot": "a slot with a blank value",
}
MAX_FACT_CHARS: Final = 500
_MAX_ABOUT_CHARS: Final = 100
#: Chats give about one fact for three messages; more than this is an LLM that repeats itself.
_MAX_FACTS_A_MESSAGE: Final = 4
_MAX_FACTS_AT_LEAST: Final = 20
_KINDS: Final = frozenset(get_args(FactKind))
_NAMES_OF_USER: Final = frozenset({"", "user", "the user", "用户", "使用者"})
_NAMES_OF_AI: Final = frozenset({"ai", "the ai", "assistant", "the assistant", "bot", "助手", "机器人"})


def validate(answer: str, batch: Batch, slots: Sequence[str], usage: Usage) -> Extraction:
    """What an answer found in a batch.

    Args:
        answer: the text of the LLM.
        slots: of the profile, that may be changed.

    Raises:
        UnusableAnswer: it has not the shape that was asked for.
    """
    try:
        data = read_answer(answer)
        return _Validation(batch, slots).extraction(data, usage)
    except NoAnswer as error:
        raise UnusableAnswer(f"the answer is unusable: {error}", usage) from None


class _Validation:
    """Validation of one answer."""

    def __init__(self, batch: Batch, slots: Sequence[str]) -> None:
        self._batch = batch
        self._slots = slots
        self._known = {normalized(fact.content): place for place, fact in enumerate(batch.facts, start=1)}
        self._dropped: Counter[str] = Counter()
        self._facts: dict[tuple[str, str], FoundFact] = {}
        self._confirmed: dict[int, set[int]] = {}

    def extraction(self, data: dict[str, Any], usage: Usage) -> Extraction:
        most = max(_MAX_FACTS_AT_LEAST, _MAX_FACTS_A_MESSAGE * len(self._batch.messages))
        if len(data["facts"]) > most:
            raise NoAnswer(f"more than {most} facts")
        for item in data["facts"]:
            self._read_fact(item)
        changes = read_slot_changes(data["profile"], self._batch, self._slots, self._dropped)
        replaced = {number for fact in self._facts.values() for number in fact.replaces}
        confirmations = [
            Confirmation(number, tuple(sorted(evidence)))
            for number, evidence in self._confirmed.items()
            if number not in replaced
        ]
        return Extraction(list(self._facts.values()), confirmations, changes, usage, dict(self._dropped))

    def _read_fact(self, item: Any) -> None:
        if not isinstance(item, dict):
            raise NoAnswer("a fact that is no object")
        text = cleaned_text(item.get("text"), MAX_FACT_CHARS, "text")
        evidence = self._evidence(item.get("from"))
        replaces = {place for place in numbers_in(item.get("replaces") or [], "replaces") if self._is_shown(place)}
        confirmed = self._confirmed_place(item.get("confirms"), text)
        if not text and confirmed is None:
            raise NoAnswer("a fact without text")
        if not evidence:
            self._dropped["without_evidence"] += 1
            return
        about = self._about(item.get("about"))
        if holds_secret(f"{text} {about}"):
            self._dropped["secret"] += 1
            return
        replaces.discard(confirmed or 0)
        if confirmed is not None and not replaces:
            self._confirmed.setdefault(self._batch.facts[confirmed - 1].number, set()).update(evidence)
            return
        if confirmed is not None:
            # It says a known fact again, and that others are over: restated, it replaces them all.
            replaces.add(confirmed)
            text = text or self._batch.facts[confirmed - 1].content
        self._add(item, text, about, evidence, tuple(sorted(self._batch.facts[place - 1].number for place in replaces)))

    def _add(
        self, item: dict[str, Any], text: str, about: str, evidence: tuple[int, ...], replaces: tuple[int, ...]
    ) -> None:
        when = self._when(item.get("when"))
        kind = self._kind(item.get("kind"), when, evidence)
        fact = FoundFact(text, AI if kind == "promise" and about == USER else about, evidence, when, kind, replaces)
        key = normalized(text), fact.about.casefold()
        if (same := self._facts.get(key)) is not None:
            fact = replace(
                same,
                evidence=in_order(self._batch, {*same.evidence, *evidence}),
                when=same.when or when,
                replaces=tuple(sorted({*same.replaces, *replaces})),
            )
        self._facts[key] = fact

    def _evidence(self, value: Any) -> tuple[int, ...]:
        return evidence_in(self._batch, numbers_in(value, "from"))

    def _is_shown(self, place: int) -> bool:
        if shown := 1 <= place <= len(self._batch.facts):
            return shown
        self._dropped["unknown_fact"] += 1
        return False

    def _confirmed_place(self, value: Any, text: str) -> int | None:
        """The place of the fact that is confirmed: the one named, or the one of the same text."""
        places = [] if value is None else numbers_in(value, "confirms")
        if len(places) > 1:
            raise NoAnswer("a fact that confirms several")
        if places and self._is_shown(places[0]):
            return places[0]
        return self._known.get(normalized(text)) if text else None

    def _when(self, value: Any) -> str | None:
        if value is None or (isinstance(value, str) and value.strip().casefold() in {"", "null", "none"}):
            return None
        when = read_when(str(value)) if isinstance(value, str | int) else None
        if when is None:
            self._dropped["date"] += 1
        return when

    def _about(self, value: Any) -> str:
        about = cleaned_text(value, _MAX_ABOUT_CHARS, "about")
        folded = about.casefold()
        return USER if folded in _NAMES_OF_USER else AI if folded in _NAMES_OF_AI else about

    def _kind(self, value: Any, when: str | None, evidence: tuple[int, ...]) -> FactKind:
        """The kind; for one that does not exist, and for a promise that the AI did not make, the nearest."""
        kind = value.strip().casefold() if isinstance(value, str) else ""
        if kind == "promise" and not any(m.source == AI for m in self._batch.messages if m.number in evidence):
            return "plan"
        if kind in _KINDS:
            return kind  # type: ignore[return-value]  # it is one of the literals
        self._dropped["kind"] += 1
        return "event" if when else "state"
