"""Recall: what the page Ask asks, by one or two settings, and what it makes of the candidates that are found."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any, Final
from urllib.parse import urlencode
from uuid import uuid4

from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import LTMResponse
from keepsake_client.turns import Candidate, Verdict

from services.gateway.access import Caller, Right
from services.gateway.api.wire import scope_of
from services.gateway.app import Gateway
from services.gateway.console.guard import ROOT
from services.gateway.console.viewer import Viewer

#: The options of a setting, as the URL of the page names them: those of a search on the wire, its filters among them.
FILTERS: Final = ("session_id", "source", "since", "until", "speaker")
NUMBERS: Final = ("limit", "min_score", "recency_half_life_days", "deadline_ms")
SWITCHES: Final = ("all_agents", "include_superseded")
OPTIONS: Final = (*NUMBERS, *FILTERS, "agent_id", "exclude_session", *SWITCHES)
#: Before the names of the options of the second setting.
SECOND: Final = "b_"

#: Options that are set, by name; a switch that is on is "1".
Setting = dict[str, str]


@dataclass(frozen=True)
class Asked:
    """What is asked, as the URL of the page says.

    Args:
        settings: one, or two that are compared.
    """

    user: str = ""
    query: str = ""
    settings: tuple[Setting, ...] = ({},)

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Asked:
        """What the parameters of a URL ask."""
        prefixes = ("", SECOND) if parameters.get("compare") else ("",)
        settings = tuple(
            {name: value for name in OPTIONS if (value := parameters.get(prefix + name, "").strip())}
            for prefix in prefixes
        )
        return cls(parameters.get("user", ""), parameters.get("q", "").strip(), settings)

    @property
    def url(self) -> str:
        """The URL of the page that asks this."""
        found = {"user": self.user, "q": self.query}
        if len(self.settings) > 1:
            found["compare"] = "1"
        for prefix, setting in zip(("", SECOND), self.settings, strict=False):
            found |= {prefix + name: value for name, value in setting.items() if value}
        return f"{ROOT}/ask?{urlencode({k: v for k, v in found.items() if v}, errors='replace')}"


@dataclass(frozen=True)
class Found:
    """The answer to one setting.

    Args:
        took_ms: from the request to its answer, as the gateway saw it.
        at: when it was asked, in seconds since 1970.
    """

    setting: Setting
    response: LTMResponse
    request_id: str
    took_ms: float
    at: float

    @property
    def candidates(self) -> list[Candidate]:
        """The best memories, returned or not, best first."""
        return self.response.candidates or []

    @property
    def limit(self) -> int:
        """The most memories that may be returned."""
        return self.response.cut.limit if self.response.cut else len(self.response.memories)

    @property
    def stages(self) -> list[tuple[str, float]]:
        """Milliseconds by stage: what the worker measured, and before it all else, queues and wire."""
        timings = self.response.timings or {}
        measured = [(name, timings.get(f"{name}_ms", 0.0)) for name in ("embed", "database", "rank")]
        return [("queue", max(0.0, self.took_ms - sum(ms for _, ms in measured))), *measured]


async def search(gateway: Gateway, viewer: Viewer, asked: Asked, setting: Setting) -> Found:
    """Search by one setting.

    Raises:
        KeepsakeError: the key does not permit it, an option is none, or the search failed.
    """
    caller = viewer.permit(Right.SEARCH)
    user_id, scope = caller.user_of(asked.user), scope_of_setting(caller, setting)
    data = {"query": asked.query, "explain": True, "timings": True, **scope, **options_of(setting, viewer.zone)}
    deadline_ms = data.pop("deadline_ms", None)
    request_id, at, began = f"req-{uuid4().hex}", time.time(), time.monotonic()
    given = {name: value for name, value in data.items() if value not in (None, False)}
    response = await gateway.ltm.request("search", user_id, given, deadline_ms=deadline_ms, request_id=request_id)
    return Found(setting, response, request_id, (time.monotonic() - began) * 1000, at)


def scope_of_setting(caller: Caller, setting: Setting) -> dict[str, Any]:
    """The characters whose memories a setting asks for, as the key permits.

    Raises:
        NotPermitted
    """
    return scope_of(caller, setting.get("agent_id"), all_agents="all_agents" in setting)


def options_of(setting: Setting, zone: tzinfo) -> dict[str, Any]:
    """The options of a setting but for its scope, as `data` of a search has them.

    Args:
        zone: of times that name none.

    Raises:
        InvalidMessage: a number is none.
    """
    options: dict[str, Any] = {name: _number(name, setting[name]) for name in NUMBERS if name in setting}
    filters = {name: setting[name] for name in FILTERS if name in setting}
    filters |= {name: with_zone(filters[name], zone) for name in ("since", "until") if name in filters}
    if filters:
        options["filters"] = filters
    if "exclude_session" in setting:
        options["exclude_session"] = setting["exclude_session"]
    if "include_superseded" in setting:
        options["include_superseded"] = True
    return options


def _number(name: str, text: str) -> int | float:
    try:
        return float(text) if name in ("min_score", "recency_half_life_days") else int(text)
    except ValueError:
        raise InvalidMessage(f"{name}: must be a number") from None


def with_zone(text: str, zone: tzinfo) -> str:
    """A time with this zone where it has none; what is no time in ISO 8601 as it is, which the pipeline judges."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    return (when if when.tzinfo else when.replace(tzinfo=zone)).isoformat()


def local_minute(text: str, zone: tzinfo) -> str:
    """A time as a browser's field for date and time takes it, in this zone; "" for what is none."""
    try:
        when = datetime.fromisoformat(with_zone(text, zone)).astimezone(zone)
    except (ValueError, OverflowError):
        return ""
    return f"{when:%Y-%m-%dT%H:%M}"


def verdicts_at(candidates: Sequence[Candidate], min_score: float, limit: int) -> list[Verdict]:
    """What would become of the candidates with another `min_score`, as far as they alone say."""
    verdicts: list[Verdict] = []
    for candidate in candidates:
        if candidate.verdict not in ("returned", "below_min_score", "over_limit"):
            verdicts.append(candidate.verdict)  # left out for another reason, whatever its score
        elif candidate.score < min_score:
            verdicts.append("below_min_score")
        else:
            verdicts.append("returned" if verdicts.count("returned") < limit else "over_limit")
    return verdicts


def moves(candidates: Sequence[Candidate], others: Sequence[Candidate]) -> list[int | None]:
    """By how many places each candidate is better than among the others; None where it is not among them."""
    places = {candidate.id: place for place, candidate in enumerate(others)}
    return [
        None if (there := places.get(candidate.id)) is None else there - here
        for here, candidate in enumerate(candidates)
    ]
