"""FactFinder: asks the LLM what a batch says, through Mem0's providers, and validates its answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mem0.llms.base import LLMBase

from services.long_term_memory.extraction.answers import validate
from services.long_term_memory.extraction.batch import Batch, Extraction, Usage
from services.long_term_memory.extraction.limited_call import LimitedCall
from services.long_term_memory.extraction.prompt import Prompts
from services.long_term_memory.extraction.provider_failures import (
    refuses_parameter,
    refuses_sampling,
    translated,
)
from services.long_term_memory.extraction.tokens import estimate_text
from services.long_term_memory.mem0_bridge import llm_for_call, takes_json_schema
from services.runtime.errors import ProviderWaits, UnusableAnswer

#: The rule-based model makes 225 tokens of twenty messages of the chats, 516 of LoCoMo (bench.retrieval.facts); eight
#: times as many is a fact for each message and more.
MAX_ANSWER_TOKENS: Final = 4_000
#: Calls that were given up and still hang; with so many, none is added until one has ended.
MAX_HANGING_CALLS: Final = 8
#: No model reads or writes so many in a call: a provider that counts more counts something else, or wrongly.
MAX_COUNTED_TOKENS: Final = 2_000_000
#: Of OpenAI's API and those like it, why a model ended its answer.
_CUT: Final = "length"
_FILTERED: Final = "content_filter"


@dataclass(frozen=True, slots=True)
class _Form:
    """The form of a call that the provider accepts.

    Args:
        format: the place in `FactFinder._formats` of what is asked of the answer's format.
        bare: without the parameters that reasoning models refuse.
    """

    format: int = 0
    bare: bool = False


@dataclass(slots=True)
class _Reply:
    """The response to a call.

    Args:
        text: what Mem0 returns.
        response: what the provider's library returned, where Mem0 tells it.
    """

    text: Any = None
    response: Any = None


class FactFinder:
    """Finds facts and changes of slots in batches, one call each; thread-safe.

    The first call asks for answers by a JSON schema. Where the provider refuses that, it asks for any JSON object, then
    for nothing, and goes on in the form that worked.

    Args:
        llm: of Mem0.
        slots: of the profile, that may be changed.
        timeout_s: for a batch, whatever the provider does.
        max_tokens: of an answer.
    """

    def __init__(
        self, llm: LLMBase, slots: Sequence[str], timeout_s: float = 60.0, max_tokens: int = MAX_ANSWER_TOKENS
    ) -> None:
        self._llm = llm
        self._slots = tuple(slots)
        self._prompts = Prompts(self._slots)
        self._timeout_s = timeout_s
        self._max_tokens = max_tokens
        schema = {"name": "extraction", "strict": True, "schema": self._prompts.schema}
        self._formats: tuple[dict[str, Any] | None, ...] = (
            {"type": "json_schema", "json_schema": schema},
            {"type": "json_object"},
            None,
        )
        self._form = _Form(format=0 if takes_json_schema(llm) else 1)
        self._hanging: list[LimitedCall[Any]] = []
        self._lock = threading.Lock()

    def estimate_tokens(self, batch: Batch) -> int:
        """An estimate of what the call for a batch costs, the answer included."""
        return self._prompts.estimate_tokens(batch)

    def find(self, batch: Batch) -> Extraction:
        """What the LLM finds in a batch.

        Raises:
            UnusableAnswer: its answer cannot be used; that to a smaller batch may be.
            ProviderWaits: the provider does not serve calls just now.
            ProviderRefuses: it refuses calls as they are configured.
        """
        messages = self._prompts.messages(batch)
        reply = self._ask(messages)
        usage = _usage(reply, messages)
        choice = _first_choice(reply.response)
        ended = getattr(choice, "finish_reason", None)
        if ended == _FILTERED or getattr(getattr(choice, "message", None), "refusal", None):
            raise UnusableAnswer("the model refuses to answer", usage)
        try:
            return validate(_text(reply.text), batch, self._slots, usage)
        except UnusableAnswer:
            if ended == _CUT:
                raise UnusableAnswer("the answer is cut at its greatest length", usage) from None
            raise

    def _ask(self, messages: list[dict[str, str]]) -> _Reply:
        """The reply in the first form that the provider accepts, within the time limit."""
        ends_at = time.monotonic() + self._timeout_s
        form: _Form | None = self._form
        while form is not None:
            try:
                reply = self._call(messages, form, ends_at)
            except ProviderWaits:
                raise
            except Exception as error:  # noqa: BLE001 - of any class, by the library of the provider
                easier = self._easier(form, error) if refuses_parameter(error) else None
                if easier is None:
                    # Its text, and that of what it was raised from, may quote the key or the chat.
                    raise translated(error) from None
                form = easier
            else:
                self._form = form
                return reply
        raise AssertionError("the last form has an outcome")

    def _easier(self, form: _Form, error: Exception) -> _Form | None:
        """The next form to try after a refusal, which asks less of the provider."""
        if not form.bare and refuses_sampling(error):
            return replace(form, bare=True)
        if form.format < len(self._formats) - 1:
            return replace(form, format=form.format + 1)
        return None if form.bare else replace(form, bare=True)

    def _call(self, messages: list[dict[str, str]], form: _Form, ends_at: float) -> _Reply:
        with self._lock:
            self._hanging = [call for call in self._hanging if call.running]
            if len(self._hanging) >= MAX_HANGING_CALLS:
                raise ProviderWaits(f"{len(self._hanging)} earlier calls of the provider hang")
        reply = _Reply()

        def noted(response: Any) -> None:
            reply.response = response

        left_s = max(ends_at - time.monotonic(), 0.0)
        asked = self._formats[form.format]
        options = {"response_format": asked} if asked else {}
        with llm_for_call(
            self._llm, timeout_s=left_s, max_tokens=self._max_tokens, bare=form.bare, on_response=noted
        ) as llm:
            call = LimitedCall(lambda: llm.generate_response(messages=messages, **options))
            try:
                reply.text = call.result(left_s)
            except TimeoutError:
                with self._lock:
                    self._hanging.append(call)
                reason = f"the provider has not answered within {self._timeout_s:g} s"
                raise ProviderWaits(reason, may_be_paid=True) from None
        return reply


def _text(answer: Any) -> str:
    """The text of an answer; some models give a list of parts, of which those of type `text` are said."""
    if isinstance(answer, list):
        return "".join(part["text"] for part in answer if isinstance(part, dict) and isinstance(part.get("text"), str))
    return answer if isinstance(answer, str) else ""


def _first_choice(response: Any) -> Any:
    choices = getattr(response, "choices", None)
    return choices[0] if isinstance(choices, list) and choices else None


def _usage(reply: _Reply, messages: list[dict[str, str]]) -> Usage:
    """The usage as the provider counts it or, where it does not, estimated by characters."""
    counted = getattr(reply.response, "usage", None)
    prompt = sum(estimate_text(message["content"]) for message in messages)
    return Usage(
        _count(getattr(counted, "prompt_tokens", None), prompt),
        _count(getattr(counted, "completion_tokens", None), estimate_text(_text(reply.text))),
    )


def _count(counted: Any, estimate: int) -> int:
    """A count of tokens that can be one, or else its estimate."""
    plausible = isinstance(counted, int) and not isinstance(counted, bool) and 0 <= counted <= MAX_COUNTED_TOKENS
    return counted if plausible else estimate
