"""The body of a chat completion: what is read of it, and that a context changes nothing else, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keepsake_client.errors import InvalidJSON

from services.gateway.proxy.chat_request import ChatMessage, ChatRequest

CONTEXT = 'What follows is remembered.\n{"quote": "喜欢 \\"tea\\" 🍵"}\n'

texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
anything = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8)
contents = st.one_of(
    texts, st.none(), st.lists(st.one_of(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), anything))
)
messages = st.fixed_dictionaries(
    {},
    optional={
        "role": st.one_of(st.sampled_from(["system", "developer", "user", "assistant", "tool"]), anything),
        "content": contents,
        "name": anything,
    },
)
bodies = st.builds(
    lambda fields, found: {**fields, "messages": found},
    st.dictionaries(texts, anything),
    st.lists(st.one_of(messages, anything), max_size=5),
)


def added(before: str, after: bytes) -> str:
    """What `after` has more than `before`, in one place; fails where it differs otherwise."""
    whole = after.decode()
    same = 0
    while same < len(before) and before[same] == whole[same]:
        same += 1
    more = len(whole) - len(before)
    # The same characters may stand on both sides of the place, which is one of those up to where they differ.
    starts = [at for at in range(same + 1) if whole[:at] == before[:at] and whole[at + more :] == before[at:]]
    assert starts, (before, whole)
    return whole[starts[0] : starts[0] + more]


def expected(body: dict[str, Any]) -> list[Any]:
    """The messages with the context: in the first system prompt that has a content, or before all."""
    found = json.loads(json.dumps(body["messages"]))
    for message in found:
        if isinstance(message, dict) and message.get("role") in ("system", "developer"):
            content = message.get("content")
            if isinstance(content, str):
                message["content"] = f"{content}\n\n{CONTEXT}" if content else CONTEXT
                return list(found)
            if isinstance(content, list):
                content.append({"type": "text", "text": CONTEXT})
                return list(found)
    return [{"role": "system", "content": CONTEXT}, *found]


@given(bodies, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_a_context_is_all_that_changes(body: dict[str, Any], indent: int | str | None, escaped: bool) -> None:
    """Given any body with messages, written in any way, I expect the context in the prompt and all other bytes; and
    the prompt that is recorded to be that of the body with the context."""
    written = json.dumps(body, indent=indent, ensure_ascii=escaped)
    request = ChatRequest.parse(written.encode())

    changed = request.with_context(CONTEXT)

    assert added(written, changed)
    assert repr(json.loads(changed)) == repr({**json.loads(written), "messages": expected(body)})  # repr: NaN is NaN
    assert request.prompt(CONTEXT) == ChatRequest.parse(changed).prompt("")


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        ('{"messages":[]}', '{"messages":[{"role": "system", "content": "C"}]}'),
        (
            '{ "messages" : [ {"role":"user"} ] }',
            '{ "messages" : [{"role": "system", "content": "C"},  {"role":"user"} ] }',
        ),
        (
            '{"messages":[{"role":"system","content":"Be\\u0020brief"}]}',
            '{"messages":[{"role":"system","content":"Be\\u0020brief\\n\\nC"}]}',
        ),
        ('{"messages":[{"content":"","role":"developer"}]}', '{"messages":[{"content":"C","role":"developer"}]}'),
        (
            '{"messages":[{"role":"system","content":[{"type":"text","text":"Hi"} ]}]}',
            '{"messages":[{"role":"system","content":[{"type":"text","text":"Hi"} , {"type": "text", "text": "C"}]}]}',
        ),
        (
            '{"messages":[{"role":"system","content":[ ]}]}',
            '{"messages":[{"role":"system","content":[ {"type": "text", "text": "C"}]}]}',
        ),
        # Keys that occur twice: the last one counts, as most readers have it.
        (
            '{"messages":[1],"messages":[{"role":"user","content":"a","role":"system","content":"b"}]}',
            '{"messages":[1],"messages":[{"role":"user","content":"a","role":"system","content":"b\\n\\nC"}]}',
        ),
        (
            f'{{"seed":{"9" * 5_000},"x":1.50e+00,"messages":[{{"role":"system","content":"a"}}],"y":NaN}}',
            f'{{"seed":{"9" * 5_000},"x":1.50e+00,"messages":[{{"role":"system","content":"a\\n\\nC"}}],"y":NaN}}',
        ),
    ],
)
def test_where_a_context_goes(body: str, changed: str) -> None:
    """Given a body with or without a system prompt, I expect the context at its end, or in a message before all."""
    assert ChatRequest.parse(body.encode()).with_context("C").decode() == changed


def test_what_is_read() -> None:
    """Given a conversation with parts, tools and blank messages, I expect its texts, and the user's field."""
    body = {
        "user": "u1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]},
            {"role": "tool", "content": "12 °C", "tool_call_id": "c1"},
            {"role": "assistant", "content": "It is cold."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    {"type": "text", "text": "this?"},
                ],
            },
            {"role": "assistant", "content": "Let me see"},
            {"role": "user", "content": " "},
        ],
    }

    chat = ChatRequest.parse(json.dumps(body).encode())

    assert chat.user == "u1"
    assert [*chat.asked] == [
        ChatMessage("user", "Hello"),
        ChatMessage("assistant", "It is cold."),
        ChatMessage("user", "What is\nthis?"),
    ]
    assert chat.conversation[-1] == ChatMessage("assistant", "Let me see")


@pytest.mark.parametrize("user", [None, 5, "", " ", "u" * 2_601])
def test_what_is_no_id_of_a_user_names_none(user: Any) -> None:
    """Given a field `user` that is no id, such as one of megabytes, I expect no user: nothing else is to hold it."""
    assert ChatRequest.parse(json.dumps({"user": user, "messages": []}).encode()).user is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no",
        b"[]",
        b"{}",
        b'{"messages": {}}',
        b'{"messages": []} x',
        b'{"messages": [' + b"1," * 100_001 + b"1]}",
        b'{"messages": [}',
        b'{"messages": [] "a": 1}',
        b'{1: 2, "messages": []}',
        b'{"messages": [], "a": "\xff"}',
        "\ufeff{}".encode(),
        '{"messages": []}'.encode("utf-16"),
        b'{"messages": ' + b"[" * 100_000,
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b', "messages": []}',
    ],
)
def test_what_is_no_body(body: bytes) -> None:
    """Given what is no JSON object with messages in UTF-8, I expect one error, whatever is wrong with it."""
    with pytest.raises(InvalidJSON):
        ChatRequest.parse(body)


@pytest.mark.parametrize(("model", "read"), [("m" * 1_000, "m" * 200), ({}, None), ("模型", "模型")])
def test_of_a_model_the_beginning_is_read(model: Any, read: str | None) -> None:
    """Given a name of any length, or what is no name, I expect no more than a turn record has room for."""
    assert ChatRequest.parse(json.dumps({"messages": [], "model": model}).encode()).model == read
