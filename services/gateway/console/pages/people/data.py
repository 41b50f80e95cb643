"""All that is kept of a person: exported, imported and forgotten."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any
from urllib.parse import urlencode

from keepsake_client.protocol import UserSummary
from nicegui import events, ui
from nicegui.elements.mixins.text_element import TextElement

from services.gateway.access import Right
from services.gateway.console.components import (
    action,
    attempted,
    button,
    failure,
    heading,
    link,
    loaded,
    name,
    panel,
    reason_of,
    span,
)
from services.gateway.console.guard import ROOT
from services.gateway.console.pages.people.finding import counts_of
from services.gateway.console.people.asked import PEOPLE
from services.gateway.console.people.person import Person, Preview
from services.gateway.console.texts import Texts
from services.gateway.request_scope import BODY_LIMITS
from services.gateway.transfer import ImportStopped
from services.runtime.controls import escape_controls


def show(person: Person, text: Texts) -> None:
    """Show what the key may do to all of it."""
    viewer = person.viewer
    if viewer.may(Right.EXPORT):
        with panel(text("export")):
            with ui.element("p"):
                span(text("export_help"))
            loaded(text, person.summary, lambda summary: _counted(text, summary))
            link(text("export_file"), f"{PEOPLE}/export?{urlencode([person.asked.named])}")
    if viewer.may(Right.IMPORT):
        with panel(text("import")):
            _Import(person, text).show()
    if viewer.may(Right.FORGET):
        with panel(text("forget")):
            _Forgetting(person, text).show()


def _counted(text: Texts, summary: UserSummary) -> None:
    with ui.element("p").classes("quiet"):
        span(text("export_count", **counts_of(summary)))


class _Import:
    """An import: the file, how far it is, and what became of it."""

    def __init__(self, person: Person, text: Texts) -> None:
        self._person = person
        self._text = text
        self._is_cancelled = False

    def show(self) -> None:
        text = self._text
        with ui.element("p"):
            span(text("import_help"))
        self._restores = ui.checkbox(text("restore_deleted"))
        self._upload = ui.upload(
            max_files=1,
            max_file_size=BODY_LIMITS[f"{ROOT}/_nicegui/client/"],
            auto_upload=True,
            on_upload=self._store,
            on_rejected=lambda: self._say(text("file_rejected")),
        ).props('accept=".jsonl,.ndjson,.json"')
        self._upload.classes("uploader")  # its button is the one below
        self._pick = TextElement(tag="button", text=text("choose_file")).props('type="button"').classes("submit")
        self._pick.on("click", js_handler=f"() => getElement({self._upload.id}).$refs.qRef.pickFiles()")
        self._place = ui.element("div").props('role="status"')

    async def _store(self, event: events.UploadEventArguments) -> None:
        """Import the file page by page, until its end, an error, or until it is cancelled."""
        self._is_cancelled = False
        read, tally = 0, {}
        self._begin(event.file.size())

        async def parts() -> Any:
            nonlocal read
            async for part in event.file.iterate(chunk_size=65_536):
                read += len(part)
                yield part

        try:
            pages = self._person.store(parts(), restore_deleted=bool(self._restores.value))
            async with aclosing(pages):
                async for tally in pages:
                    if self._is_cancelled or self._place.is_deleted:
                        self._end(self._text("import_cancelled"), tally)
                        return
                    self._progress(tally, read)
            self._end(self._text("import_done"), tally)
        except ImportStopped as error:
            self._end(reason_of(self._text, error), dict(error.extensions), is_failure=True)
        except Exception as error:
            self._place.clear()
            with self._place:
                failure(self._text, error)
            raise
        finally:
            self._upload.reset()
            self._pick.set_visibility(True)

    def _cancel(self) -> None:
        self._is_cancelled = True
        self._counted.set_text(self._text("import_stopping"))

    def _begin(self, total: int) -> None:
        self._pick.set_visibility(False)  # one at a time
        self._place.clear()
        with self._place:
            self._bar = ui.element("progress").props('value="0"')
            self._bar.props.update({"max": max(total, 1), "aria-label": self._text("progress")})
            self._counted = ui.label().classes("counted")
            action(self._text("cancel"), self._cancel)

    def _progress(self, tally: dict[str, int], read: int) -> None:
        self._bar.props["value"] = read
        self._counted.set_text(self._counts(tally))

    def _end(self, words: str, tally: dict[str, int], *, is_failure: bool = False) -> None:
        self._say(words, is_failure=is_failure)
        with self._place:
            for line in [self._counts(tally), *([self._text("import_again")] if is_failure else [])]:
                with ui.element("p"):
                    span(line)

    def _say(self, words: str, *, is_failure: bool = True) -> None:
        self._place.clear()
        with self._place, ui.element("p").classes("state failure" if is_failure else "state"):
            span(words)

    def _counts(self, tally: dict[str, int]) -> str:
        return self._text("import_counts", **{name: f"{count:,}" for name, count in tally.items()})


class _Forgetting:
    """Forgetting a user: a preview of what goes, then the id typed as a confirmation."""

    def __init__(self, person: Person, text: Texts) -> None:
        self._person = person
        self._text = text

    def show(self) -> None:
        with ui.element("p"):
            span(self._text("forget_help"))
        self._place = ui.element("div")
        with self._place:
            button(self._text("forget_preview"), self._preview)

    def _preview(self) -> None:
        self._place.clear()
        with self._place:
            loaded(self._text, self._person.preview_forget, self._ask)

    def _ask(self, preview: Preview) -> None:
        text = self._text
        heading(text("goes"), 3)
        with ui.element("ul").classes("goes"):
            for line in _lines(text, preview):
                with ui.element("li"):
                    span(line)
        with ui.element("p"):
            span(text("forget_stays"), "quiet")
        with ui.element("p"):
            span(text("type_id"))
            name(self._person.user_id).classes("typed")
        typed = ui.input(label=text("user_id")).props('outlined dense dir="auto" autocomplete="off"')

        async def forget() -> None:
            user_id = self._person.user_id
            if _plain(str(typed.value or "")) not in (_plain(user_id), _plain(escape_controls(user_id))):
                ui.notify(text("id_differs"), type="negative", position="bottom")
                return
            count = await attempted(text, self._person.forget())
            if count is not None:
                self._place.clear()
                with self._place, ui.element("p").classes("state").props('role="status"'):
                    span(text("forgotten", count=f"{count:,}"))

        button(text("forget_all"), forget, danger=True)


def _lines(text: Texts, preview: Preview) -> list[str]:
    """What goes, a line each."""
    summary = preview.summary
    lines = [text("goes_memories", count=f"{preview.memories:,}")]
    if summary.agents:
        lines.append(text("goes_agents", agents=", ".join(summary.agents)))
    return [*lines, text("goes_profile", count=preview.profile_keys), text("goes_rest")]


def _plain(user_id: str) -> str:
    """An id as a field of a browser can hold it: without line breaks, and white space as one space."""
    return " ".join(user_id.split())
