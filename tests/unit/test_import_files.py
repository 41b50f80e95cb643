"""Files of imports as they should not be: other encodings, damage, archives made to do harm, and no end."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.imports import reading
from services.imports.files import CHUNK_BYTES, MAX_LINE_CHARS, ExportFile, open_export
from services.imports.json_elements import ITEM, MAX_ELEMENT_CHARS, Document, elements
from services.imports.people import Roles
from services.imports.records import Parsed, UnreadableFile
from tests.unit.test_imports import DATA, bad, items_of, options, records, written

ROW = {"role": "user", "content": "I keep bees.", "timestamp": 1_600_000_000}


def rows(*contents: str) -> str:
    return "".join(json.dumps({**ROW, "content": content}) + "\n" for content in contents)


def contents(path: Path, encoding: str | None = None, **given: Any) -> list[str]:
    if encoding is None:
        return [one["content"] for one in records(items_of(path, options(**given)))]
    file = ExportFile(path, encoding=encoding)
    return [line.text or "" for line in file.lines()]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_an_encoding_is_recognised(encoding: str, tmp_path: Path) -> None:
    """Given a text, JSON Lines and a document of JSON, with and without a mark, I expect what they say."""
    line = "31.12.2020, 21:45 - Zoë: Ich mag Äpfel, 苹果 und 🍎.\n"
    document = json.dumps([{**ROW, "content": "Äpfel 🍎"}], ensure_ascii=False)

    assert contents(written(tmp_path / "chat.txt", line.encode(encoding))) == ["Ich mag Äpfel, 苹果 und 🍎."]
    assert contents(written(tmp_path / "r.jsonl", rows("x", "y").encode(encoding))) == ["x", "y"]
    assert contents(written(tmp_path / "r.json", document.encode(encoding))) == ["Äpfel 🍎"]


@pytest.mark.parametrize("encoding", ["gb18030", "cp1252"])
def test_another_encoding_is_asked_for(encoding: str, tmp_path: Path) -> None:
    """Given an encoding that only a guess could tell, I expect a question, and with its name the text."""
    text = "我喜欢苹果" if encoding == "gb18030" else "J'aime l'été à Évora"
    path = written(tmp_path / "r.csv", f"content,timestamp\n{text},1600000000\n".encode(encoding))

    with pytest.raises(UnreadableFile, match=r"r\.csv is not UTF-8 \(byte \d+\): name its encoding, such as"):
        open_export(path)
    assert text in contents(path, encoding)[1]


@pytest.mark.parametrize("encoding", ["klingon", "zlib", "base64"])
def test_no_encoding_of_texts(encoding: str) -> None:
    with pytest.raises(UnreadableFile, match="there is no such encoding"):
        open_export(DATA / "plain.csv", encoding)


def test_damaged_bytes_cost_their_own_record(tmp_path: Path) -> None:
    """Given a byte that is no UTF-8 far into the file, I expect that record told, and no garbled memory."""
    text = (
        rows(*(f"row {number}" for number in range(5_000)), "damaged", "after")
        .encode()
        .replace(b"damaged", b"dam\xffged")
    )
    items = items_of(written(tmp_path / "r.jsonl", text), options())

    assert bad(items) == ["line 5,001: bytes that are no text in the file's encoding; see --encoding"]
    assert len(records(items)) == 5_001


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def pieces(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


@given(
    st.lists(st.dictionaries(st.text(), JSON_VALUES, max_size=4), max_size=4),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_elements_are_what_json_reads(values: list[Any], size: int, indent: int | None, ascii_only: bool) -> None:
    """Given any array, however its text comes in pieces, I expect the elements that Python's json reads."""
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    found = list(Document(pieces(text, size), more_chars=1).found({(ITEM,)}))

    assert [one.value for one in found] == json.loads(text)
    assert {one.path for one in found} <= {(ITEM,)}


@given(JSON_VALUES, st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_scalars_pass_by_with_their_paths(value: Any, size: int) -> None:
    """Given any document, I expect all its texts, numbers and words with no element."""

    def scalars(inner: Any) -> list[Any]:
        if isinstance(inner, dict):
            return [one for member in inner.values() for one in scalars(member)]
        return [one for member in inner for one in scalars(member)] if isinstance(inner, list) else [inner]

    text = json.dumps(value)

    assert [one.value for one in Document(pieces(text, size), more_chars=1).found(frozenset())] == scalars(
        json.loads(text)
    )


@pytest.mark.parametrize(
    "broken",
    [
        r'{"a" 1, "b": "and so on \"}"}',
        '{"a" 1}',
        '{"a": nul}',
        r'{"a": "\q"}',
        '{"a": "\n"}',
        '{"a": ["}", 1 2]}',
        "{1: 2}",
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_a_broken_element_costs_itself_alone(broken: str, size: int) -> None:
    text = f'[{{"x": "{"y" * 40}"}}, {broken}, {{"z": "\\"]"}}, {{}}]'
    found = list(Document(pieces(text, size), more_chars=1).found({(ITEM,)}))

    assert [one.value for one in found] == [{"x": "y" * 40}, None, {"z": '"]'}, {}]
    assert found[1].problem is not None
    assert found[1].problem.startswith("it is not JSON: ")


@pytest.mark.parametrize("text", [r"\ud83d\ude00", r"x\udc00y", r"\ud800z"])
def test_half_a_character_becomes_the_mark_of_a_lost_one(text: str, tmp_path: Path) -> None:
    """Given what JavaScript writes where it cut a text within a character, I expect a text that can be stored."""
    path = written(tmp_path / "r.json", f'[{{"content": "a{text}", "timestamp": 1e9, "role": "user"}}]')

    assert contents(path) == ["a😀" if "ude00" in text else "ax\ufffdy" if "x" in text else "a\ufffdz"]


def test_a_line_without_end_costs_itself_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl", rows("first") + "x" * (MAX_LINE_CHARS + CHUNK_BYTES) + "\n" + rows("last"))
    items = items_of(path, options())

    assert bad(items) == ["line 2: the line is too long"]
    assert [one["content"] for one in records(items)] == ["first", "last"]


@pytest.mark.parametrize(
    ("element", "problem"),
    [
        ("[" * 200_000 + "]" * 200_000, "nested too deep"),
        (f'["[{"x" * (MAX_ELEMENT_CHARS + 3 * CHUNK_BYTES)}]"]', "larger than 16,000,000 characters"),
        ("1" * 5_000, "it is not JSON: a number of too many digits"),
    ],
)
def test_an_element_beyond_measure_costs_itself_alone(element: str, problem: str, tmp_path: Path) -> None:
    first, last = (json.dumps({**ROW, "content": content}) for content in ("first", "last"))
    items = items_of(written(tmp_path / "r.json", f'[{first},{{"deep":{element}}},{last}]'), options())

    assert bad(items) == [f"element 2: {problem}"]
    assert [one["content"] for one in records(items)] == ["first", "last"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "the file ends too early"),
        ('{"messages":[{"role":"user"}],"a":' * 100, "nested deeper than 64 levels"),
        ("[" + "1" * 5_000 + "]", "it is not JSON: a number of too many digits"),
        ('[{"content": "x"}\n{"content": "y"}]', "line 2, after 1 elements: , or ] is missing"),
        ("[1] trailing", "something follows the end of the document"),
        ('{"a": tru, "b": "long enough"}', "it is not JSON"),
        ("[" + "x" * 100, "it is not JSON: Expecting value"),
        ('{"a": 1, b: 2}', "a key is missing"),
    ],
)
def test_what_is_no_json_is_told(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=said):
        items_of(written(tmp_path / "r.json", text), options(), "json")


def test_a_quote_without_end_costs_what_it_may_hold(tmp_path: Path) -> None:
    """Given a quote in CSV that nothing closes, I expect it told, and the rows beyond its longest field read."""
    rows_of_csv = "".join(f"row {number} {'x' * 200},1600000000\n" for number in range(2_000))
    items = items_of(written(tmp_path / "r.csv", f'content,timestamp\n"open,1600000000\n{rows_of_csv}'), options())

    assert bad(items) == ["line 2: not CSV: field larger than field limit (131072)"]
    assert 1_300 < len(records(items)) < 2_000


def test_a_text_without_end_is_not_kept(tmp_path: Path) -> None:
    path = written(tmp_path / "r.json", '["' + "x" * (MAX_ELEMENT_CHARS + CHUNK_BYTES))

    with pytest.raises(UnreadableFile, match="larger than 16,000,000 characters"):
        items_of(path, options(), "json")


def test_a_file_that_was_cut_off_is_read_to_there(tmp_path: Path) -> None:
    """Given a download that broke off, I expect its whole elements, then an error that says how far it goes."""
    whole = json.dumps([ROW, ROW, ROW])
    file = ExportFile(written(tmp_path / "r.json", whole[:-40]))
    found: list[object] = []

    def read() -> Iterator[object]:
        for one in elements(file, {(ITEM,)}):
            found.append(one.value)
            yield one

    with pytest.raises(UnreadableFile, match=r"r\.json, line 1, after 2 elements: the file ends too early"):
        list(read())
    assert found == [ROW, ROW]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "is not UTF-8"),
        (b"hello", "has none of the forms that are read (keepsake, chatgpt,"),
        (b'{"a": {"b": 1}}\n', "no content; see --map"),
        (b"PK\x03\x04nothing", "cannot be read: "),
    ],
)
def test_a_file_that_is_no_export_is_told(data: bytes, said: str, tmp_path: Path) -> None:
    try:
        told = " ".join(bad(items_of(written(tmp_path / "f", data), options())))
    except UnreadableFile as error:
        told = str(error)

    assert said in told


def archive(path: Path, members: dict[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def test_the_archive_of_openai_is_read_as_it_is(tmp_path: Path) -> None:
    """Given an archive with pictures, other JSON and names that lead elsewhere, I expect its conversations alone."""
    text = (DATA / "chatgpt.json").read_bytes()
    members: dict[str, str | bytes] = {"chat.html": "<html>", "user.json": "{}", "file-1.png": b"x"}
    members["../../../tmp/conversations.json"] = text
    before = set(tmp_path.parent.iterdir())

    assert len(contents(archive(tmp_path / "export.zip", members))) == 6
    assert set(tmp_path.parent.iterdir()) == before


def test_an_archive_in_several_parts_is_read_in_order(tmp_path: Path) -> None:
    conversations = json.loads((DATA / "chatgpt.json").read_text())
    members: dict[str, str | bytes] = {
        "x/conversations-001.json": json.dumps(conversations[1:]),
        "x/conversations-000.json": json.dumps(conversations[:1]),
        "__MACOSX/x/._conversations-000.json": b"\x00",
    }
    found = records(items_of(archive(tmp_path / "export.zip", members), options()))

    assert found == records(items_of(DATA / "chatgpt.json", options()))


def test_the_archive_of_whatsapp_gives_its_name_to_the_conversation(tmp_path: Path) -> None:
    members: dict[str, str | bytes] = {"_chat.txt": "[31.12.20, 21:45:12] A: x\n", "00001-PHOTO.jpg": b"x"}
    found = records(items_of(archive(tmp_path / "WhatsApp Chat - B.zip", members), options()))

    assert [one["session_id"] for one in found] == ["whatsapp:WhatsApp Chat - B"]


def test_an_archive_of_many_chats_of_sillytavern(tmp_path: Path) -> None:
    members: dict[str, str | bytes] = {f"{name}.jsonl": rows(name) for name in "ab"}

    assert contents(archive(tmp_path / "chats.zip", members)) == ["a", "b"]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"conversations.json": "[" + " " * 30_000_000}, "unpacks to more than 200 times its size"),
        ({"a.json": "[]", "b.csv": "x"}, "has 2 texts (a.json, b.csv"),
        ({"a.png": "x"}, "is an archive without conversations.json"),
    ],
)
def test_an_archive_that_cannot_be_meant_is_refused(members: dict[str, str | bytes], said: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile) as raised:
        open_export(archive(tmp_path / "a.zip", members))
    assert said in str(raised.value)


def test_a_damaged_archive_is_told(tmp_path: Path) -> None:
    """Given an archive whose data was changed, I expect one line, not zlib's or zipfile's traceback."""
    path = archive(tmp_path / "a.zip", {"conversations.json": (DATA / "chatgpt.json").read_bytes()})
    data = bytearray(path.read_bytes())
    data[200:260] = b"\x00" * 60
    path.write_bytes(data)

    with pytest.raises(UnreadableFile, match=r"conversations\.json"):
        items_of(path, options(), "chatgpt")


def test_an_encrypted_archive_is_told(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"conversations.json": "[]"}, zipfile.ZIP_STORED)
    data = path.read_bytes()
    for header in (b"PK\x03\x04", b"PK\x01\x02"):  # sets the flag that says so
        at = data.index(header) + (6 if header == b"PK\x03\x04" else 8)
        data = data[:at] + bytes([data[at] | 1]) + data[at + 1 :]
    path.write_bytes(data)

    with pytest.raises(UnreadableFile, match="is encrypted, password required"):
        open_export(path)


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "t.txt", "one\r\ntwo\u2028half\x0bthree\rfour\n\nlast")

    assert [line.text for line in ExportFile(path).lines()] == ["one", "two\u2028half\x0bthree\rfour", "", "last"]
    assert [line.number for line in ExportFile(path).lines()] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["discord.json", "chatgpt.json", "plain.jsonl", "whatsapp-android-zh.txt"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    """Given a file of 1 MB, I expect its records read within three quarters of that, as Python counts memory."""
    text = (DATA / name).read_text()
    if name.endswith("json"):
        many = json.loads(text)
        elements_of = many["messages"] if isinstance(many, dict) else many
        elements_of *= 1_000_000 // len(text)
        text = json.dumps(many)
    else:
        text *= 1_000_000 // len(text.encode())
    file, how = ExportFile(written(tmp_path / name, text)), options(room=True)
    form = reading.recognised_form(file, how)
    tracemalloc.start()
    try:
        count = sum(isinstance(item, Parsed) for item in reading.records(file, form, how, Roles(), 1.8e9))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert count > 500
    assert most < 750_000
