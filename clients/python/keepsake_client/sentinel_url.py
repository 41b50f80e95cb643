"""URLs of Redis behind Sentinel: `redis+sentinel://user:password@host1:26379,host2/SERVICE/DB?option=value`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from redis.connection import ConnectionPool, parse_url

from keepsake_client.errors import InvalidURL

SCHEMES = ("redis+sentinel", "rediss+sentinel")
DEFAULT_PORT = 26_379
#: Options of the URL that begin with this are those of the connections to the sentinels.
SENTINEL_PREFIX = "sentinel_"

_EXAMPLE = ", as in redis+sentinel://host1:26379,host2:26379/mymaster/0"
_SCHEME = f"a URL that begins with {' or '.join(f'{scheme}://' for scheme in SCHEMES)}{_EXAMPLE}"
_HOSTS = (
    "a URL with a name or an address for each sentinel, each with a port or none, with commas between them, and a user"
    f" name and password that are percent-encoded{_EXAMPLE}"
)
_PATH = f"a URL with the name of the sentinels' service, and a database that is a number or none{_EXAMPLE}"
_OPTIONS = f"a URL with options of redis-py, those of the sentinels beginning with {SENTINEL_PREFIX}"

#: A password that holds a "/", "?" or "#" which is not percent-encoded ends up in none of these.
_URL = re.compile(r"([^/?#]*)(?:/([^?#]*))?(?:\?([^#]*))?", re.DOTALL)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
#: What sentinel.conf allows; without a number alone, which is a URL that lacks the service.
_SERVICE = re.compile(r"(?![0-9]*$)[A-Za-z0-9._-]{1,200}")
_USER = re.compile(r"(?:[^@%]|%[0-9A-Fa-f]{2})*")


@dataclass(frozen=True)
class SentinelURL:
    """A parsed URL.

    Args:
        sentinels: the host and port of each.
        options: of the connections to Redis, as redis-py's ConnectionPool takes them.
        sentinel_options: of those to the sentinels, as redis-py's Redis takes them.
        tls: whether Redis is reached by TLS.
    """

    sentinels: tuple[tuple[str, int], ...]
    service: str
    options: dict[str, Any]
    sentinel_options: dict[str, Any]
    tls: bool


def is_sentinel_url(url: str) -> bool:
    """Whether a URL is meant for Sentinel, misspelt or not."""
    return "sentinel" in url.partition("://")[0]


def parse_sentinel_url(url: str) -> SentinelURL:
    """The parts of a URL of Redis behind Sentinel.

    The user and password are those of Redis. A sentinel is asked without any, unless the URL has the options
    `sentinel_username` and `sentinel_password`. `rediss+sentinel` is TLS to both, with the same `ssl_*` options unless
    those of the sentinels are given; `sentinel_ssl=false` is TLS to Redis alone.

    Raises:
        InvalidURL: it is no such URL.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise InvalidURL(_SCHEME)
    parts = _URL.fullmatch(rest)
    if parts is None:
        raise InvalidURL(_HOSTS)
    authority, path, query = parts.groups(default="")
    user, at, hosts = authority.rpartition("@")
    if not _USER.fullmatch(user):
        raise InvalidURL(_HOSTS)
    sentinels = tuple(map(_host, hosts.split(",")))
    service, _, database = path.partition("/")
    if not _SERVICE.fullmatch(service) or not re.fullmatch("[0-9]{0,5}", database):
        raise InvalidURL(_PATH)
    tls = scheme == "rediss+sentinel"
    given = parse_qsl(query, keep_blank_values=True)
    options = _parsed(f"{user}{at}", database, [(name, value) for name, value in given if not _of_sentinels(name)], tls)
    sentinel_given = {name.removeprefix(SENTINEL_PREFIX): value for name, value in given if _of_sentinels(name)}
    sentinel_tls = tls and sentinel_given.pop("ssl", "true").lower() not in ("false", "no", "0", "off", "n", "f")
    sentinel_options = _parsed("", "", list(sentinel_given.items()), sentinel_tls)
    if sentinel_tls:
        shared = {name: value for name, value in options.items() if name.startswith("ssl_")}
        sentinel_options = {"ssl": True, **shared, **sentinel_options}
    return SentinelURL(sentinels, service, options, sentinel_options, tls)


def _of_sentinels(name: str) -> bool:
    return name.startswith(SENTINEL_PREFIX)


def _host(text: str) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    port = int(match[2] or DEFAULT_PORT) if match else 0
    if match is None or not 0 < port < 65_536:
        raise InvalidURL(_HOSTS)
    return match[1].strip("[]"), port


def _parsed(user: str, database: str, given: list[tuple[str, str]], tls: bool) -> dict[str, Any]:
    """Options as redis-py itself reads them from the URL of one server."""
    plain = f"{'rediss' if tls else 'redis'}://{user}localhost/{database}?{urlencode(given)}"
    if any(name in ("host", "port", "path") for name, _ in given):
        raise InvalidURL(_OPTIONS)
    try:
        ConnectionPool.from_url(plain).make_connection()  # which does not connect, and refuses an unknown option
        options: dict[str, Any] = parse_url(plain)  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, AttributeError):
        raise InvalidURL(_OPTIONS) from None
    return {name: value for name, value in options.items() if name not in ("host", "connection_class")}
