"""Reading of an LLM's answer as JSON: what is around it is removed, and nothing is guessed."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from services.runtime.reasoning import without_reasoning

#: Such an answer is 4,000 tokens; what is longer comes from a server that keeps no limit.
MAX_ANSWER_CHARS = 100_000
_FENCE = "```"
#: A comma before a closing bracket, and strings, in which it is text; one that does not end goes to the end, so that
#: the time is linear.
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.?)*+(?:"|\Z))|,(?=\s*[}\]])', re.DOTALL)


class NoAnswer(Exception):
    """The text is no answer of extraction; the message says why, without contents."""


def read_answer(text: str) -> dict[str, Any]:
    """The object of an answer, with its lists `facts` and `profile`.

    Reasoning before it, a ``` fence, words around it and trailing commas are removed. A list of facts alone is taken
    for `facts`, unless it is empty: that may be anything.

    Raises:
        NoAnswer: it is cut, no JSON, or of another shape. It is never taken for an answer without facts.
    """
    if len(text) > MAX_ANSWER_CHARS:
        raise NoAnswer(f"more than {MAX_ANSWER_CHARS} characters")
    bare = text.strip().lstrip("\ufeff")
    if not bare.startswith(("{", "[")):
        bare = without_reasoning(bare).strip()
    if bare.startswith(_FENCE):
        bare = bare.partition("\n")[2].removesuffix(_FENCE).strip()
    if not bare:
        raise NoAnswer("empty")
    return _shaped(_decoded(bare))


def _decoded(text: str) -> Any:
    begin = 0 if text.startswith("[") else text.find("{")
    if begin < 0:
        raise NoAnswer("no JSON")
    repaired = _TRAILING_COMMA.sub(lambda found: found[1] or "", text[begin:])
    try:
        value, end = _DECODER.raw_decode(repaired)
    except (ValueError, RecursionError):
        raise NoAnswer("cut, or no JSON") from None
    if re.search(r"[{}\[\]]", repaired[end:]):
        raise NoAnswer("more than one JSON value")
    return value


def _shaped(value: Any) -> dict[str, Any]:
    if isinstance(value, list) and value and all(isinstance(one, dict) and "from" in one for one in value):
        value = {"facts": value}
    if not isinstance(value, dict):
        raise NoAnswer("no object")
    if not isinstance(value.get("facts"), list):
        raise NoAnswer("no list of facts")
    profile = value.get("profile")
    if not isinstance(profile, list | None):
        raise NoAnswer("a profile that is no list")
    return {"facts": value["facts"], "profile": profile or []}


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of its pairs; Python would keep the last of two values, and lose the facts in the first."""
    if len(named := dict(pairs)) < len(pairs):
        raise ValueError("a key twice")
    return named


def _no_constant(_: str) -> NoReturn:
    raise ValueError("NaN and infinity are no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_no_constant)
