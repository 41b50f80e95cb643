"""Finds a user: a list by the beginning of the id."""

from __future__ import annotations

from keepsake_client.protocol import LTMResponse, UserSummary
from nicegui import ui

from services.gateway.access import Right
from services.gateway.app import Gateway
from services.gateway.console.components import button, empty, heading, loaded, moment, name, name_link, span
from services.gateway.console.forms import field, form, submit
from services.gateway.console.people.asked import PEOPLE, person_url
from services.gateway.console.people.person import READ_TIMEOUT_MS
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import Viewer

#: Users on a page, and agents that are named of one.
PAGE = 50
MAX_AGENTS = 5


def show(gateway: Gateway, viewer: Viewer, text: Texts, prefix: str) -> None:
    """Show the search field and the users that are found; of a key for one character, the field alone."""
    heading(text("title"), 1)
    if viewer.permit(Right.READ).agent is not None:  # the list counts the memories of all characters
        with form(PEOPLE, text("find")).classes("find search").props('role="search"'):
            field("user", text("user_id"), kind="search")
            submit(text("open"))
        return
    with form(PEOPLE, text("find")).classes("find search").props('role="search"'):
        field("prefix", text("prefix"), prefix, "search")
        submit(text("find"))
    _Users(gateway, viewer, text, prefix).show()


class _Users:
    """The users that are found, as a table that grows by pages."""

    def __init__(self, gateway: Gateway, viewer: Viewer, text: Texts, prefix: str) -> None:
        self._gateway = gateway
        self._viewer = viewer
        self._text = text
        self._prefix = prefix
        self._cursor: str | None = None

    def show(self) -> None:
        loaded(self._text, self._page, self._show_first)

    async def _page(self) -> LTMResponse | None:
        """The next page; None where the key is for no such user."""
        caller = self._viewer.permit(Right.READ)
        caller.agent_of(None, all_agents=True)
        prefix = caller.prefix_of(self._prefix)
        if prefix is None:
            return None
        return await self._gateway.ltm.user_list(prefix, limit=PAGE, cursor=self._cursor, deadline_ms=READ_TIMEOUT_MS)

    def _show_first(self, page: LTMResponse | None) -> None:
        text = self._text
        if page is None or not page.users:
            if self._prefix:
                empty(text("none_found", prefix=self._prefix))
            else:
                empty(text("no_users"), "ltm demo")
            return
        with ui.element("div").classes("scroll"), ui.element("table").classes("users"):
            with ui.element("thead"), ui.element("tr"):
                for column, kind in _COLUMNS:
                    with ui.element("th").props('scope="col"').classes(kind):
                        span(text(column))
            self._rows = ui.element("tbody")
        self._more = ui.element("div").classes("more")
        self._append(page)

    def _append(self, page: LTMResponse) -> None:
        with self._rows:
            for user in page.users or []:
                _row(self._viewer, self._text, user)
        self._cursor = page.next_cursor
        self._more.clear()
        if self._cursor is not None:
            with self._more:
                button(self._text("more"), self._show_more)

    def _show_more(self) -> None:
        def show(page: LTMResponse | None) -> None:
            if page is not None:
                self._append(page)

        self._more.clear()
        with self._more:
            loaded(self._text, self._page, show)


_COLUMNS = (
    ("user", ""),
    ("memories", "number"),
    ("facts", "number"),
    ("superseded", "number"),
    ("last_said", ""),
    ("agents", ""),
)


def _row(viewer: Viewer, text: Texts, user: UserSummary) -> None:
    with ui.element("tr"):
        with ui.element("th").props('scope="row"').classes("user"):
            name_link(user.user_id, person_url(user.user_id))
        for count in counts_of(user).values():
            with ui.element("td").classes("number"):
                span(count)
        with ui.element("td"):
            moment(viewer, text, user.last_at, relative=True)
        with ui.element("td"):
            for agent in user.agents[:MAX_AGENTS]:
                name(agent)
            if len(user.agents) > MAX_AGENTS:
                span("…")


def counts_of(user: UserSummary) -> dict[str, str]:
    """The numbers of messages and facts, as they are shown: each is counted up to a bound."""
    counts = {"memories": user.memories, "facts": user.facts, "superseded": user.superseded}
    most = max(counts.values())
    return {name: f"{n:,}+" if user.at_least and n == most else f"{n:,}" for name, n in counts.items()}
