"""Headers that say whose memory a request is about, at the doors whose bodies are of another API."""

from __future__ import annotations

from typing import Final

from fastapi import Request
from keepsake_client.errors import InvalidMessage

USER: Final = "X-Keepsake-User"
AGENT: Final = "X-Keepsake-Agent"
SESSION: Final = "X-Keepsake-Session"
REMEMBER: Final = "X-Keepsake-Remember"


def header(request: Request, name: str) -> str | None:
    """The value of a header, in UTF-8; None where it is missing or blank.

    Raises:
        InvalidMessage: it is not UTF-8, or there are several: a proxy may have checked another one than is read here.
    """
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise InvalidMessage(f"there are several headers {name}")
    value = "".join(values)
    try:
        return value.encode("latin-1").decode() if value.strip() else None
    except UnicodeDecodeError:
        raise InvalidMessage(f"the header {name} is not UTF-8") from None
