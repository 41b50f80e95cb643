"""Authentication: finds the caller of a request by its key or token, and limits the rate of each caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import structlog
from keepsake_client.cancellation import cancel_all
from keepsake_client.errors import KeepsakeError
from keepsake_client.protocol import COUNTERS
from starlette.requests import Request

from services.gateway.access import OPEN, Caller, NotPermitted, Unauthorized
from services.gateway.exposure import Peer, check_local
from services.gateway.keys import KeyStore
from services.gateway.rates import RateLimited, RateLimiter
from services.gateway.tokens import TokenVerifier
from services.runtime.counters import PendingCounts
from services.runtime.heartbeat import Liveness
from services.runtime.token_buckets import TokenBuckets

#: How soon a change of the key file takes effect.
WATCH_INTERVAL_S = 1.0
#: Longer than any key, and than a token with all its claims.
MAX_CREDENTIAL_CHARS = 8_192
#: Lines a second of the log about refused requests; `ltm:counters` counts all.
LOGGED_RATE = 5.0
_SCHEMES = ("bearer", "token")

log = structlog.get_logger()


class Authentication:
    """Finds the caller of each request, and limits the caller's rate.

    Where there are neither keys nor tokens, a request may do everything if it comes by a trusted proxy or, without
    proxies, from a program of this machine; a key in it is ignored, because clients of Mem0 and OpenAI always send one.
    This ends as soon as there is a key file.

    Args:
        keys: those of the key file.
        tokens: what verifies tokens; None where none are taken.
        rate: requests a second for each key that sets no rate of its own.
        proxied: whether requests come by trusted proxies alone.
        local: whether the gateway listens on the loopback interface.
        origins: those whose pages may call the gateway.
    """

    def __init__(
        self,
        keys: KeyStore,
        tokens: TokenVerifier | None,
        rate: float,
        *,
        proxied: bool,
        local: bool,
        origins: Sequence[str] = (),
        counts: PendingCounts | None = None,
    ) -> None:
        self._keys = keys
        self._tokens = tokens
        self._rate = rate
        self._proxied = proxied
        self._local = local
        self._origins = origins
        self._limiter = RateLimiter()
        self._counts = counts or PendingCounts(COUNTERS)
        self._logged = TokenBuckets()
        self._liveness = Liveness()

    def caller(self, request: Request) -> Caller:
        """The caller of a request, who is counted once against its rate.

        Raises:
            Unauthorized: the request has no valid key or token.
            NotPermitted: there are no keys, and it does not come from a program of this machine.
            RateLimited: its key has made too many.
        """
        known: Caller | None = getattr(request.state, "caller", None)
        if known is not None:
            return known
        caller = self.identify(request)
        try:
            self._limiter.take(caller)
        except RateLimited as error:
            self._counts.count("gateway_rate_limited")
            self._log(request.client, error, caller)
            raise
        request.state.caller = caller
        return caller

    def identify(self, request: Request) -> Caller:
        """The caller of a request, who is not counted against its rate.

        Raises:
            Unauthorized, NotPermitted: as `caller`.
        """
        try:
            return self._identify(request)
        except Unauthorized as error:
            self._counts.count("gateway_unauthorized")
            self._log(request.client, error)
            raise
        except NotPermitted as error:
            self.refused(request.client, error)
            raise

    def refused(self, peer: Peer, error: NotPermitted, caller: Caller | None = None) -> None:
        """Count and log a request that is not permitted."""
        self._counts.count("gateway_forbidden")
        self._log(peer, error, caller)

    def alive(self) -> bool:
        """Whether the key file is watched."""
        return self._liveness.alive()

    def turning(self) -> bool:
        """Whether the event loop turns, which looks at the key file each second."""
        return self._liveness.turning()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch the key file within the block."""
        task = asyncio.create_task(self._watch(), name="keys")
        try:
            yield
        finally:
            await cancel_all([task])

    async def _watch(self) -> None:
        while True:
            try:
                self._keys.refresh()
                self._liveness.mark()
            except Exception:
                # A revoked key must not stay valid because one look at the file failed.
                log.exception("keys_watch_failed")
                self._counts.count("gateway_keys_unusable")
            await asyncio.sleep(WATCH_INTERVAL_S)

    def _identify(self, request: Request) -> Caller:
        if not self._keys.seen and self._tokens is None:
            if self._proxied:
                return OPEN
            if self._local:
                check_local(request.headers, self._origins)
                return OPEN
        credential = _credential(request)
        if self._tokens is not None and len(credential.split(".")) == 3:
            caller = self._tokens.caller(credential)
        else:
            key = self._keys.find(credential)
            rate = self._rate if key.rate is None else key.rate
            caller = Caller(key.name, frozenset(key.may), key.user, key.users, key.agent, rate)
        return replace(caller, on_refusal=partial(self.refused, request.client, caller=caller))

    def _log(self, peer: Peer, error: KeepsakeError, caller: Caller | None = None) -> None:
        """Log a refusal, without the key and, against a flood, not each of them."""
        if self._logged.take("refused", LOGGED_RATE):
            return
        # The name of a token has its user, which the log may have to hash.
        whose = {"key": caller.name.partition(":")[0], "user_id": caller.user} if caller else {}
        known = {name: value for name, value in whose.items() if value}
        log.warning("request_refused", code=error.code, reason=str(error), peer=peer[0][:64] if peer else None, **known)


def _credential(request: Request) -> str:
    """The key or token of a request: of `Authorization`, as Bearer or Token, or of `X-API-Key`.

    Raises:
        Unauthorized: it has none, or several.
    """
    headers = request.headers
    authorizations, bare = headers.getlist("authorization"), headers.getlist("x-api-key")
    if len(authorizations) > 1 or len(bare) > 1:
        raise Unauthorized("the request has several keys: send one")
    credential = bare[0].strip() if bare else ""
    if authorizations:
        scheme, _, rest = authorizations[0].partition(" ")
        credential = rest.strip() if scheme.lower() in _SCHEMES else ""
    if not credential or len(credential) > MAX_CREDENTIAL_CHARS:
        raise Unauthorized(
            "the request has no key: send the header `Authorization: Bearer <key>`, see `ltm key create`"
        )
    return credential
