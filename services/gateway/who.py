"""Headers that say whose memory a request is about, where its protocol has no field for that."""

from __future__ import annotations

from typing import Final

from keepsake_client.errors import InvalidMessage
from starlette.requests import Request

USER_HEADER: Final = "X-Keepsake-User"
AGENT_HEADER: Final = "X-Keepsake-Agent"
SESSION_HEADER: Final = "X-Keepsake-Session"


def header(request: Request, name: str) -> str | None:
    """The value of a header, in UTF-8; None where it is missing or blank.

    Raises:
        InvalidMessage: it is not UTF-8, or there are several: one of them may be of a proxy, and the other forged.
    """
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise InvalidMessage(f"there are several headers {name}")
    value = "".join(values)
    try:
        return value.encode("latin-1").decode() if value.strip() else None
    except UnicodeDecodeError:
        raise InvalidMessage(f"the header {name} is not UTF-8") from None
