"""Exposure: where the gateway listens, and from which peers, browsers and pages it takes requests."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from services.gateway.access import NotPermitted
from services.gateway.problems import problem_of, problem_response, refuse
from services.runtime.errors import CannotStart, InvalidSetting
from services.runtime.settings import Settings

Network = IPv4Network | IPv6Network
#: The address and port of the other side of a connection, where it has one.
Peer = tuple[str, int] | None

#: Answered to any peer: they reveal nothing, and what watches the process asks past the proxy.
HEALTH_PATHS: Final = frozenset({"/healthz", "/readyz"})
#: A scheme, a host and perhaps a port, as a browser sends it: in lower case and without a path.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
#: What a proxy adds to a request.
_FORWARDING: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
#: Headers of responses that a page may read.
_EXPOSED: Final = (
    "ETag",
    "Mcp-Session-Id",
    "Retry-After",
    "WWW-Authenticate",
    "X-Keepsake-Request-ID",
    "X-Request-ID",
)
_METHODS: Final = ("DELETE", "GET", "PATCH", "POST", "PUT")

log = structlog.get_logger()


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach this address, or name."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def trusted_proxies(settings: Settings) -> tuple[Network, ...]:
    """The networks of LTM_GATEWAY_TRUSTED_PROXIES.

    Raises:
        InvalidSetting: one of them is no address or network, or holds every address.
    """
    networks = []
    for text in _listed(settings.ltm_gateway_trusted_proxies):
        try:
            network = ip_network(text)
        except ValueError:
            network = None
        if network is None or not network.prefixlen:
            raise InvalidSetting(
                f"LTM_GATEWAY_TRUSTED_PROXIES has {text!r}; allowed: addresses and networks, such as 10.0.0.5 or"
                " 172.16.0.0/12, and not all there are"
            )
        networks.append(network)
    return tuple(networks)


def cors_origins(settings: Settings) -> tuple[str, ...]:
    """The origins of LTM_GATEWAY_CORS_ORIGINS.

    Raises:
        InvalidSetting: one of them is no origin.
    """
    origins = _listed(settings.ltm_gateway_cors_origins)
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise InvalidSetting(
                f"LTM_GATEWAY_CORS_ORIGINS has {origin!r}; allowed: origins as a browser sends them, such as"
                " https://chat.example.org, without a path, and no *"
            )
    return origins


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part for part in map(str.strip, (text or "").split(",")) if part)


def check_exposed(settings: Settings, proxies: Sequence[Network], *, keys_found: bool, tokens: bool) -> None:
    """Refuse to be reached by others while nothing says who may, and log what is open or not encrypted.

    Args:
        keys_found: whether the key file is there.
        tokens: whether tokens are taken.

    Raises:
        CannotStart: the address is not of the loopback interface, and there are neither keys, tokens nor proxies.
    """
    host = settings.ltm_gateway_host
    if proxies:
        if not keys_found and not tokens:
            log.warning("proxy_authenticates", reason="no keys: what a trusted proxy passes on is permitted")
        return
    if is_loopback(host):
        if not keys_found and not tokens:
            log.info("open", host=host, reason="no keys: programs of this machine may do everything")
        return
    if keys_found or tokens:
        log.warning("unencrypted", host=host, reason="no TLS in front: keys and contents travel in the clear")
        return
    keys = f"make the key file {settings.ltm_gateway_keys}" if settings.ltm_gateway_keys else "set LTM_GATEWAY_KEYS"
    raise CannotStart(
        f"LTM_GATEWAY_HOST is {host!r}, which other machines reach, and nothing says who may: {keys} with"
        " `ltm key create`, set LTM_GATEWAY_TRUSTED_PROXIES, or listen on 127.0.0.1"
    )


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        CannotStart: the address is none of this machine, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)  # localhost: what clients try
        listener = socket.create_server(address[:2], family=family)  # uvicorn sets the backlog
        # Connections inherit it. asyncio sets it for sockets that name TCP as their protocol, which this one does not;
        # without it, each answer on a connection that is kept waits 40 ms for the acknowledgement of the one before.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, UnicodeError) as error:
        # Python adds the address, which the line has already.
        reason = str(error.strerror).partition(" (while")[0] if isinstance(error, OSError) else "it is no host name"
        raise CannotStart(
            f"the gateway cannot listen on {host} port {port}: {reason}; set LTM_GATEWAY_HOST and LTM_GATEWAY_PORT"
        ) from None


def check_local(headers: Headers, origins: Sequence[str] = ()) -> None:
    """Check that a request without a key comes from a program of this machine, and from no web page or proxy.

    A page of any site may send requests to localhost by the browser of a user, also under a host name of its own that
    it lets lead there (DNS rebinding).

    Args:
        origins: those whose pages may.

    Raises:
        NotPermitted
    """
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not is_loopback(_host_of(f"//{hosts[0]}")):
        raise NotPermitted(
            "without keys, requests are taken for localhost or 127.0.0.1 alone (header Host): make a key with"
            " `ltm key create`"
        )
    if any(name in headers for name in _FORWARDING):
        raise NotPermitted(
            "without keys, requests are taken from this machine alone, and this one came by a proxy: make a key with"
            " `ltm key create`, or set LTM_GATEWAY_TRUSTED_PROXIES"
        )
    origin = headers.get("origin")
    foreign = headers.get("sec-fetch-site") == "cross-site" if origin is None else not is_loopback(_host_of(origin))
    if foreign and origin not in origins:
        raise NotPermitted(
            "without keys, no page of another site may use this gateway: name its origin in LTM_GATEWAY_CORS_ORIGINS"
        )


def _host_of(url: str) -> str:
    """The host of a URL; "" where there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class TrustedPeersOnly:
    """ASGI middleware that takes requests from trusted proxies alone.

    Args:
        proxies: their networks.
        on_refusal: called with the address and the error of each request that is refused.
    """

    def __init__(
        self, app: ASGIApp, proxies: Sequence[Network], on_refusal: Callable[[Peer, NotPermitted], None]
    ) -> None:
        self._app = app
        self._proxies = proxies
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in HEALTH_PATHS or self._trusts(scope):
            await self._app(scope, receive, send)
            return
        refusal = NotPermitted("requests are taken from the proxies of LTM_GATEWAY_TRUSTED_PROXIES alone")
        self._on_refusal(scope.get("client"), refusal)
        await refuse(problem_response(problem_of(refusal)), scope, receive, send)

    def _trusts(self, scope: Scope) -> bool:
        try:
            address = ip_address((scope.get("client") or ("", 0))[0])
        except ValueError:
            return False
        return any(address in network for network in self._proxies)


def guarded(
    app: ASGIApp,
    proxies: Sequence[Network],
    origins: Sequence[str],
    on_refusal: Callable[[Peer, NotPermitted], None],
) -> ASGIApp:
    """The application as peers reach it: CORS for the named origins, and trusted proxies where there are some.

    Without credentials: a key is in a header, which no browser adds by itself.

    Args:
        on_refusal: called with the address and the error of each request from a peer that is no trusted proxy.
    """
    if origins:
        app = CORSMiddleware(
            app, allow_origins=origins, allow_methods=_METHODS, allow_headers=["*"], expose_headers=_EXPOSED
        )
    if proxies:
        trusted = ProxyHeadersMiddleware(app, [str(network) for network in proxies])  # type: ignore[arg-type]
        app = TrustedPeersOnly(trusted, proxies, on_refusal)  # type: ignore[arg-type]  # uvicorn's types of ASGI are its own
    return app
