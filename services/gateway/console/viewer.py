"""Viewer: who looks at a page, what the key permits, and the language, time zone and switches of the browser."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo
from typing import Any, Final, Literal, get_args
from zoneinfo import ZoneInfo

import structlog
from starlette.requests import Request
from starlette.types import Scope

from services.gateway.access import Caller, Right
from services.gateway.console.guard import ZONE
from services.gateway.console.sessions import SessionCallers
from services.gateway.console.texts import LANGUAGES, Language, Texts, preferred

Theme = Literal["auto", "light", "dark"]
THEMES: Final[tuple[Theme, ...]] = get_args(Theme)
#: Cookies of a browser's preferences, which the page /console/preferences sets.
LANGUAGE: Final = "keepsake_language"
THEME: Final = "keepsake_theme"
CONTENTS: Final = "keepsake_contents"
HIDDEN: Final = "hidden"

log = structlog.get_logger()


@dataclass(frozen=True)
class Viewer:
    """Who looks at a page.

    Args:
        language: of the texts.
        theme: light, dark, or as the system has it.
        hides: whether the viewer has switched contents off.
        url: of the page, path and query.
    """

    language: Language
    theme: Theme
    hides: bool
    url: str
    _zone: tzinfo
    _callers: SessionCallers
    _scope: Scope

    @classmethod
    def of(cls, request: Request, callers: SessionCallers, zone: tzinfo) -> Viewer:
        """The viewer of a page.

        Args:
            zone: that of a browser which has not said its own.
        """
        cookies, headers = request.cookies, request.headers
        chosen = [language for language in LANGUAGES if language == cookies.get(LANGUAGE)]
        themes = [theme for theme in THEMES if theme == cookies.get(THEME)]
        return cls(
            language=chosen[0] if chosen else preferred(headers.get("accept-language", "")),
            theme=themes[0] if themes else "auto",
            hides=cookies.get(CONTENTS) == HIDDEN,
            url=request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            _zone=_zone_of(cookies.get(ZONE, "")) or zone,
            _callers=callers,
            _scope=request.scope,
        )

    @property
    def zone(self) -> tzinfo:
        """In which times are shown; at a first visit, the browser's own is known as soon as the page is connected."""
        return _zone_of(self._scope["state"].get("zone", "")) or self._zone

    def texts(self, page: str) -> Texts:
        """The texts of a page in the viewer's language."""
        return Texts(page, self.language)

    def caller(self) -> Caller:
        """Who it is by now: the key may have been revoked, or the session may have ended, since the page was shown.

        Raises:
            KeepsakeError: the key is not valid any more, or has made too many requests.
        """
        return self._callers.caller(self._scope)

    def may(self, right: Right) -> bool:
        """Whether the key had a right when the page was shown: whether to show what needs it."""
        caller: Caller = self._scope["state"]["caller"]
        return right in caller.rights

    @property
    def sees_contents(self) -> bool:
        """Whether the contents of people are shown: the key may read them, and they are not switched off."""
        return self.may(Right.READ) and not self.hides

    @property
    def sees_everyone(self) -> bool:
        """Whether the key is bound to no user, no prefix of users and no character."""
        caller: Caller = self._scope["state"]["caller"]
        return caller.user is None and not caller.users and caller.agent is None

    def permit(self, right: Right, user_id: str | None = None, agent_id: str | None = None) -> Caller:
        """The caller, who may do this now, with the memory of this user and agent.

        Raises:
            KeepsakeError: it is not permitted.
        """
        caller = self.caller()
        caller.check(right)
        if user_id is not None:
            caller.user_of(user_id)
            caller.agent_of(agent_id, all_agents=agent_id is None)
        return caller

    def changed(self, what: str, **ids: Any) -> None:
        """Log a change that the viewer has made, with the name of the key: no contents.

        Args:
            ids: such as `user_id` and `memory_id`.
        """
        log.info("console_change", what=what, key=self.caller_name, **ids)

    @property
    def caller_name(self) -> str:
        """The name of the key, without the user of a token; `open` where none is needed."""
        caller: Caller = self._scope["state"]["caller"]
        return caller.name.partition(":")[0]


def _zone_of(name: str) -> tzinfo | None:
    """The time zone that a browser names; None where it is none."""
    try:
        return ZoneInfo(name) if name else None
    except (KeyError, ValueError, OSError):
        return None
