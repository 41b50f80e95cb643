"""The HTML document of a page: NiceGUI's, with the content in it before any script has run, and no foreign scripts.

Vue replaces the content when it starts. Until then a browser shows it, so that a page is seen before its scripts are
there. An event handler or a `javascript:` URL in what people have said would not run, even if it became HTML: the
Content-Security-Policy permits the scripts that have the document's nonce.
"""

from __future__ import annotations

import secrets
from html import escape
from typing import Any, Final

from nicegui import Client
from nicegui.element import Element
from nicegui.language import Language as Locale
from nicegui.translations import translations
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.console.guard import CONTENT_POLICY
from services.gateway.console.texts import Language

_HTML: Final = '<html dir="ltr">'
_LOCALES: Final[dict[Language, Locale]] = {"en": "en-US", "zh": "zh-CN"}
_PLACE: Final = '<div id="app" ></div>'
#: Elements of HTML, and buttons, are in the content; what else a library draws comes with its scripts.
_TAGS: Final = frozenset(
    (
        *("a", "button", "code", "dd", "div", "dl", "dt", "form", "h1", "h2", "h3", "h4", "label", "li"),
        *("nav", "ol", "p", "section", "small", "span", "strong", "table", "tbody", "td", "th", "thead"),
        *("time", "tr", "ul"),
    )
)
_ATTRIBUTES: Final = frozenset(
    (
        *("action", "aria-current", "aria-label", "colspan", "datetime", "dir", "for", "hidden", "href", "id", "lang"),
        *("method", "role", "scope", "tabindex", "title", "type"),
    )
)


def document_of(request: Request, client: Client, language: Language) -> Response:
    """The document of a page that is built."""
    response = client.build_response(request, client.status_code)
    nonce = secrets.token_urlsafe(16)
    html = bytes(response.body).decode().replace("<script", f'<script nonce="{nonce}"')
    html = html.replace(_HTML, f'<html lang="{language}" dir="ltr">', 1)  # Quasar's styles ask for `dir`
    for said, words in translations["en-US"].items():  # of a lost connection
        html = html.replace(f"<span>{words}</span>", f"<span>{translations[_LOCALES[language]][said]}</span>", 1)
    html = html.replace(_PLACE, f'<div id="app">{html_of(client.content)}</div>', 1)
    # Vue and NiceGUI make functions of text, which is the program's own.
    policy = f"{CONTENT_POLICY}; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'"
    headers = {**response.headers, "Content-Security-Policy": policy}
    del headers["content-length"]
    return Response(html, response.status_code, headers)


def html_of(element: Element) -> str:
    """An element and all that is in it, as HTML that does nothing."""
    tag = "div" if element.tag == "q-btn" else element.tag
    if tag not in _TAGS:
        return ""
    attributes = {name: value for name, value in element.props.items() if name in _ATTRIBUTES}
    attributes["class"] = " ".join(element.classes) or None
    attributes["style"] = ";".join(f"{name}:{value}" for name, value in element.style.items()) or None
    inner = "".join(html_of(child) for child in element.default_slot.children)
    given = "".join(_attribute(name, value) for name, value in attributes.items())
    return f"<{tag}{given}>{escape(getattr(element, 'text', ''))}{inner}</{tag}>"


def _attribute(name: str, value: Any) -> str:
    if value is True:
        return f" {name}"
    return "" if value in (False, None) else f' {name}="{escape(str(value))}"'
