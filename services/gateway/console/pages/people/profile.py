"""The profile of a person: values with their provenance, edited in place, and the changes that made it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

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
    one_at_a_time,
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
        self.viewer = person.viewer
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
        self.seen = _Seen(response.user_profile, response.profile_version or 0)
        text, changes = self._text, response.profile_history or []
        agent_id = self._person.asked.scope.agent_id
        heading(text("profile_own") if agent_id is None else text("profile_of", agent=agent_id))
        if not self.seen.profile:
            empty(text("no_profile"))
        else:
            with ui.element("div").classes("profile"):
                for value in values_of(self.seen.profile, changes):
                    self._value(value)
        if self._may_edit:
            self._adding()
        if changes:
            self._history(response, changes)

    @property
    def _may_edit(self) -> bool:
        return self.viewer.may(Right.WRITE) and self.viewer.sees_contents

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
                    content(self.viewer, text, said if isinstance(said, str) else as_json(said))
            self._provenance(value)
            if self._may_edit:
                with ui.element("div").classes("row") as row:
                    action(text("edit"), lambda: self._edit(place, row, value))
                    action(text("remove"), lambda: self._remove(value.path))

    def _provenance(self, value: ProfileValue) -> None:
        text, change = self._text, value.change
        with ui.element("p").classes("said quiet"):
            if value.is_extracted:
                span(text("said"))
                moment(self.viewer, text, value.said_at)
            elif change is None:
                span(text("changed_earlier"))
            else:
                span(text("written", version=change.version))
                moment(self.viewer, text, change.changed_at)
        if value.evidence:
            show_evidence(self._person, text, value.evidence)

    def _edit(self, place: ui.element, row: ui.element, value: ProfileValue) -> None:
        """Edit a value in its place; `row`, which would begin it anew, goes."""
        row.set_visibility(False)
        place.clear()
        with place:
            _Editor(self, self._text, as_json(value.value), lambda: value.path).show()

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
        if await attempted(self._text, self._removed(path)):
            self.reload()

    async def _removed(self, path: tuple[str, ...]) -> bool:
        await self._person.patch_profile(patch_to(self.seen.profile, path, None), self.seen.version)
        return True

    async def store(self, path: tuple[str, ...], value: Any, seen: _Seen) -> _Seen | None:
        """Set what is at a path, and show the profile; one that has changed since it was seen is returned as it is now.

        Raises:
            KeepsakeError
        """
        try:
            await self._person.patch_profile(patch_to(seen.profile, path, value), seen.version)
        except RequestFailed as error:
            if error.code != "conflict":
                raise
            response = await self._person.profile()
            return _Seen(response.user_profile, response.profile_version or 0)
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
                moment(self.viewer, self._text, change.changed_at)
            with ui.element("td"):
                span(self._text(f"by_{change.source}"))
            with ui.element("td"):
                content(self.viewer, self._text, json.dumps(change.patch, ensure_ascii=False))
                if change.evidence:
                    show_evidence(self._person, self._text, change.evidence)


class _Seen(NamedTuple):
    """The profile as a viewer has seen it, to which a change applies."""

    profile: dict[str, Any]
    version: int

    def at(self, path: tuple[str, ...]) -> Any:
        """What is at a path; None where nothing is."""
        return next((one.value for one in values_of(self.profile, []) if one.path == path), None)


class _Editor:
    """A field for a value as JSON; what was typed stays until it is stored.

    Args:
        path: where the value belongs.
    """

    def __init__(self, view: _ProfileView, text: Texts, typed: str, path: Callable[[], tuple[str, ...]]) -> None:
        self._view = view
        self._seen = view.seen
        self._text = text
        self._initial = typed
        self._path = path

    def show(self) -> None:
        text = self._text
        self._typed = ui.textarea(label=text("value_json"), value=self._initial).props('outlined autogrow dir="auto"')
        save = one_at_a_time(self._save)
        self._typed.on("keydown.ctrl.enter", save)
        self._message = ui.element("div").props('role="alert"')
        with ui.element("div").classes("actions"):
            button(text("save"), save)
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
        changed = await attempted(self._text, self._view.store(path, value, self._seen))
        if changed is not None:
            self._seen = changed
            with self._message:
                self._say(self._text("conflict", version=changed.version))
                if (present := changed.at(path)) is None:
                    span(self._text("conflict_nothing"), "quiet")
                else:
                    content(self._view.viewer, self._text, as_json(present))

    def _say(self, words: str) -> None:
        with self._message, ui.element("p").classes("state failure"):
            span(words)
