"""The reasoning of a chat model is removed from its answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.reasoning import without_reasoning

ANSWERS = {
    "think": ("<think>They like tea.</think>You like tea.", "You like tea."),
    "thinking": ("<thinking>\nThey like tea.\n</thinking>\n\nYou like tea.", "You like tea."),
    "upper case": ("<THINK>hm</Think>Tea.", "Tea."),
    "attributes": ("<think type=\"deep\" step='1'>hm</think>Tea.", "Tea."),
    "spaces": ("< think >hm< / think >Tea.", "Tea."),
    "empty": ("<think>\n\n</think>\n\nTea.", "Tea."),
    "self-closing": ("<think/>Tea.", "Tea."),
    "no opening tag": ("They like tea.\n</think>\nTea.", "Tea."),
    "no opening tag, code in it": ("First ```x``` then ``` so\n</think>\nUse ```y```.", "Use ```y```."),
    "no closing tag": ("<think>They like tea, and the limit", ""),
    "cut after a part": ("Tea. <think>Or did they", "Tea."),
    "several": ("<think>a</think>Tea <think>b</think>and <thinking>c</thinking>milk.", "Tea and milk."),
    "reasoning alone": ("<think>They like tea.</think>", ""),
    "Kimi": ("◁think▷用户喜欢茶。◁/think▷你喜欢茶。", "你喜欢茶。"),
    "Seed": ("<seed:think>hm</seed:think>Tea.", "Tea."),
    "Magistral": ("[THINK]hm[/THINK]Tea.", "Tea."),
    "Command": ("<|START_THINKING|>hm<|END_THINKING|>Tea.", "Tea."),
    "Sky-T1": ("<|begin_of_thought|>hm<|end_of_thought|>Tea.", "Tea."),
    "Sky-T1, the answer in a frame": (
        "<|begin_of_thought|>hm<|end_of_thought|>\n<|begin_of_solution|>Tea.<|end_of_solution|>",
        "Tea.",
    ),
    "gpt-oss": (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Tea.<|return|>",
        "Tea.",
    ),
    "gpt-oss, cut": ("<|channel|>analysis<|message|>They like tea, and the lim", ""),
    "a quotation ends the reasoning, and another begins the answer": (
        '<think>I say "Tea."</think>"Tea," she says.',
        '"Tea," she says.',
    ),
    "bars": ("<|think|>hm<|/think|>Tea.", "Tea."),
    "Chinese": ("<思考>用户喜欢茶</思考>你喜欢茶。", "你喜欢茶。"),
    "thought": ("<thought>hm</thought>Tea.", "Tea."),
    "tag within reasoning": ("<think>Is <think> a tag?</think>Yes.", "Yes."),
    "nested": ("<think>a <think>b</think> c</think>Tea.", "Tea."),
    "quoted closing tag within": ('<think>They ask about "</think>" here.</think>It closes.', "It closes."),
}

KEPT = [
    "You like tea.",
    " indented\n",
    "Use the `<think>` tag; it ends with `</think>`.",
    'The tag "<think>" opens, “</think>” closes.',
    "用「<think>」标签。",
    "```\n<think>\nreasoning\n</think>\nanswer\n```\nThat is the format.",
    "The code ``a `<think>` b`` has one.",
    "I think > you thinking <3, [think] so: <thinker>.",
]


@pytest.mark.parametrize(("answer", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_reasoning_is_removed(answer: str, expected: str) -> None:
    """Given the answer of a model that reasons, I expect what it says to the user."""
    assert without_reasoning(answer) == expected


@pytest.mark.parametrize("answer", KEPT)
def test_an_answer_without_reasoning_is_unchanged(answer: str) -> None:
    """Given an answer that mentions such tags in code or in quotes, or has none, I expect it as it is."""
    assert without_reasoning(answer) == answer


pieces = st.lists(st.sampled_from(["<think>", "</think>", "◁think▷", '"', "said", "\n", "x"]), max_size=12)


@given(pieces)
def test_what_a_closing_tag_ends_is_not_told(pieces: list[str]) -> None:
    """Given any tags before, I expect nothing between the last of them and a closing tag, and all that follows it."""
    answer = without_reasoning("".join(pieces) + "secret\n</think>\nTea.")
    assert "secret" not in answer
    assert answer.endswith("Tea.")
