"""Forms of the browser: what is typed is in the URL of the page that they lead to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from keepsake_client.protocol import clean
from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

#: Of what is typed into one field.
_MAX_CHARS: Final = 500


def form(path: str, label: str) -> ui.element:
    """A form that leads to a page with its fields as the query, to be filled in its block."""
    element = ui.element("form").props('method="get"')
    element.props["action"] = path
    element.props["aria-label"] = label
    return element


def field(name: str, label: str, value: str = "", kind: str = "text") -> ui.element:
    """A labelled field of a form.

    Args:
        kind: as HTML's `type` of an input.
    """
    with ui.element("label").classes("field") as element:
        ui.label(label)
        entry = ui.element("input").props('autocomplete="off"')
        # Not `value`: Vue would set it again, over what was typed, whenever the page changes.
        entry.props.update(name=name, type=kind, maxlength=_MAX_CHARS, defaultValue=str(clean(value)))
        if kind in ("text", "search"):
            entry.props["dir"] = "auto"
    return element


def choice(name: str, label: str, options: Mapping[str, str], value: str) -> ui.element:
    """A labelled field of a form with its options by value."""
    with ui.element("label").classes("field") as element:
        ui.label(label)
        with ui.element("select") as entry:
            entry.props["name"] = name
            for option, shown in options.items():
                item = TextElement(tag="option", text=shown)
                item.props.update(value=option, selected=option == value)
    return element


def hidden(values: Mapping[str, str]) -> None:
    """Fields of a form that are not shown."""
    for name, value in values.items():
        ui.element("input").props.update(type="hidden", name=name, value=value)


def submit(label: str) -> ui.element:
    """The button that sends a form."""
    return TextElement(tag="button", text=label).props('type="submit"').classes("submit")
