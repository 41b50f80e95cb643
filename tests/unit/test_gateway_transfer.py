"""Export and import by HTTP: streams of JSON Lines, a page at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import fakeredis
import pytest
from keepsake_client.errors import RequestFailed, RequestTimeout
from starlette.types import Message

from services.gateway.api import api
from tests.unit.gateway_app import GatewayApp, gateway_app

EXPORT, IMPORT = "/v1/users/export?user_id=u1", "/v1/users/import?user_id=u1"
PAGES = 3


@pytest.fixture(scope="module")
def app() -> Iterator[GatewayApp]:
    with gateway_app(api) as app:
        yield app


@pytest.fixture
def http(app: GatewayApp) -> GatewayApp:
    app.reset()
    app.memory.answer = answer
    return app


def answer(kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """An export of some pages, a record on each; an import to which every record is new."""
    if kind == "user_import":
        return {"count": len(data["records"]), "known": 0, "deleted": 0}
    number = int(data.get("cursor", 0))
    follows = {"next_cursor": str(number + 1)} if number + 1 < PAGES else {}
    return {"records": [{"kind": "memory", "content": f"line {number}"}], **follows}


def records(number: int, text: str = "x") -> list[dict[str, Any]]:
    return [{"kind": "memory", "content": f"{text} {n}", "source": "user", "timestamp": n} for n in range(number)]


def lines(found: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in found)


def imported(http: GatewayApp) -> list[list[dict[str, Any]]]:
    """The pages that were asked to be imported."""
    return [data["records"] for kind, _, data in http.memory.requests if kind == "user_import"]


def exchange(http: GatewayApp, on_body: Any, spec_version: str = "2.4") -> list[Message]:
    """What the application sends for an export; `on_body` is called before each part of it is taken."""
    sent: list[Message] = []
    begun: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if begun:
            return begun.pop()
        message: Message = await asyncio.get_running_loop().create_future()  # it does not hang up
        return message

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            on_body(len(http.memory.requests))
        sent.append(message)

    path, _, query = EXPORT.partition("?")
    scope = {"type": "http", "asgi": {"spec_version": spec_version}, "method": "GET", "path": path, "headers": []}
    http.run(http.app({**scope, "query_string": query.encode(), "root_path": ""}, receive, send))
    return sent


def test_an_export_has_all_pages_a_record_a_line(http: GatewayApp) -> None:
    """Given three pages, I expect their records in order, as JSON Lines."""
    response = http.send("GET", EXPORT)

    assert response.headers["Content-Type"] == "application/x-ndjson"
    found = [json.loads(line)["content"] for line in response.text.splitlines()]
    assert found == ["line 0", "line 1", "line 2"]


def test_a_page_is_asked_for_when_the_one_before_is_taken(http: GatewayApp) -> None:
    """Given a client that takes its time, I expect no page asked for before it has taken the one before."""
    asked: list[int] = []

    sent = exchange(http, asked.append)

    assert asked[:PAGES] == [1, 2, 3]
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])  # which Starlette streams in two ways
def test_an_export_that_breaks_off_does_not_look_complete(http: GatewayApp, spec_version: str) -> None:
    """Given a second page that does not come, I expect no end of the response: the server closes the connection."""

    def fail(kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        if "cursor" in data:
            raise RequestTimeout("no response")
        return answer(kind, data)

    http.memory.answer = fail

    sent = exchange(http, lambda _: None, spec_version)

    assert sent[0]["status"] == 200
    assert all(message["more_body"] for message in sent[1:])
    assert http.counted() == {b"exports_aborted": b"1"}


def test_an_export_that_fails_at_once_is_a_problem(http: GatewayApp) -> None:
    """Given a first page that does not come, I expect a problem in place of a file."""
    http.memory.fails("unavailable: PostgreSQL does not answer")

    assert http.send("GET", EXPORT).json()["code"] == "unavailable"


@pytest.mark.parametrize("by", ["stream", "body", "form"])
def test_an_import_is_sent_in_pages(http: GatewayApp, by: str) -> None:
    """Given 150 records as a stream, a body or the file of a form, I expect pages of 64, and their counts."""
    content = lines(records(150))

    async def parts() -> AsyncIterator[bytes]:
        for begin in range(0, len(content), 777):
            yield content[begin : begin + 777]

    form = {"files": {"file": ("memories.jsonl", content)}}
    sent: dict[str, Any] = form if by == "form" else {"content": parts() if by == "stream" else content}
    response = http.send("POST", IMPORT, **sent)

    assert [len(page) for page in imported(http)] == [64, 64, 22]
    assert [record for page in imported(http) for record in page] == records(150)
    assert response.json() == {"records": 150, "count": 150, "known": 0, "deleted": 0}


def test_a_page_fits_into_a_message(http: GatewayApp) -> None:
    """Given long records in Chinese, which JSON writes in twice their bytes, I expect pages below half a megabyte."""
    http.send("POST", IMPORT, content=json_lines_of_chinese())

    assert len(imported(http)) > 1
    assert all(len(json.dumps(page)) < 500_000 + 1_000 for page in imported(http))


def json_lines_of_chinese() -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records(12, "猫" * 10_000))


@pytest.mark.parametrize(
    ("bad", "status", "detail"),
    [
        (b"no JSON\n", 400, "line 3: not JSON"),
        (b"[1]\n", 400, "line 3: a JSON object is needed"),
        (b"\xff\n", 400, "line 3: not UTF-8"),
        (b'{"a": NaN}\n', 400, "line 3: not JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"\n", 400, "line 3: nested deeper"),
        (b'{"a": "' + b"x" * 3_000_000, 413, "line 3: the message has"),
        (json.dumps({"a": "猫" * 200_000}, ensure_ascii=False).encode(), 413, "line 3: the record has"),
    ],
    ids=["text", "list", "bytes", "NaN", "deep", "endless", "escaped"],
)
def test_a_line_that_is_no_record_ends_it(http: GatewayApp, bad: bytes, status: int, detail: str) -> None:
    """Given two records and a hostile line, I expect the line named, the records before it stored, and told so."""
    response = http.send("POST", IMPORT, content=lines(records(2)) + bad + b"\n" + lines(records(1)))

    problem = response.json()
    assert response.status_code == status
    assert problem["detail"].startswith(detail)
    assert imported(http) == [records(2)]
    assert problem["records"] == problem["count"] == 2


def test_a_page_that_fails_ends_it(http: GatewayApp) -> None:
    """Given a second page that does not come back, I expect 504, with what is stored by then."""

    def fail(kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        if data["records"][0] != records(1)[0]:
            raise RequestTimeout("no response")
        return answer(kind, data)

    http.memory.answer = fail
    problem = http.send("POST", IMPORT, content=lines(records(100))).json()

    assert (problem["code"], problem["records"]) == ("expired", 64)


def test_a_record_that_is_refused_is_named_by_its_line(http: GatewayApp) -> None:
    """Given a second page that is refused, I expect the line of the record in place of its number on the page."""

    def refuse(kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        if data["records"][0] != records(1)[0]:
            raise RequestFailed("invalid_request: data.records.3: x")
        return answer(kind, data)

    http.memory.answer = refuse
    problem = http.send("POST", IMPORT, content=lines(records(100))).json()

    assert problem["detail"] == "line 68: x"


@pytest.mark.parametrize("restore", [True, False])
def test_what_was_deleted_is_restored_where_it_is_asked_for(http: GatewayApp, restore: bool) -> None:
    """Given `restore_deleted`, I expect it in the request of each page."""
    http.send("POST", f"{IMPORT}&restore_deleted={restore}", content=lines(records(65)))

    assert [bool(data.get("restore_deleted")) for _, _, data in http.memory.requests] == [restore, restore]


def test_a_long_import_counts_as_under_way(http: GatewayApp) -> None:
    """Given pages that each take nearly the whole lease of the Idempotency-Key, I expect it extended after each."""
    client: Any = fakeredis.FakeRedis(server=http.server)
    leases_ms: list[int] = []

    def take_long(kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        (lease,) = client.keys("*:running")
        leases_ms.append(client.pttl(lease))
        client.pexpire(lease, 10_000)
        return answer(kind, data)

    http.memory.answer = take_long
    http.send("POST", IMPORT, content=lines(records(100)), headers={"Idempotency-Key": "k1"})

    assert len(leases_ms) == 2
    assert min(leases_ms) > 10_000


@pytest.mark.parametrize(
    "given",
    [
        {"content": b"--x\r\n", "headers": {"Content-Type": "multipart/form-data"}},
        {"content": b"--x--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"files": [("file", ("a", b"{}")), ("file", ("b", b"{}"))]},
    ],
    ids=["no boundary", "no file", "two files"],
)
def test_a_form_without_its_one_file_is_refused(http: GatewayApp, given: Any) -> None:
    """Given a form that cannot be read, or has not one file, I expect 400 and nothing imported."""
    assert http.send("POST", IMPORT, **given).status_code == 400
    assert imported(http) == []


def test_the_same_upload_again_is_answered_the_same(http: GatewayApp) -> None:
    """Given an upload with a key, again, and another one with that key, I expect one import, then 422."""
    key = {"Idempotency-Key": "k1"}
    upload = lines(records(2))

    answers = [http.send("POST", IMPORT, content=upload, headers=key).json() for _ in range(2)]
    other = http.send("POST", IMPORT, content=upload + b"{}", headers=key)

    assert answers[0] == answers[1]
    assert imported(http) == [records(2)]
    assert other.status_code == 422


def test_a_client_that_hangs_up_in_an_upload_is_no_fault(http: GatewayApp) -> None:
    """Given a client that goes away in the middle of an upload, I expect no fault counted."""
    messages: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": lines(records(70)), "more_body": True},
    ]

    async def receive() -> Message:
        return messages.pop()

    async def send(message: Message) -> None:
        raise AssertionError(f"nothing is sent to it: {message}")

    path, _, query = IMPORT.partition("?")
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "root_path": ""}
    http.run(http.app({**scope, "query_string": query.encode()}, receive, send))

    assert [len(page) for page in imported(http)] == [64]
    assert http.counted() == {}
