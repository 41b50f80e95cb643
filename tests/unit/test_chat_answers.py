"""The answer of a chat completion, gathered while its response is passed on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.gateway.proxy import answers
from services.gateway.proxy.answers import StreamedAnswer, WholeAnswer


def chunk(content: Any = None, finish: str | None = None, index: int | None = 0) -> bytes:
    choice = {"index": index, "delta": {"content": content}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def streamed(*pieces: bytes, ends: bool = True) -> str | None:
    """The text of a stream that came in these pieces."""
    answer = StreamedAnswer()
    for piece in pieces:
        answer.feed(piece)
    if ends:
        answer.end()
    return answer.text


def whole(document: Any) -> str | None:
    """The text of a response that came in two pieces."""
    data = json.dumps(document).encode()
    answer = WholeAnswer()
    answer.feed(data[:7])
    answer.feed(data[7:])
    assert answer.text is None
    answer.end()
    return answer.text


STREAM = chunk("Mo") + b": a comment\r\n\r\n" + chunk("奇。") + chunk(finish="stop") + b'data: {"choices": []}\n\n'


@pytest.mark.parametrize("size", [1, 3, 1_000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_stream_in_pieces(size: int, line_end: bytes) -> None:
    """Given a stream in pieces of any size, with either end of line, I expect its text."""
    data = (STREAM + b"data: [DONE]\n\n").replace(b"\r\n", b"\n").replace(b"\n", line_end)

    assert streamed(*(data[at : at + size] for at in range(0, len(data), size))) == "Mo奇。"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (STREAM, "Mo奇。"),  # a server that never says [DONE]
        (chunk("a") + b"data: [DONE]", "a"),  # nor the empty line behind it
        (chunk("a", "length"), "a"),
        (chunk("a") + chunk("other", "stop", index=1) + chunk("b", "stop"), "ab"),
        (chunk([{"type": "thinking"}, {"type": "text", "text": "a"}], "stop"), "a"),
        (b'data: {"choices":\ndata: [{"delta": {"content": "a"}, "finish_reason": "stop"}]}\n\n', "a"),
        (chunk(None, "tool_calls"), ""),
        (chunk("a", "stop", index=None), "a"),  # some servers have null there
        (b'data: {"choices": [{"delta": {"content": "\\ud83d"}}]}\n\n' + chunk("\ude00", "stop"), "😀"),
        (b"\xef\xbb\xbf" + chunk("a") + chunk("b", "stop"), "ab"),
        (chunk("a"), None),
        (chunk("a", "stop", index=1), None),
        (b"", None),
        (chunk("a", "stop") + b'data: {"error": {"message": "overloaded"}}\n\ndata: [DONE]\n\n', None),
        (chunk("a") + b'event: error\ndata: {"message": "overloaded"}\n\ndata: [DONE]\n\n', None),
        (chunk("a", "stop") + b'error: {"message": "overloaded"}\n\n', None),
        (chunk("a") + b"data: {nonsense\n\ndata: [DONE]\n\n", None),
        (b'data: {"choices": "none"}\n\ndata: [DONE]\n\n', None),
        (b"data: " + b"[" * 10_000 + b"\n\ndata: [DONE]\n\n", None),
    ],
)
def test_what_a_stream_says(data: bytes, text: str | None) -> None:
    """Given streams of servers, good and broken, I expect the text of those that are complete."""
    assert streamed(data) == text


def test_a_finished_stream_needs_no_end() -> None:
    """Given a client that hangs up behind the last event, I expect the text; before it, none."""
    assert streamed(chunk("a", "stop"), ends=False) == "a"
    assert streamed(chunk("a"), ends=False) is None


def test_a_long_stream_is_not_gathered() -> None:
    """Given an answer of more characters than any, I expect no text; of reasoning that is long, the whole text."""
    piece = "x" * 65_536
    pieces = answers.MAX_ANSWER_BYTES // len(piece)

    assert streamed(*[chunk(piece)] * pieces, chunk(finish="stop")) == piece * pieces
    assert streamed(*[chunk(piece)] * (pieces + 1), chunk(finish="stop")) is None


def test_an_endless_line_is_not_gathered() -> None:
    """Given an event larger than any, I expect no text, and no memory held for it."""
    answer = StreamedAnswer()
    piece = b"data: " + b"x" * (answers.MAX_ANSWER_BYTES // 2)
    for _ in range(3):
        answer.feed(piece)
    answer.feed(b"\n\ndata: [DONE]\n\n")
    answer.end()

    assert answer.text is None


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"choices": [{"message": {"content": "Mochi."}}]}, "Mochi."),
        ({"choices": [{"index": 1, "message": {"content": "b"}}, {"index": 0, "message": {"content": "a"}}]}, "a"),
        ({"choices": [{"message": {"content": None, "tool_calls": [{}]}}]}, ""),
        ({"choices": [{"message": {"content": None, "refusal": "I cannot"}}]}, ""),
        ({"choices": []}, None),
        ({"choices": None}, None),
        ({"error": {"message": "no credit"}}, None),
        ([], None),
        ("", None),
    ],
)
def test_what_a_document_says(document: Any, text: str | None) -> None:
    """Given responses that are not streamed, I expect the text of the first choice of those that have one."""
    assert whole(document) == text


def test_a_huge_document_is_not_gathered() -> None:
    """Given a response larger than any answer, I expect no text."""
    assert whole({"choices": [{"message": {"content": "x" * answers.MAX_ANSWER_BYTES}}]}) is None
