"""LTM_RETENTION_DAYS: what is read, what is refused in one line, and which rule holds."""

from __future__ import annotations

import pytest

from services.runtime.errors import InvalidSetting
from services.runtime.retention import RetentionRule, days_kept, parse_retention
from services.runtime.settings import load_settings


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("", []),
        (" ", []),
        ("365", [(None, None, 365)]),
        ("0.5", [(None, None, 0.5)]),
        ("never", [(None, None, None)]),
        ("365, ai=30,user=never", [(None, None, 365), (None, "ai", 30), (None, "user", None)]),
        ("@luna=90,@luna/ai=7", [("luna", None, 90), ("luna", "ai", 7)]),
        ("@露娜=90", [("露娜", None, 90)]),
        ("@a%2Cb%3D%2F%40=1", [("a,b=/@", None, 1)]),
        ("@user=1", [("user", None, 1)]),
    ],
)
def test_rules_are_read(text: str, rules: list[tuple[str | None, str | None, float | None]]) -> None:
    """Given days or rules, I expect them by character and source."""
    assert parse_retention(text) == tuple(RetentionRule(*rule) for rule in rules)


@pytest.mark.parametrize(
    "text", ["x", "-1", "0", "36501", "1e3", "ai", "ai=", "both=3", "ai:3", "1,,2", "1,2", "ai=1,ai=2", "@=3", "@a/b=3"]
)
def test_what_is_no_rule_is_refused_in_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given something else, I expect a start to be refused with the variable, its value and what is allowed."""
    monkeypatch.setenv("LTM_RETENTION_DAYS", text)

    with pytest.raises(
        InvalidSetting, match=r"^LTM_RETENTION_DAYS is .*; allowed: a number of days, or rules"
    ) as error:
        load_settings()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("agent", "source", "days"),
    [
        (None, "user", 365),
        (None, "ai", 30),
        ("luna", "user", 90),
        ("luna", "ai", None),
        ("nova", "user", 365),
        ("nova", "ai", 30),
    ],
)
def test_the_rule_that_says_most_holds(agent: str | None, source: str, days: float | None) -> None:
    """Given rules that overlap, I expect the one by both to come first, then the character's, then the source's."""
    assert days_kept(parse_retention("365, ai=30, @luna=90, @luna/ai=never"), agent, source) == days


def test_without_rules_everything_is_kept() -> None:
    """Given no rule for them, I expect memories to be kept."""
    assert days_kept((), None, "user") is None
    assert days_kept(parse_retention("ai=3"), "luna", "user") is None
