"""Dates of facts: a day, a month, a year, or a span from one to another, as an LLM writes them."""

from __future__ import annotations

import re
from datetime import date

#: A time of day after a date is left out: facts are dated by days.
_DATE = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2})(?:[T ]\d{2}:\d{2}[\d:.Z+-]*)?)?)?", re.ASCII)


def read_when(text: str) -> str | None:
    """A date or span in its one form (YYYY-MM-DD, YYYY-MM, YYYY or A/B); None where it is not in the calendar."""
    parts = [_day(part.strip()) for part in text.strip().split("/")]
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or len(parts) > 2:
        return None
    if len(known) == 2 and known[0] == known[1]:
        return known[0]
    # Of "2024-03/2024-03-10", a span within its first part's month, only the earliest days can be compared.
    return "/".join(known) if known == sorted(known, key=_first_day) else None


def _day(part: str) -> str | None:
    found = _DATE.fullmatch(part)
    if found is None:
        return None
    numbers = [number for number in found.groups() if number]
    try:
        date(*(int(number) for number in (*numbers, "01", "01")[:3]))
    except ValueError:
        return None
    return "-".join(numbers)


def _first_day(day: str) -> str:
    return (day + "-01-01")[:10]
