"""The profile of a person: values with their provenance, edited in place, and the changes that made it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from keepsake_client.errors import RequestFailed
from keepsake_client.protocol import LTMResponse, ProfileChange
from nicegui import ui

from services.gateway.access import Right
from services.gateway.console.components import (
    action,
    attempted,
    button,
    confirmed,
    content,
    empty,
    heading,
    loaded,
    moment,
    name,
    span,
)
from services.gateway.console.pages.people.facts import show_evidence
from services.gateway.console.people.person import Person
from services.gateway.console.people.profile import (
    NotJSON,
    NullInside,
    ProfileValue,
    as_json,
    patch_to,
    read_value,
    values_of,
)
from services.gateway.console.texts import Texts


def show(person: Person, text: Texts) -> None:
    """Show the profile."""
    _ProfileView(person, text).show()


class _ProfileView:
    """The profile at the version that was read last."""

    def __init__(self, person: Person, text: Texts) -> None:
        self._person = person
        self._viewer = person.viewer
        self._text = text

    def show(self) -> None:
        self._place = ui.element("div")
        self.reload()

    def reload(self) -> None:
        """Read it again, and show it."""
        self._place.clear()
        with self._place:
            loaded(self._text, self._person.profile, self._show)

    def _show(self, response: LTMResponse) -> None:
        self._profile, self._version = response.user_profile, response.profile_version or 0
        text, changes = self._text, response.profile_history or []
        agent_id = self._person.asked.scope.agent_id
        heading(text("profile_own") if agent_id is None else text("profile_of", agent=agent_id))
        if not self._profile:
            empty(text("no_profile"))
        else:
            with ui.element("div").classes("profile"):
                for value in values_of(self._profile, changes):
                    self._value(value)
        if self._may_edit:
            self._adding()
        if changes:
            self._history(response, changes)

    @property
    def _may_edit(self) -> bool:
        return self._viewer.may(Right.WRITE) and self._viewer.sees_contents

    def _value(self, value: ProfileValue) -> None:
        text = self._text
        with ui.element("section").classes("value"):
            with ui.element("h3"):
                name(" › ".join(value.path))
            with ui.element("div") as place:
                if value.value is None and value.is_extracted:
                    span(text("no_longer"), "quiet")
                else:
                    said = value.value
                    content(self._viewer, text, said if isinstance(said, str) else as_json(said))
            self._provenance(value)
            if self._may_edit:
                with ui.element("div").classes("row"):
                    action(text("edit"), lambda: self._edit(place, value.path, as_json(value.value)))
                    action(text("remove"), lambda: self._remove(value.path))

    def _provenance(self, value: ProfileValue) -> None:
        text, change = self._text, value.change
        with ui.element("p").classes("said quiet"):
            if value.is_extracted:
                span(text("said"))
                moment(self._viewer, text, value.said_at)
            elif change is None:
                span(text("changed_earlier"))
            else:
                span(text("written", version=change.version))
                moment(self._viewer, text, change.changed_at)
        if value.evidence:
            show_evidence(self._person, text, value.evidence)

    def _edit(self, place: ui.element, path: tuple[str, ...], typed: str) -> None:
        """Edit a value in its place."""
        place.clear()
        with place:
            _Editor(self, self._text, typed, lambda: path).show()

    def _adding(self) -> None:
        text = self._text
        with ui.element("details").classes("adding"):
            with ui.element("summary"):
                span(text("add_value"))
            key = ui.input(label=text("key")).props('outlined dense dir="auto"')
            _Editor(self, text, "", lambda: (str(key.value or "").strip(),)).show()

    async def _remove(self, path: tuple[str, ...]) -> None:
        question = self._text("remove_question", key=" › ".join(path))
        if not await confirmed(self._text, question, [self._text("stays_in_history")], self._text("remove")):
            return
        patch = patch_to(self._profile, path, None)
        if await attempted(self._text, self._patched(patch)):
            self.reload()

    async def _patched(self, patch: dict[str, Any]) -> bool:
        await self._person.patch_profile(patch, self._version)
        return True

    async def store(self, path: tuple[str, ...], value: Any) -> Any:
        """Set what is at a path, and show the profile; of a profile that has changed since, return what is there now.

        Raises:
            KeepsakeError
        """
        try:
            await self._person.patch_profile(patch_to(self._profile, path, value), self._version)
        except RequestFailed as error:
            if error.code != "conflict":
                raise
            response = await self._person.profile()
            self._profile, self._version = response.user_profile, response.profile_version or 0
            present = [one.value for one in values_of(self._profile, []) if one.path == path]
            return _Conflict(self._version, present[0] if present else None)
        self.reload()
        return None

    def _history(self, response: LTMResponse, changes: list[ProfileChange]) -> None:
        text = self._text
        heading(text("changes"))
        with ui.element("div").classes("scroll"), ui.element("table").classes("changes"):
            with ui.element("thead"), ui.element("tr"):
                for column in ("version", "changed_at", "changed_by", "change"):
                    with ui.element("th").props('scope="col"').classes("number" if column == "version" else ""):
                        span(text(column))
            rows = ui.element("tbody")
        more = ui.element("div").classes("more")

        def append(page: LTMResponse) -> None:
            with rows:
                for change in page.profile_history or []:
                    self._change(change)
            more.clear()
            if page.next_cursor is not None:
                with more:
                    button(text("more"), lambda: show_more(page.next_cursor))

        def show_more(cursor: str | None) -> None:
            more.clear()
            with more:
                loaded(text, lambda: self._person.profile(cursor), append)

        append(response)

    def _change(self, change: ProfileChange) -> None:
        with ui.element("tr"):
            with ui.element("td").classes("number"):
                span(str(change.version))
            with ui.element("td"):
                moment(self._viewer, self._text, change.changed_at)
            with ui.element("td"):
                span(self._text(f"by_{change.source}"))
            with ui.element("td"):
                content(self._viewer, self._text, json.dumps(change.patch, ensure_ascii=False))
                if change.evidence:
                    show_evidence(self._person, self._text, change.evidence)


class _Conflict:
    """The profile has changed since it was read.

    Args:
        version: that it has now.
        value: what is in the place of what was typed; None where nothing is.
    """

    def __init__(self, version: int, value: Any) -> None:
        self.version = version
        self.value = value


class _Editor:
    """A field for a value as JSON; what was typed stays until it is stored.

    Args:
        path: where the value belongs.
    """

    def __init__(self, view: _ProfileView, text: Texts, typed: str, path: Callable[[], tuple[str, ...]]) -> None:
        self._view = view
        self._text = text
        self._initial = typed
        self._path = path

    def show(self) -> None:
        text = self._text
        self._typed = ui.textarea(label=text("value_json"), value=self._initial).props('outlined autogrow dir="auto"')
        self._typed.on("keydown.ctrl.enter", self._save)
        self._message = ui.element("div").props('role="alert"')
        with ui.element("div").classes("actions"):
            button(text("save"), self._save)
            if self._initial:
                button(text("cancel"), self._view.reload)

    async def _save(self) -> None:
        self._message.clear()
        path = self._path()
        if not all(path):
            self._say(self._text("key_needed"))
            return
        try:
            value = read_value(self._typed.value or "")
        except (NotJSON, NullInside) as error:
            self._say(self._text("not_json" if isinstance(error, NotJSON) else "null_inside"))
            return
        conflict = await attempted(self._text, self._stored(path, value))
        if isinstance(conflict, _Conflict):
            with self._message:
                self._say(self._text("conflict", version=conflict.version))
                if conflict.value is None:
                    span(self._text("conflict_nothing"), "quiet")
                else:
                    content(self._view._viewer, self._text, as_json(conflict.value))

    async def _stored(self, path: tuple[str, ...], value: Any) -> Any:
        return await self._view.store(path, value)

    def _say(self, words: str) -> None:
        with self._message, ui.element("p").classes("state failure"):
            span(words)
