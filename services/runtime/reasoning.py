"""Removal of a model's reasoning, the text between tags such as `<think>` and `</think>`, from its answer."""

from __future__ import annotations

import re

_NAME = r"(?:think|thinking|thought|reasoning|思考)"
#: DeepSeek, Qwen and many others, Seed with a prefix; Command and Sky-T1; Kimi; Magistral, in capitals alone; gpt-oss.
_OPENING = (
    rf"<\s*(?:\w+:)?{_NAME}\b[^<>]*>|<\|(?:start_|begin_of_)?{_NAME}\|>|◁\s*{_NAME}\s*▷|(?-i:\[THINK\])"
    r"|<\|channel\|>\s*(?:analysis|commentary)[^<]*<\|message\|>"
)
_CLOSING = (
    rf"<\s*/\s*(?:\w+:)?{_NAME}\s*>|<\|(?:end_|end_of_|/){_NAME}\|>|◁\s*/\s*{_NAME}\s*▷|(?-i:\[/THINK\])"
    r"|<\|channel\|>\s*final[^<]*<\|message\|>"
)
#: What may stand around an answer after such reasoning.
_FRAME = re.compile(r"<\|(?:begin|end)_of_solution\|>|<\|(?:end|return)\|>\s*\Z")
#: A tag that is quoted by itself is mentioned, not used; quotation marks after a word or a sentence end that.
_MENTION = rf"""(?:(?<![A-Za-z0-9.!?*])["'`]|[“‘「『])(?:{_OPENING}|{_CLOSING})["'`”’」』]"""
_CODE = r"```.*?```|``.*?``|`[^`\n]*`"

_FLAGS = re.IGNORECASE | re.DOTALL
_IN_REASONING = re.compile(rf"{_MENTION}|(?P<closing>{_CLOSING})", _FLAGS)
_IN_ANSWER = re.compile(rf"{_MENTION}|{_CODE}|(?P<closing>{_CLOSING})|(?P<opening>{_OPENING})", _FLAGS)
_ANY_TAG = re.compile(rf"{_MENTION}|(?P<closing>{_CLOSING})|(?P<opening>{_OPENING})", _FLAGS)


def without_reasoning(answer: str) -> str:
    """The answer of a model without its reasoning, which may be all of it.

    Reasoning without its opening tag, which some servers put into the prompt, begins the answer; without its closing
    tag, as where `max_tokens` cut it, it ends it. Tags in code, or quoted by themselves, are part of the answer.
    """
    first = next((tag for tag in _ANY_TAG.finditer(answer) if tag["closing"] or tag["opening"]), None)
    if first is None:
        return answer
    kept: list[str] = []
    at = first.end() if first["closing"] else 0
    while (tag := _next(_IN_ANSWER, answer, at)) is not None:
        if tag["closing"]:
            # The end of reasoning that quoted an earlier closing tag.
            kept.clear()
            at = tag.end()
            continue
        kept.append(answer[at : tag.start()])
        if tag["opening"].endswith("/>"):
            at = tag.end()
            continue
        end = _next(_IN_REASONING, answer, tag.end())
        at = end.end() if end else len(answer)
    return _FRAME.sub("", "".join([*kept, answer[at:]])).strip()


def _next(tags: re.Pattern[str], text: str, at: int) -> re.Match[str] | None:
    """The next tag from a position on; matches without a group are code or mentions."""
    return next((tag for tag in tags.finditer(text, at) if tag.lastgroup), None)
