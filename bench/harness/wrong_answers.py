"""Wrong answers of LLMs, each by its name: what the server sends, for batches of one message at least.

`UNUSABLE` must never be taken for an answer without facts; `REPAIRED` all hold the one fact of `GOOD`; of `PARTLY`, one
item is left out and counted, and the fact of `GOOD` is kept. `NO_COMPLETIONS` come from something that is no LLM.
"""

from __future__ import annotations

import json
from typing import Any

from bench.harness.llm_server import Behaviour, Choosy, Raw, Reply, Status

TEXT = "The user lives in Lisbon."
FACT: dict[str, Any] = {
    "text": TEXT,
    "about": "user",
    "from": [1],
    "when": None,
    "kind": "state",
    "replaces": [],
    "confirms": None,
}
GOOD = json.dumps({"facts": [FACT], "profile": []})
_EMPTY = '{"facts": [], "profile": []}'


def _with(**changed: Any) -> dict[str, Any]:
    return {**FACT, **changed}


def _facts(*facts: Any) -> Reply:
    return Reply(json.dumps({"facts": list(facts), "profile": []}))


def _slots(*slots: Any) -> Reply:
    return Reply(json.dumps({"facts": [FACT], "profile": list(slots)}))


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in FACT.items() if key != name}


UNUSABLE: dict[str, Behaviour] = {
    "null": Reply(None),
    "an empty text": Reply(""),
    "white space": Reply(" \n\t"),
    "an empty object": Reply("{}"),
    "JSON null": Reply("null"),
    "an empty list": Reply("[]"),
    "a list of texts": Reply(json.dumps([TEXT])),
    "a number": Reply("0"),
    "a string of JSON": Reply(json.dumps(_EMPTY)),
    "another key": Reply(json.dumps({"memory": [FACT]})),
    "facts that are null": Reply('{"facts": null, "profile": []}'),
    "facts that are an object": Reply(json.dumps({"facts": FACT, "profile": []})),
    "facts that are a text": Reply(json.dumps({"facts": TEXT, "profile": []})),
    "a profile alone": Reply('{"profile": []}'),
    "a profile that is an object": Reply('{"facts": [], "profile": {"home": "Lisbon"}}'),
    "cut in a string": Reply(GOOD[:30], finish_reason="length"),
    "cut before the end": Reply(GOOD[:-2], finish_reason="length"),
    "cut without saying so": Reply(GOOD[:-2]),
    "a list that is cut": Reply(f"[{json.dumps(FACT)}, ", finish_reason="length"),
    "reasoning alone": Reply("<think>They live in Lisbon, so the answer is"),
    "reasoning that quotes an empty answer": Reply(f"<think>Is it {_EMPTY}? No,"),
    "a refusal in words": Reply("I'm sorry, but I can't help with that."),
    "a refusal in Chinese": Reply("抱歉，我无法处理这个请求。"),
    "a refusal by the field": Reply(None, refusal="I can't help with that."),
    "a refusal beside an empty answer": Reply(_EMPTY, refusal="I can't help with that."),
    "filtered": Reply(_EMPTY, finish_reason="content_filter"),
    "an answer in prose": Reply("The user lives in Lisbon now."),
    "Markdown": Reply(f"- {TEXT}\n- about: user"),
    "YAML": Reply(f"facts:\n  - text: {TEXT}\nprofile: []"),
    "XML": Reply(f"<facts><fact>{TEXT}</fact></facts>"),
    "Python": Reply(str({"facts": [FACT], "profile": []})),
    "comments": Reply('{"facts": [] /* none */, "profile": []}'),
    "two answers": Reply(f"{_EMPTY}\n{GOOD}"),
    "facts twice": Reply(f'{{"facts": [{json.dumps(FACT)}], "facts": [], "profile": []}}'),
    "NaN": Reply(GOOD.replace("[1]", "[NaN]")),
    "a number of 5,000 digits": Reply(GOOD.replace("[1]", f"[{'1' * 5_000}]")),
    "nested 100,000 deep": Reply("[" * 90_000),
    "200,000 characters": Reply(_EMPTY + " " * 200_000),
    "a fact that is a text": _facts(TEXT),
    "a fact that is null": _facts(None),
    "a fact that is a list": _facts([TEXT]),
    "a fact without text": _facts(_without("text")),
    "a blank fact": _facts(_with(text=" \n")),
    "a text that is a number": _facts(_with(text=7)),
    "a text that is an object": _facts(_with(text={"en": TEXT})),
    "a text of 501 characters": _facts(_with(text="x" * 501)),
    "no evidence at all": _facts(_without("from")),
    "evidence in words": _facts(_with(**{"from": ["the first message"]})),
    "evidence that is true": _facts(_with(**{"from": [True]})),
    "evidence that is an object": _facts(_with(**{"from": {"n": 1}})),
    "about a list": _facts(_with(about=["user"])),
    "about 200 characters": _facts(_with(about="x" * 200)),
    "replaces a text": _facts(_with(replaces=["The user lives in Oslo."])),
    "confirms an unknown fact without text": _facts(_with(text="", confirms=99)),
    "confirms two facts": _facts(_with(confirms=[1, 2])),
    "1,000 facts": _facts(*(_with(text=f"The user likes {n}.") for n in range(1_000))),
    "a slot that is a text": _slots("home: Lisbon"),
    "a slot without a name": _slots({"value": "Lisbon", "from": [1]}),
    "a slot's value that is an object": _slots({"slot": "home", "value": {"city": "Lisbon"}, "from": [1]}),
    "a slot's value that is true": _slots({"slot": "home", "value": True, "from": [1]}),
    "a slot without evidence's field": _slots({"slot": "home", "value": "Lisbon"}),
    "no choice": Raw(b'{"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": []}'),
    "no choices": Raw(b'{"id": "1", "object": "chat.completion", "created": 1, "model": "m"}'),
    "an error with 200": Raw(b'{"error": {"message": "overloaded", "code": 502}}'),
    "too long for the model": Status(400, error={"message": "too long", "code": "context_length_exceeded"}),
    "contents refused with 400": Status(400, error={"message": "no", "code": "content_filter"}),
    "too large": Status(413),
    "flagged": Status(403, error={"message": "the input was flagged by moderation", "code": 403}),
    "a slot of 60 values": _slots({"slot": "home", "value": [str(n) for n in range(60)], "from": [1]}),
}

REPAIRED: dict[str, Behaviour] = {
    "as asked": Reply(GOOD),
    "without usage": Reply(GOOD, counts=False),
    "a trailing comma": Reply(GOOD.replace('"from": [1]', '"from": [1,]').replace("}]", "},]")),
    "a fence": Reply(f"```json\n{GOOD}\n```"),
    "a fence without a language": Reply(f"```\n{GOOD}\n```"),
    "a fence after words": Reply(f"Here it is:\n```json\n{GOOD}\n```\nThat is all."),
    "words around it": Reply(f"Here is the JSON: {GOOD} I hope this helps!"),
    "reasoning before it": Reply(f"<think>They moved, so {_EMPTY} is wrong.</think>\n{GOOD}"),
    "reasoning and a fence": Reply(f"<think>hm</think>```json\n{GOOD}\n```"),
    "a byte order mark": Reply(f"\ufeff{GOOD}"),
    "a list of facts": Reply(json.dumps([FACT])),
    "without a profile": Reply(json.dumps({"facts": [FACT]})),
    "a profile that is null": Reply(json.dumps({"facts": [FACT], "profile": None})),
    "one more key": Reply(json.dumps({"facts": [_with(score=0.9)], "profile": [], "note": "none"})),
    "fields left out": _facts({"text": TEXT, "from": [1], "kind": "state"}),
    "evidence as a text": _facts(_with(**{"from": ["1"]})),
    "evidence without a list": _facts(_with(**{"from": 1})),
    "evidence as 1.0": _facts(_with(**{"from": [1.0]})),
    "evidence twice, and beyond the batch": _facts(_with(**{"from": [1, 1, 999, 0, -1]})),
    "when as an empty text": _facts(_with(when="")),
    "a kind in capitals": _facts(_with(kind="State")),
    "the same fact twice": _facts(FACT, _with(text="the user lives in  Lisbon")),
    "about nothing": _facts(_with(about=None)),
    "about the user in words": _facts(_with(about="The user")),
    "line breaks and NUL in the text": _facts(_with(text="The user\nlives\x00 in \tLisbon.")),
    "cut after the answer": Reply(GOOD + " " * 500, finish_reason="length"),
    "no finish_reason": Reply(GOOD, finish_reason=None),
    "a choosy server": Choosy(frozenset({"json_schema"}), then=Reply(GOOD)),
}

PARTLY: dict[str, tuple[str, Behaviour]] = {
    "evidence beyond the batch alone": ("without_evidence", _facts(FACT, _with(text="x", **{"from": [999]}))),
    "an empty list of evidence": ("without_evidence", _facts(FACT, _with(text="x", **{"from": []}))),
    "a card number": ("secret", _facts(FACT, _with(text="The user's card is 4111 1111 1111 1111."))),
    "a password": ("secret", _facts(FACT, _with(text="The user's password is hunter2."))),
    "no day of the calendar": ("date", _facts(_with(when="2024-02-30"))),
    "a date in words": ("date", _facts(_with(when="last week"))),
    "a span that ends before it begins": ("date", _facts(_with(when="2024-03-10/2024-03-04"))),
    "a kind that does not exist": ("kind", _facts(_with(kind="preference"))),
    "replaces what was not shown": ("unknown_fact", _facts(_with(replaces=[99]))),
    "confirms what was not shown": ("unknown_fact", _facts(_with(confirms=99))),
    "a slot that does not exist": ("unknown_slot", _slots({"slot": "shoe_size", "value": "43", "from": [1]})),
    "a slot by no message": ("slot_without_evidence", _slots({"slot": "home", "value": "Lisbon", "from": [99]})),
    "a blank slot": ("blank_slot", _slots({"slot": "home", "value": " ", "from": [1]})),
    "a secret in a slot": (
        "secret",
        _slots({"slot": "home", "value": "api key: sk_live_abcdefgh12345678", "from": [1]}),
    ),
}

NO_COMPLETIONS: dict[str, Behaviour] = {
    "a page": Raw(b"<html>Welcome to the hotel's network</html>", "text/html"),
    "a text": Raw(b"ok", "text/plain"),
}
