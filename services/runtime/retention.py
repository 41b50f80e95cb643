"""Retention: for how long memories are kept, by source and character, as the setting LTM_RETENTION_DAYS says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

#: A hundred years.
MAX_DAYS = 36_500
ALLOWED = (
    "a number of days, or rules with commas between them, such as 365, ai=30, @luna=90, @luna/ai=never:"
    " user, ai, @AGENT, @AGENT/user or @AGENT/ai, =, and days or never"
)
_RULE = re.compile(
    r"(?:(?:@(?P<agent>[^\s,=/@]+)(?:/(?P<of>user|ai))?|(?P<source>user|ai))=)?(?P<days>never|[0-9]+(?:\.[0-9]+)?)"
)


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """For how long some memories are kept. Of several rules that apply, the one that says most counts.

    Args:
        agent: of this character; None for any, and for those that are shared.
        source: `user` or `ai`; None for both.
        days: None for ever.
    """

    agent: str | None
    source: str | None
    days: float | None


def parse_retention(text: str) -> tuple[RetentionRule, ...]:
    """The rules of the setting; none where it is empty.

    Raises:
        ValueError: it is none, or says two things of the same memories.
    """
    rules: dict[tuple[str | None, str | None], RetentionRule] = {}
    for part in text.split(",") if text.strip() else []:
        found = _RULE.fullmatch(part.strip())
        days = None if found is None or found["days"] == "never" else float(found["days"])
        if found is None or (days is not None and not 0 < days <= MAX_DAYS):
            raise ValueError(ALLOWED)
        agent = found["agent"] and unquote(found["agent"])
        rule = RetentionRule(agent, found["of"] or found["source"], days)
        if rules.setdefault((rule.agent, rule.source), rule) is not rule:
            raise ValueError(f"{ALLOWED}; each once")
    return tuple(rules.values())


def days_kept(rules: Sequence[RetentionRule], agent: str | None, source: str) -> float | None:
    """For how many days memories of a character and a source are kept; None for ever."""
    by_key = {(rule.agent, rule.source): rule for rule in rules}
    for key in ((agent, source), (agent, None), (None, source), (None, None)):
        if key in by_key:
            return by_key[key].days
    return None
