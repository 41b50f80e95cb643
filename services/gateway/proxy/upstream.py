"""Upstream: the OpenAI-compatible server of CHAT_BASE_URL, to which the proxy passes requests on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any, Final

import httpx
from fastapi import Request
from keepsake_client.errors import Unavailable
from pydantic import SecretStr
from starlette.types import Receive

from services.gateway.proxy.errors import LoopDetected, UpstreamTimeout, UpstreamUnavailable

OPENAI_URL: Final = "https://api.openai.com/v1"
#: A model may think for minutes before its first byte, and between two.
TIMEOUT: Final = httpx.Timeout(600, connect=5, pool=5, write=60)
#: Requests in progress at the same time; a stream is one until it ends.
MAX_CONNECTIONS: Final = 256

Headers = list[tuple[bytes, bytes]]

#: Of one connection alone (RFC 9110), or written anew for the next.
_HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding"
    b" upgrade".split()
)
#: Not passed on: what is for the gateway or from a proxy before it, credentials (see `Upstream.send`), and what says
#: how the body or the response is packed, which httpx and `aiter_raw` settle.
_OWN_REQUEST: Final = frozenset(
    b"host content-length expect accept-encoding authorization x-api-key cookie forwarded x-real-ip via".split()
)
_OWN_PREFIXES: Final = (b"x-keepsake-", b"x-forwarded-")
#: Not passed back: uvicorn's own, and what is about the origin of upstream, which the gateway's is not.
_OWN_RESPONSE: Final = frozenset(b"date server set-cookie alt-svc strict-transport-security".split())
_CORS_PREFIX: Final = b"access-control-"
_VIA: Final = b"keepsake"
#: An `Authorization` with a key that `ltm key create` has made, with a scheme before it or none.
_OF_KEEPSAKE: Final = re.compile(r"(?:\w+\s+)?ltm_", re.IGNORECASE)


class Upstream:
    """The server that answers.

    Args:
        url: its base URL.
        key: its API key; None where it needs none, or the clients have their own.
        http: the connections to it.
    """

    def __init__(self, url: str, key: SecretStr | None, http: httpx.AsyncClient) -> None:
        self._url = httpx.URL(url)
        self._key = key
        self._http = http

    async def send(self, request: Request, path: str, body: bytes | None, *, own_key: bool) -> httpx.Response | None:
        """Pass a request on; the response, of which the body is still to come, or None if the client hangs up.

        Args:
            path: behind the base URL.
            own_key: whether the client's `Authorization` is meant for upstream. A key of Keepsake never is.

        Raises:
            LoopDetected, UpstreamTimeout, UpstreamUnavailable
            Unavailable: too many requests are in progress.
        """
        headers = [*_request_headers(request.headers.raw), (b"accept-encoding", b"identity"), _via(request)]
        if self._key is not None:
            headers.append((b"authorization", f"Bearer {self._key.get_secret_value()}".encode()))
        elif (
            own_key
            and (authorization := request.headers.get("authorization"))
            and not _OF_KEEPSAKE.match(authorization)
        ):
            headers.append((b"authorization", authorization.encode("latin-1")))
        url = self._url.copy_with(path=self._url.path.rstrip("/") + path, query=request.scope["query_string"] or None)
        # Not by `build_request`, which would add the cookies that upstream set for other users, and httpx's headers.
        passed_on = httpx.Request(
            request.method, url, headers=headers, content=body, extensions={"timeout": TIMEOUT.as_dict()}
        )
        try:
            return await _unless_gone(request.receive, asyncio.ensure_future(self._http.send(passed_on, stream=True)))
        except httpx.PoolTimeout:
            raise Unavailable(f"{MAX_CONNECTIONS} requests are in progress: ask again later") from None
        except httpx.TimeoutException as error:
            raise UpstreamTimeout(
                f"the server of CHAT_BASE_URL did not answer in time: {type(error).__name__}"
            ) from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise UpstreamUnavailable(
                f"the server of CHAT_BASE_URL does not answer ({type(error).__name__}): is it running at that address?"
            ) from None


def open_http() -> httpx.AsyncClient:
    """The connections: as the chat service has them, by the proxy of the environment where there is one."""
    limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=32)
    return httpx.AsyncClient(limits=limits, follow_redirects=False)


def response_headers(response: httpx.Response) -> Headers:
    """The headers to pass back."""
    return [
        (name.lower(), value)
        for name, value in _end_to_end(response.headers.raw)
        if name.lower() not in _OWN_RESPONSE and not name.lower().startswith(_CORS_PREFIX)
    ]


def _request_headers(raw: Headers) -> Headers:
    return [
        (name, value)
        for name, value in _end_to_end(raw)
        if name.lower() not in _OWN_REQUEST and not name.lower().startswith(_OWN_PREFIXES)
    ]


def _end_to_end(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers that are not about one connection alone."""
    headers = list(raw)
    named = [value for name, value in headers if name.lower() == b"connection"]
    of_hop = _HOP_BY_HOP.union(token.strip().lower() for value in named for token in value.split(b","))
    return [(name, value) for name, value in headers if name.lower() not in of_hop]


def _via(request: Request) -> tuple[bytes, bytes]:
    """The header that names the proxies on the way.

    Raises:
        LoopDetected: this one has been passed.
    """
    passed = request.headers.getlist("via")
    if any(_VIA.decode() in value.lower().split() for value in passed):
        raise LoopDetected("CHAT_BASE_URL leads back to this proxy: set it to the server of the model")
    return b"via", b", ".join([*(value.encode("latin-1") for value in passed), b"1.1 " + _VIA])


async def _unless_gone(receive: Receive, sending: asyncio.Future[httpx.Response]) -> httpx.Response | None:
    """The response, or None if the client hangs up before it; the request is ended then."""
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        either: set[asyncio.Future[Any]] = {sending, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return await sending if sending.done() else None
    finally:
        gone.cancel()
        if sending.cancel():
            await asyncio.wait({sending})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
