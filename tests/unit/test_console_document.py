"""The content that a page has before its scripts have run."""

from __future__ import annotations

from nicegui import Client, ui
from nicegui.page import page

from services.gateway.console.components import button, span
from services.gateway.console.document import html_of
from tests.unit.console_app import ConsoleApp, look

#: What a user might say, to be seen by an operator.
HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "</div><svg/onload=alert(1)>",
    "{{ constructor.constructor('alert(1)')() }}",
    "&lt;script&gt;",
    "${alert(1)} `",
    "\u202egnihtyna\u2066",
    "👩‍👩‍👧 漢字",
)


def test_what_is_hostile_stays_text() -> None:
    """Given contents with markup, I expect all of it as text, in what comes before the scripts."""

    async def story(app: ConsoleApp) -> None:
        with Client(page(""), request=None) as client:
            for words in HOSTILE:
                span(words)
                with ui.element("a") as link:
                    link.props["title"] = words
                    link.props["onclick"] = "alert(1)"
        html = html_of(client.content)
        assert not {"<script", "<img", "<svg", "onclick"} & {html[at : at + 7] for at in range(len(html))}
        assert html.count("<a title=") == html.count("</a>") == len(HOSTILE)
        assert "&quot; onmouseover=&quot;alert(1)" in html
        assert '" onmouseover' not in html

    look(story)


def test_dialogs_and_what_libraries_draw_are_left_out() -> None:
    """Given a dialog, a field and a button, I expect the button's words alone."""

    async def story(app: ConsoleApp) -> None:
        with Client(page(""), request=None) as client:
            with ui.dialog(), ui.card():
                span("are you sure")
            ui.input("a field")
            button("press", lambda: None)
        html = html_of(client.content)
        assert "press" in html
        assert not any(words in html for words in ("are you sure", "a field"))

    look(story)


def test_the_document_has_a_direction_and_says_in_its_language_that_the_connection_is_lost() -> None:
    """Given a browser that prefers Chinese, I expect its words for that, and the `dir` of styles."""

    async def story(app: ConsoleApp) -> None:
        html = (await app.http.get("/console/", headers={"accept-language": "zh"})).text
        assert '<html lang="zh" dir="ltr">' in html
        assert "<span>连接丢失</span>" in html
        assert "<span>Connection lost.</span>" in (await app.http.get("/console/")).text

    look(story)
