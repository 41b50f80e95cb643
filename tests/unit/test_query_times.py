"""What of the times in a query counts, and which memories are of them."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from services.long_term_memory.retrieval.query_times import asks_current_state, said_then, times_asked_about
from tests.unit.turns import Turn, columns_of

DAY = 86_400.0
#: Noon of a Wednesday.
ASKED_AT = datetime(2024, 5, 15, 12, tzinfo=UTC).timestamp()
YESTERDAY = (ASKED_AT - 1.5 * DAY, ASKED_AT - 0.5 * DAY)


# The times that a query asks about


def days(text: str) -> set[str]:
    return {f"{datetime.fromtimestamp(begin, UTC):%m-%d}" for begin, _ in times_asked_about(text, ASKED_AT, UTC)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What did I do yesterday?", {"05-14"}),
        ("What a day today. Where did we eat yesterday?", {"05-14"}),
        ("今天天气真好，适合散步。昨天的电视剧太精彩了。我妈妈的电话是多少？", set()),
        ("昨天我们吃了什么？今天好累。", {"05-14"}),
        ("so tired today", set()),
        ("我明天要去北京", set()),
        ("our trip last week", {"05-06"}),
        ("Thanks! Our trip last week.", {"05-06"}),
        ("去年的旅行", {"01-01"}),
        ("Where do I live?", set()),
    ],
)
def test_times_count_where_they_are_asked_about(text: str, expected: set[str]) -> None:
    """Given sentences, I expect the times of those that ask; where none does, those of the past."""
    assert days(text) == expected


# Whether it asks for the present


@pytest.mark.parametrize(
    "text",
    [
        "Where do I live now?",
        "what's my current address",
        "Anna: what are you reading these days?",
        "我现在房租一个月多少?",
        "我目前住在哪裡",
        "如今谁在管这个店",
        "而家住喺邊？",
        "那份工作后来怎么样了",
        "¿Dónde vivo ahora?",
        "Où est-ce que j'habite maintenant ?",
        "Wo wohne ich jetzt?",
        "Onde moro agora?",
        "Где я сейчас живу?",
        "今はどこに住んでいますか？",
        "今の住所は？",
        "지금 어디에 살아?",
        "Giờ tôi đang sống ở đâu hiện tại?",
        "ตอนนี้ฉันอยู่ที่ไหน?",
        "Şimdi nerede yaşıyorum?",
    ],
)
def test_it_asks_for_the_current_state(text: str) -> None:
    assert asks_current_state(text)


@pytest.mark.parametrize(
    "text",
    [
        "Where did I live?",
        "Do you know Anna?",
        "the actual price",
        "我住在哪里?",
        "I am leaving now",
        "现在出门了",
        "I am leaving now. Where did I put the keys?",
        "不知道他们现在怎么样了。我妈妈的电话是多少？",
    ],
)
def test_it_does_not_ask_for_the_current_state(text: str) -> None:
    assert not asks_current_state(text)


# Which memories are of a time


def test_a_memory_is_of_the_time_in_which_it_was_said() -> None:
    """Given memories around a day, I expect those of it whole, later ones less by the day, earlier ones not at all."""
    offsets = [-0.001, 0.0, 0.999, 1.0, 5.0]
    columns = columns_of([Turn("tea", timestamp=YESTERDAY[0] + days * DAY) for days in offsets])
    then = said_then(columns, (YESTERDAY,))
    assert then.tolist() == pytest.approx([0.0, 1.0, 1.0, 1.0, np.exp(-1)])
    assert then[3] == 1.0  # the day's end: nothing has passed since


@pytest.mark.parametrize(
    ("text", "days_before"),
    [
        ("My exam is tomorrow", 1),
        ("明天考试", 1),
        ("後天要考試", 2),
        ("morgen? demain", 1),
        ("내일 시험이야", 1),
        ("I had an exam yesterday", -1),
        ("昨天考完了", -1),
    ],
)
def test_a_memory_is_of_the_day_that_it_names(text: str, days_before: int) -> None:
    """Given what was said before or after a day about it, I expect it to be of that day, and other words not."""
    said = YESTERDAY[0] + (0.5 - days_before) * DAY
    columns = columns_of([Turn(text, timestamp=said), Turn("tea", timestamp=said)])
    about, other = said_then(columns, (YESTERDAY,))
    assert about == 1.0
    assert other < 1.0


def test_of_several_times_the_nearest_counts() -> None:
    """Given two days, I expect a memory of either to be of the time."""
    week_before = (YESTERDAY[0] - 7 * DAY, YESTERDAY[1] - 7 * DAY)
    columns = columns_of([Turn("tea", timestamp=ASKED_AT - DAY), Turn("tea", timestamp=ASKED_AT - 8 * DAY)])
    assert said_then(columns, (week_before, YESTERDAY)).tolist() == [1.0, 1.0]
