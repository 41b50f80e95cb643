"""Times as publishers write them: the forms that are read, what they are read as, and how an event is dated by them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from email.utils import format_datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from keepsake_client.protocol import parse_update
from keepsake_client.times import parse_timestamp, time_of_event
from keepsake_client.tolerance import DEFAULTS, MessageDefaults

SHANGHAI = ZoneInfo("Asia/Shanghai")


def utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> float:
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()


NOON = utc(2024, 4, 5, 12)
EVENING = utc(2023, 4, 21, 20, 2, 47)
MINUTE = utc(2023, 4, 21, 20, 2)
DAY = utc(2023, 4, 21)
FORMS: dict[object, float] = {
    # numbers
    int(NOON): NOON,
    NOON + 0.5: NOON + 0.5,
    int(NOON) * 1_000 + 250: NOON + 0.25,
    int(NOON) * 1_000_000: NOON,
    int(NOON) * 1_000_000_000: NOON,
    -1: -1.0,
    100_000_000_000: 100_000_000.0,  # the least milliseconds, in 1973
    99_999_999_999: 99_999_999_999.0,  # the greatest seconds, in 5138
    str(int(NOON)): NOON,
    f" {NOON} ": NOON,
    str(int(NOON) * 1_000): NOON,
    "1712041231234": 1_712_041_231.234,  # no date, though 1712-04-12 is one
    "1712318400000000": NOON,
    "1712318400000000000": NOON,
    "1.7123184e9": NOON,
    # ISO 8601 and RFC 3339
    "2024-04-05T12:00:00Z": NOON,
    "2024-04-05t12:00:00z": NOON,
    "2024-04-05 12:00:00.5": NOON + 0.5,
    "2024-04-05T12:00:00,5Z": NOON + 0.5,
    "2024-04-05T12:00:00.1234567Z": NOON + 0.123456,
    "2024-04-05T20:00:00+08:00": NOON,
    "2024-04-05T20:00:00+0800": NOON,
    "2024-04-05 20:00:00 +0800": NOON,
    "2024-04-05T20:00:00+08:00[Asia/Shanghai]": NOON,
    "2024-04-05T12:00:00": NOON,
    "2024-04-05T12": NOON,
    "2024-04-05": NOON - 43_200,
    "20240405": NOON - 43_200,
    "20240405T120000Z": NOON,
    "20240405120000": NOON,
    "2024-W14-5T12:00:00Z": NOON,
    "2024-096": NOON - 43_200,
    "2024-04-05T24:00:00Z": NOON + 43_200,
    "2024-04-05T23:59:60Z": NOON + 43_199,
    # RFC 2822, C and JavaScript
    "Fri, 21 Apr 2023 20:02:47 GMT": EVENING,
    "Fri, 21 Apr 2023 16:02:47 EDT": EVENING,
    "21 Apr 23 20:02:47 -0000": EVENING,
    "Fri Apr 21 20:02:47 2023": EVENING,
    "Sat Apr 22 04:02:47 +0800 2023": EVENING,
    "Sat Apr 22 2023 04:02:47 GMT+0800 (China Standard Time)": EVENING,
    "Fri Apr 21 2023": DAY,
    "4/21/2023, 8:02:47 PM": EVENING,
    "4/21/23, 8:02\u202fPM": MINUTE,
    "21.4.2023, 20:02:47": EVENING,
    "21/04/2023 20:02:47": EVENING,
    "4/5/2023": utc(2023, 4, 5),
    "4.5.2023": utc(2023, 5, 4),
    # SillyTavern
    "2023-4-21 @20h 02m 47s 124ms": EVENING + 0.124,
    "2023-4-21@20h02m47s": EVENING,
    "2024-01-05@18h34m12s": utc(2024, 1, 5, 18, 34, 12),
    "2024-01-05@18h34m12s123ms": utc(2024, 1, 5, 18, 34, 12) + 0.123,
    "June 19, 2023 2:20pm": utc(2023, 6, 19, 14, 20),
    # others
    "/Date(1712318400000)/": NOON,
    "/Date(1712318400000+0800)/": NOON,
    '"2024-04-05T12:00:00Z"': NOON,
    "2024-04-05T20:00:00+08": NOON,
    "2024-04-05 20:00 UTC+8": NOON,
    "2024-04-05T04:00:00\u221208:00": NOON,
    "Fri Apr  5 21:00:00 JST 2024": NOON,
    "5 Apr 2024 14:00 CEST": NOON,
    "Friday, 05-Apr-24 12:00:00 GMT": NOON,
    "2024-04-05_12-00-00": NOON,
    # Go and Java
    "2024-04-05 20:00:00.5 +0800 CST m=+0.000012": NOON + 0.5,
    "2024-04-05 12:00:00 +0000 UTC": NOON,
    "2024-04-05 17:45:00 +0545 +0545": NOON,
    "2024-04-05T12:00:00.5Z[UTC]": NOON + 0.5,
    "20240405120000500": NOON + 0.5,
    "2024-04-05 12.00.00": NOON,
    # people
    "2023/4/21 20:02": MINUTE,
    "2023.04.21 20:02": MINUTE,
    "21 April 2023": DAY,
    "21-Apr-2023 20:02:47": EVENING,
    "April 21st, 2023 at 8 pm": utc(2023, 4, 21, 20),
    "Apr 21, 2023 12:00 a.m.": DAY,
    "8:02 pm, Sept. 3, 2023": utc(2023, 9, 3, 20, 2),
    "2023年4月21日 20:02": MINUTE,
    "2023年4月21日": DAY,
    "2023年4月21日 下午8:02": MINUTE,
    "2023年4月21日星期五 下午8时02分47秒": EVENING,
    "２０２３年４月２１日　２０：０２": MINUTE,
    "2023年4月21日 中午12点": utc(2023, 4, 21, 12),
    "2023年4月21日 中午11点": utc(2023, 4, 21, 11),
    "2023年4月21日(金) 午後8時2分": MINUTE,
    "2023. 4. 21. 오후 8:02:47": EVENING,
    "2023년 4월 21일 금요일 오후 8시 2분": MINUTE,
    "21. April 2023, 20:02:47": EVENING,
    "Friday, April 21, 2023 at 8:02 PM GMT+0": MINUTE,
    # the ends of the calendar
    "0001-01-01T00:00:00": utc(1, 1, 1),
    "9999-12-31T23:59:59Z": utc(9999, 12, 31, 23, 59, 59),
}


@pytest.mark.parametrize(("sent", "seconds"), FORMS.items(), ids=lambda value: str(value)[:40])
def test_every_form_of_a_time_is_read(sent: object, seconds: float) -> None:
    """Given any of the forms that publishers use, I expect the moment that it means."""
    assert parse_timestamp(sent) == pytest.approx(seconds, abs=1e-3)


UNREADABLE: list[object] = [
    *("", " ", "soon", "yesterday", "May", "June 2023", "20:02", "2024-13-45", "2023-02-29", "31/4/2023"),
    *(
        "2024-04-05 25:00",
        "2024-04-05 12:61",
        "2024-04-05 12:00 IST",
        "2024-04-05 12:00 (EST)",
        "23-04-21",
        "2024-04-05T12:00:00[Asia/Shanghai]",
        "Fri Apr 21 20:02:47 CST 2023",
    ),
    *("2023年4月21日 晚上12点", "/Date(soon)/", "2024-04-05T12:00:00+99:00", "1 2 3 4", "2023-999"),
    *("nan", "inf", "1e999", "x" * 1_000_000, 10**400, -(10**30), 10**21, float("nan"), float("inf")),
    *(True, None, [], {}, ["2024-04-05"], b"2024-04-05", "-99999999999999999999"),
]


@pytest.mark.parametrize("sent", UNREADABLE, ids=lambda value: str(value)[:30])
def test_what_is_no_time_is_a_value_error(sent: object) -> None:
    """Given what cannot be read, or in two ways, I expect a ValueError that does not quote it."""
    with pytest.raises(ValueError, match=r"^(must be a time, such as .*|timestamp out of range)$"):
        parse_timestamp(sent)


moments = st.datetimes(datetime(1900, 1, 1), datetime(2199, 12, 31)).map(lambda moment: moment.replace(microsecond=0))
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
FORMATS: list[Callable[[datetime], str]] = [
    datetime.isoformat,
    lambda moment: moment.isoformat(" "),
    lambda moment: moment.strftime("%Y/%m/%d %H:%M:%S"),
    lambda moment: moment.strftime("%d.%m.%Y, %H:%M:%S"),
    lambda moment: moment.strftime("%m/%d/%Y, %I:%M:%S %p"),
    lambda moment: moment.strftime("%B %d, %Y %I:%M:%S%p"),
    lambda moment: moment.strftime("%a %b %d %H:%M:%S %Y"),
    lambda moment: f"{moment.year}-{moment.month}-{moment.day} @{moment.hour}h {moment:%M}m {moment:%S}s 0ms",
    lambda moment: f"{moment:%Y-%m-%d}@{moment.hour:02}h{moment:%M}m{moment:%S}s",
    lambda moment: f"{moment:%Y年%m月%d日} {'上午' if moment.hour < 12 else '下午'}{moment:%I:%M:%S}",
    lambda moment: f"{moment.year}年{moment.month}月{moment.day}日{moment.hour}时{moment.minute}分{moment.second}秒",
]
ZONED: list[Callable[[datetime], str]] = [
    datetime.isoformat,
    lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%S%z"),
    format_datetime,
    lambda moment: moment.strftime("%a %b %d %Y %H:%M:%S GMT%z (Somewhere Standard Time)"),
]


@given(moments, st.sampled_from(FORMATS))
def test_a_time_without_a_zone_that_is_written_is_read_back(moment: datetime, write: Callable[[datetime], str]) -> None:
    """Given any moment in any of these forms, I expect it back, by the zone that is said to be its publisher's."""
    assert parse_timestamp(write(moment)) == moment.replace(tzinfo=UTC).timestamp()
    assert parse_timestamp(write(moment), SHANGHAI) == moment.replace(tzinfo=SHANGHAI).timestamp()


@given(moments, offsets, st.sampled_from(ZONED))
def test_a_time_with_a_zone_is_read_by_it(moment: datetime, zone: tzinfo, write: Callable[[datetime], str]) -> None:
    """Given any moment of any zone in a form that names it, I expect it back, whatever the publisher's zone is."""
    zoned = moment.replace(tzinfo=zone)

    assert parse_timestamp(write(zoned), SHANGHAI) == zoned.timestamp()


WORDS = "2023 4 21 20 02 47 124 0 99 - / . : @ , T Z +08:00 h m s ms am pm PM Apr june Fri GMT ( ) 年 月 日 下午 时"
fragments = st.sampled_from([*WORDS.split(" "), " "])


@given(
    st.integers()
    | st.floats()
    | st.text()
    | st.lists(fragments, max_size=16).map("".join)
    | st.datetimes().map(str)
    | st.datetimes(timezones=st.timezones()).map(str)
)
@example(10**400)
@example("9999-12-31T23:59:59-14:00")
@example("0001-01-01T00:00:00+14:00")
@example("٢٠٢٣-٤-٢١")
def test_a_time_is_read_or_a_value_error(value: float | str) -> None:
    """Given any number or text, I expect a time within the calendar or a ValueError, and no other exception."""
    for zone in (UTC, SHANGHAI):
        try:
            seconds = parse_timestamp(value, zone)
        except ValueError:
            continue
        assert 1 <= datetime.fromtimestamp(seconds, UTC).year <= 9999


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "America/Los_Angeles"])
def test_a_time_without_a_zone_is_utc_wherever_the_process_runs(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a process in any time zone, I expect a time without a zone to be read as UTC, and one with a zone by it."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert parse_timestamp("2024-04-05T12:00:00") == NOON
        assert parse_timestamp("5 April 2024 12:00") == NOON
        assert parse_timestamp("2024-04-05T20:00:00+08:00") == NOON
    finally:
        monkeypatch.undo()
        time.tzset()


# Dating an event

ARRIVED = utc(2026, 11, 29, 7, 30)
UNDATED: dict[str, object] = {
    "seconds since boot": 1061.277,
    "seconds since boot, as text": "1061.277",
    "a clock that was never set": 0,
    "before 1970": -5,
    "just before 2000": 946_684_799,
    "more than a day ahead": ARRIVED + 86_401,
    "more than a day ahead, in ISO 8601": "2026-11-30T07:30:01Z",
    "the end of the calendar": "9999-12-31T23:59:59Z",
    "its beginning": "0001-01-01T00:00:00",
    "milliseconds since boot": 1_061_277,
    "words": "yesterday",
    "true": True,
    "an object": {"$date": 1_712_345_678},
}


@pytest.mark.parametrize("sent", UNDATED.values(), ids=UNDATED)
def test_what_cannot_be_the_time_of_an_event_is_dated_by_its_arrival(sent: object) -> None:
    """Given a time before 2000, more than a day ahead, or none at all, I expect that of arrival, and what was sent in
    `meta`."""
    raw = json.dumps({"user_id": "u1", "content": "hi", "source": "user", "timestamp": sent, "meta": {"a": 1}}).encode()

    event = parse_update(raw, 100, arrived_at=ARRIVED)

    kept = json.dumps(sent) if isinstance(sent, dict) else sent
    assert (event.timestamp, event.meta) == (ARRIVED, {"a": 1, "sent_timestamp": kept})


@pytest.mark.parametrize("sent", [946_684_800, ARRIVED + 86_400, ARRIVED - 1, "2000-01-01", "2026-11-29T07:30:00"])
def test_the_time_of_an_event_is_kept_where_it_can_be(sent: float | str) -> None:
    """Given a time from 2000 on to a day ahead, I expect it, and nothing added to `meta`."""
    raw = json.dumps({"user_id": "u1", "content": "hi", "source": "user", "timestamp": sent}).encode()

    event = parse_update(raw, 100, arrived_at=ARRIVED)

    assert (event.timestamp, event.meta) == (parse_timestamp(sent), {})


def local(hours: float, late_s: float = 0.0) -> str:
    """What a clock so many hours ahead of UTC shows so long before the arrival, without its zone."""
    return datetime.fromtimestamp(ARRIVED + hours * 3_600 - late_s, UTC).replace(tzinfo=None).isoformat()


@pytest.mark.parametrize("late_s", [0.0, 0.25, 40.0, 299.0, -120.0])
@pytest.mark.parametrize("hours", [0.5, 1, 3.5, 5.5, 5.75, 8, 8.75, 9.5, 12.75, 13.75, 14])
def test_a_live_time_of_a_zone_to_the_east_is_the_publishers_local_time(hours: float, late_s: float) -> None:
    """Given a live time without a zone from a host east of UTC, some latency ago, I expect the moment that it means."""
    raw = json.dumps({"user_id": "u1", "content": "hi", "source": "user", "timestamp": local(hours, late_s)}).encode()

    event = parse_update(raw, 100, arrived_at=ARRIVED)

    assert event.timestamp == pytest.approx(ARRIVED - late_s, abs=1e-3)
    assert event.meta == {"sent_timestamp": local(hours, late_s)}


@pytest.mark.parametrize(("users", "hours"), [("Asia/Kathmandu", 8), ("Asia/Kathmandu", 9.5), ("America/Sao_Paulo", 0)])
def test_a_live_time_of_another_zone_than_the_users_is_the_publishers_local_time(users: str, hours: float) -> None:
    """Given users of one zone and a publisher east of it, I expect the moment that its local time means."""
    seconds, as_sent = time_of_event(local(hours, 2.0), ARRIVED, ZoneInfo(users))

    assert seconds == pytest.approx(ARRIVED - 2.0, abs=1e-3)
    assert not as_sent


@pytest.mark.parametrize("hours", [0.08, 0.2, 0.75, 3.3, 14.5, 23.9, -0.5, -8, -24 * 365])
def test_other_times_without_a_zone_are_kept(hours: float) -> None:
    """Given a time without a zone that is past, or ahead by no difference of zones, I expect it as it is."""
    seconds, as_sent = time_of_event(local(hours), ARRIVED)

    assert (seconds, as_sent) == (parse_timestamp(local(hours)), True)


@pytest.mark.parametrize("zone", ["+00:00", "Z"])
def test_a_time_with_a_zone_is_not_shifted(zone: str) -> None:
    """Given a time ahead by hours that names its zone, I expect it as it is: its publisher's clock is wrong."""
    assert time_of_event(local(8) + zone, ARRIVED) == (ARRIVED + 8 * 3_600, True)


def test_times_without_a_zone_are_read_by_the_setting() -> None:
    """Given LTM_TIMEZONE, I expect old times without a zone read by it, and live ones unchanged by the rule above."""
    assert time_of_event("2024-04-05T20:00:00", ARRIVED, SHANGHAI) == (NOON, True)
    assert time_of_event(local(8, 3.0), ARRIVED, SHANGHAI) == (ARRIVED - 3, True)
    assert time_of_event(local(0), ARRIVED, ZoneInfo("America/New_York")) == (ARRIVED, False)


@given(st.integers() | st.floats() | st.text() | st.lists(fragments, max_size=12).map("".join) | st.none())
def test_an_event_can_always_be_dated(sent: object) -> None:
    """Given anything, I expect a time from 2000 on to a day ahead: a memory, and its answer, can be dated by it."""
    seconds, _ = time_of_event(sent, ARRIVED)

    assert utc(2000, 1, 1) <= seconds <= ARRIVED + 86_400


def test_the_zone_of_the_defaults_dates_an_event() -> None:
    """Given the setting among the defaults, I expect an event's time read by it."""
    raw = b'{"user_id": "u1", "content": "hi", "source": "user", "timestamp": "2024-04-05T20:00:00"}'

    assert parse_update(raw, 100, MessageDefaults(zone=SHANGHAI)).timestamp == NOON
    assert parse_update(raw, 100, DEFAULTS).timestamp == NOON + 8 * 3_600
