"""Parameters of a request: a GET or DELETE has them in its query, a POST in its body, and none in the other."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from keepsake_client.errors import InvalidMessage
from pydantic import ValidationError

from services.gateway.mem0_api.bodies import OF_THE_PLATFORM, ListBody

#: Of lists; they are read apart.
_PAGES: Final = frozenset({"page", "page_size"})
#: Of lists, without those above.
_SIZES: Final = frozenset({"limit", "top_k"})
#: Bodies that say nothing.
_BLANK: Final = (b"", b"{}", b"null")


async def query_alone(request: Request) -> dict[str, str]:
    """The parameters of a request that has no body.

    Raises:
        InvalidMessage: it has one, or a parameter twice: what is named there must not be passed over.
    """
    if (await request.body()).strip() not in _BLANK:
        raise InvalidMessage(f"a {request.method} of memories takes parameters in its URL, and no body")
    params = request.query_params
    if len(params.multi_items()) != len(params):
        raise InvalidMessage("a parameter of the URL is there twice")
    return dict(params)


async def body_alone(request: Request) -> None:
    """Check that the URL of a request selects nothing.

    Raises:
        InvalidMessage: it has a parameter that could.
    """
    if unknown := sorted(request.query_params.keys() - _PAGES - OF_THE_PLATFORM):
        raise InvalidMessage(f"{unknown[0][:64]!r} is no parameter of this URL: it belongs in the body")


QueryAlone = Annotated[dict[str, str], Depends(query_alone)]
BODY_ALONE: Final = (Depends(body_alone),)


async def query_body(params: QueryAlone) -> ListBody:
    """The parameters of a query string as a body: the first version's `get_all` has them there."""
    try:
        return ListBody.model_validate({name: params[name] for name in params.keys() - _PAGES - _SIZES})
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


QueryBody = Annotated[ListBody, Depends(query_body)]
