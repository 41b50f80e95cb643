"""Times that a text names, in nine languages: tests/data/named-times.tsv holds queries and what they name."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from itertools import groupby
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.long_term_memory.retrieval import dates
from services.long_term_memory.retrieval.dates import iso_dates, named_times

#: A Wednesday.
ASKED_AT = datetime(2024, 5, 15, 12)
SHANGHAI = ZoneInfo("Asia/Shanghai")
TABLE = Path(__file__).parents[1] / "data" / "named-times.tsv"
ROWS = [line.split("\t") for line in TABLE.read_text().splitlines()]


def at(moment: datetime, zone: tzinfo) -> float:
    return moment.replace(tzinfo=zone).timestamp()


def named(text: str, asked_at: datetime = ASKED_AT, zone: tzinfo = SHANGHAI) -> set[str]:
    """What a text names, as the table writes it: the local beginning and end of each interval."""

    def local(seconds: float) -> str:
        return datetime.fromtimestamp(seconds, zone).strftime("%Y-%m-%dT%H:%M").removesuffix("T00:00")

    return {f"{local(begin)}/{local(end)}" for begin, end in named_times(text, at(asked_at, zone), zone)}


@pytest.mark.parametrize(
    ("language", "rows"), [(language, list(rows)) for language, rows in groupby(ROWS, lambda row: row[0])]
)
def test_the_times_of_a_table_are_read(language: str, rows: list[list[str]]) -> None:
    """Given queries of a language, half of which name no time, I expect what a reader of it would understand."""
    wrong = {text: named(text) for _, text, expected in rows if named(text) != set(expected.split())}
    assert not wrong


def test_a_day_is_the_users() -> None:
    """Given a query at 23:00 in UTC, when it is the next day in Shanghai, I expect "yesterday" to be the user's."""
    late = datetime(2024, 5, 15, 23, tzinfo=UTC).timestamp()
    begin, _ = named_times("what did I eat yesterday?", late, SHANGHAI)[0]
    assert datetime.fromtimestamp(begin, SHANGHAI) == datetime(2024, 5, 15, tzinfo=SHANGHAI)
    begin, _ = named_times("what did I eat yesterday?", late, UTC)[0]
    assert datetime.fromtimestamp(begin, UTC) == datetime(2024, 5, 14, tzinfo=UTC)


def test_a_day_of_23_hours_is_one() -> None:
    """Given the day on which summer time begins, I expect the next one to begin at its midnight."""
    berlin = ZoneInfo("Europe/Berlin")
    begin, end = named_times("gestern", at(datetime(2024, 4, 1, 9), berlin), berlin)[0]
    assert end - begin == 23 * 3_600


def test_hours_and_minutes_are_read_by_the_clock() -> None:
    """Given hours and minutes ago, I expect half of one to either side."""
    assert named("what did I say two hours ago?") == {"2024-05-15T09:30/2024-05-15T10:30"}
    assert named("我十分钟前说了什么") == {"2024-05-15T11:49/2024-05-15T11:50"}


def test_a_time_that_may_be_meant_in_two_ways_is_both() -> None:
    """Given a Saturday, I expect "last Friday" to be yesterday or that of last week, and 上周五 only the latter."""
    saturday = datetime(2024, 5, 18, 12)
    assert named("last Friday", saturday) == {"2024-05-17/2024-05-18", "2024-05-10/2024-05-11"}
    assert named("上周五", saturday) == {"2024-05-10/2024-05-11"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from 3 May 2024 to 6 May 2024", {"2024-05-03/2024-05-07"}),
        ("2023年3月到5月", {"2023-03-01/2024-06-01"}),
        ("since last week", {"2024-05-06/2024-05-16"}),
        ("before May 2023", set()),
        ("every Monday in March", {"2024-03-01/2024-04-01", "2025-03-01/2025-04-01"}),
    ],
)
def test_words_around_a_time_change_it(text: str, expected: set[str]) -> None:
    """Given a range, a beginning, or a word that means another time, I expect that."""
    assert named(text) == expected


def test_a_day_that_does_not_exist_is_none() -> None:
    """Given 31 June, or 29 February of a common year, I expect no time rather than another one."""
    assert named("31 June 2023") == named("29 February 2023") == set()
    assert named("29 February") == {"2024-02-29/2024-03-01"}


def test_spring_festivals_are_those_of_the_calendar() -> None:
    """Given years with the earliest and the latest new year, I expect their days."""
    assert named("1985年春节") == set()  # before the table
    assert {named(f"{year}年除夕").pop()[:10] for year in (2033, 2034, 2059)} == {
        "2033-01-30",
        "2034-02-18",
        "2059-02-11",
    }


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_no_text_and_no_moment_raise(text: str, asked_at: float) -> None:
    """Given any text at any moment, I expect times, each of which begins before it ends."""
    assert all(begin < end for begin, end in named_times(text, asked_at, UTC))
    iso_dates(text, asked_at, SHANGHAI)


WORDS = st.sampled_from(
    [word for row in ROWS for word in row[1].split()] + list("上下个周月年日前一二三五去今明 末") + ["20", "31"]
)


@given(st.lists(WORDS, max_size=12).map("".join) | st.lists(WORDS, max_size=12).map(" ".join), st.integers(0, 2**32))
def test_no_words_of_time_raise(text: str, asked_at: int) -> None:
    """Given words of time in any order, I expect intervals within the calendar, however little sense they make."""
    for begin, end in named_times(text, asked_at, SHANGHAI):
        assert begin < end


@pytest.mark.parametrize(
    "text",
    [
        "where do I live?",
        "我叫什么名字",
        "我喜歡什麼顏色",
        "どこに住んでいるの",
        "내 이름이 뭐야",
        "¿cómo se llama mi gata?",
        "",
    ],
)
def test_a_text_without_a_word_of_time_costs_a_look(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a query that names no time, I expect neither phrases nor grammar to be tried on it."""
    tried: list[str] = []

    def replace_phrases(folded: str) -> str:
        tried.append(folded)
        return folded

    monkeypatch.setattr(dates, "replace_phrases", replace_phrases)
    assert named(text) == set()
    assert tried == []
    assert named("yesterday") == {"2024-05-14/2024-05-15"}
    assert tried == ["yesterday"]


def test_of_a_long_text_the_beginning_is_read() -> None:
    """Given a page with dates, I expect those of its beginning, so that its length costs nothing."""
    assert named("yesterday " + "tea " * 1_000 + "in May 2023") == {"2024-05-14/2024-05-15"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("My exam is tomorrow", ["2024-05-16"]),
        ("明天我要去北京", ["2024-05-16"]),
        ("I started the job last month", ["2024-04"]),
        ("we moved here last year", ["2023"]),
        ("I was ill last week", ["2024-05-06/2024-05-12"]),
        ("yesterday we fixed it, and again yesterday", ["2024-05-14"]),
        ("I was born in March 1990", ["1990-03"]),
        ("I like tea", []),
        ("on Monday we meet", []),  # the last one, or the next
        ("my birthday is on May 3rd", []),  # of any year
        ("two hours ago", ["2024-05-15"]),
    ],
)
def test_dates_of_a_memory_are_those_that_are_certain(text: str, expected: list[str]) -> None:
    """Given a memory, I expect its times in ISO 8601, but for those that can be meant in two ways."""
    assert iso_dates(text, at(ASKED_AT, SHANGHAI), SHANGHAI) == expected
