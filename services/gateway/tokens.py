"""Tokens: JSON Web Tokens that permit one user's memory for a short time, for a browser or a game."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import AllowedPublicKeys, HMACAlgorithm
from keepsake_client.fields import Id
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.gateway.access import TOKEN_RIGHTS, Caller, Right, Unauthorized
from services.gateway.keys import first_problem
from services.runtime.errors import InvalidSetting
from services.runtime.settings import Settings

AUDIENCE: Final = "keepsake"
#: A token cannot be revoked, so it must end by itself.
MAX_LIFETIME_S = 24 * 3_600
#: Between the clock of the issuer and that of the gateway.
LEEWAY_S = 30
MIN_SECRET_BYTES = 32
MIN_RSA_BITS = 2_048

_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_SECRET_SETTING: Final = "LTM_GATEWAY_TOKEN_SECRET"  # noqa: S105  its name
_PUBLIC_KEY_SETTING: Final = "LTM_GATEWAY_TOKEN_PUBLIC_KEY"


class Claims(BaseModel):
    """The claims of a token. An unknown one may be a restriction that was misspelt, so it is an error.

    Attributes:
        sub: the user.
        exp: when it ends, in seconds since 1970.
        may: its rights.
        agent: the only character that it is for; None for all.
        aud, iss, iat, nbf, jti: as RFC 7519 has them; PyJWT checks them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sub: Id
    exp: float
    may: tuple[Right, ...] = Field(default=TOKEN_RIGHTS, min_length=1)
    agent: Id | None = None
    aud: Any
    iss: Any = None
    iat: Any = None
    nbf: Any = None
    jti: Any = None


class TokenVerifier:
    """Verifies tokens: each key with the one algorithm that is its own, whatever a token's header says.

    Args:
        keys: what verifies them, each with its algorithm.
        rate: requests a second for each user.
    """

    def __init__(self, keys: list[tuple[AllowedPublicKeys | bytes, str]], rate: float) -> None:
        self._keys = keys
        self._rate = rate

    def caller(self, token: str) -> Caller:
        """The bearer of a token.

        Raises:
            Unauthorized: it is not valid.
        """
        try:
            claims = Claims.model_validate(self._verified(token))
        except ValidationError as error:
            raise Unauthorized(f"the token's claims are not valid: {first_problem(error)}") from None
        if claims.exp > time.time() + MAX_LIFETIME_S + LEEWAY_S:
            raise Unauthorized(f"the token is valid for more than {MAX_LIFETIME_S // 3_600} hours: make a shorter one")
        # No key has a name with a colon.
        return Caller(f"token:{claims.sub}", frozenset(claims.may), claims.sub, agent=claims.agent, rate=self._rate)

    def _verified(self, token: str) -> dict[str, Any]:
        for key, algorithm in self._keys:
            try:
                return jwt.decode(
                    token,
                    key,
                    [algorithm],
                    {"require": ["sub", "exp", "aud"]},
                    audience=AUDIENCE,
                    leeway=LEEWAY_S,
                )
            except jwt.InvalidAlgorithmError:
                continue  # it may be for the other key
            except jwt.ExpiredSignatureError:
                raise Unauthorized("the token has expired: ask for another one") from None
            except jwt.MissingRequiredClaimError as error:
                raise Unauthorized(f"the token lacks the claim {error.claim}") from None
            except jwt.InvalidAudienceError:
                raise Unauthorized(f"the token is for another audience: aud must be {AUDIENCE}") from None
            except jwt.ImmatureSignatureError:
                raise Unauthorized("the token is not valid yet: check the clock of its issuer") from None
            except (jwt.PyJWTError, ValueError, RecursionError):  # what a forger may write is without bounds
                break
        raise Unauthorized("the token is not valid: its signature, algorithm or form is wrong")


def token_verifier(settings: Settings) -> TokenVerifier | None:
    """What verifies tokens by the settings; None where no tokens are taken.

    Raises:
        InvalidSetting: the secret is too short, or the public key cannot be used.
    """
    keys: list[tuple[AllowedPublicKeys | bytes, str]] = []
    if settings.ltm_gateway_token_secret is not None:
        keys.append((token_secret(settings), "HS256"))
    if settings.ltm_gateway_token_public_key is not None:
        keys.append(_public_key(settings.ltm_gateway_token_public_key))
    return TokenVerifier(keys, settings.ltm_gateway_rate) if keys else None


def token_secret(settings: Settings) -> bytes:
    """The secret that signs tokens.

    Raises:
        InvalidSetting: there is none, or it is too short.
    """
    if settings.ltm_gateway_token_secret is None:
        raise InvalidSetting(f"{_SECRET_SETTING} is not set: give the gateway one, as of `openssl rand -hex 32`")
    secret = settings.ltm_gateway_token_secret.get_secret_value().encode()
    if len(secret) < MIN_SECRET_BYTES:
        raise InvalidSetting(f"{_SECRET_SETTING} has {len(secret)} bytes; allowed: at least {MIN_SECRET_BYTES}")
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError:
        raise InvalidSetting(
            f"{_SECRET_SETTING} holds a public or private key; allowed: a random text, and the file of a public key in"
            f" {_PUBLIC_KEY_SETTING}"
        ) from None
    return secret


def mint(secret: bytes, user: str, may: tuple[Right, ...], lifetime_s: float, agent: str | None = None) -> str:
    """A token for one user, signed with the secret."""
    now = int(time.time())
    claims: dict[str, Any] = {"sub": user, "aud": AUDIENCE, "iat": now, "exp": now + int(lifetime_s), "may": list(may)}
    return jwt.encode(claims if agent is None else {**claims, "agent": agent}, secret, "HS256")


def _public_key(path: Path) -> tuple[AllowedPublicKeys, str]:
    """A public key from a PEM file, and the algorithm of its type.

    Raises:
        InvalidSetting: it cannot be used.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise InvalidSetting(f"{_PUBLIC_KEY_SETTING} is '{path}', which cannot be read: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidSetting(
            f"{_PUBLIC_KEY_SETTING} is '{path}', which holds no public key: give a PEM file that begins with"
            " -----BEGIN PUBLIC KEY-----"
        ) from None
    if isinstance(key, Ed25519PublicKey):
        return key, "EdDSA"
    if isinstance(key, RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return key, "RS256"
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return key, _CURVES[key.curve.name]
    raise InvalidSetting(
        f"{_PUBLIC_KEY_SETTING} is '{path}', whose key has another type; allowed: RSA of {MIN_RSA_BITS} bits or more,"
        " EC on P-256, P-384 or P-521, Ed25519"
    )
