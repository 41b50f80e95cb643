"""Tokens of the gateway: for one user and a short time, verified by the algorithm of the key, never by the header's."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from services.gateway.access import TOKEN_RIGHTS, Caller, Right, Unauthorized
from services.gateway.tokens import TokenVerifier, mint, token_verifier
from services.runtime.errors import InvalidSetting
from services.runtime.settings import load_settings

SECRET = "0123456789abcdef" * 2
OTHER = "fedcba9876543210" * 2


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without the settings of tokens."""
    for variable in ("LTM_GATEWAY_TOKEN_SECRET", "LTM_GATEWAY_TOKEN_PUBLIC_KEY"):
        monkeypatch.delenv(variable, raising=False)


def verifier(**settings: Any) -> TokenVerifier:
    found = token_verifier(load_settings(**settings))
    assert found is not None
    return found


@pytest.fixture
def by_secret() -> TokenVerifier:
    return verifier(ltm_gateway_token_secret=SECRET, ltm_gateway_rate=7)


def claims(**changes: Any) -> dict[str, Any]:
    """Claims of a valid token; those that are changed to None are left out."""
    whole = {"sub": "anna", "aud": "keepsake", "exp": time.time() + 600, **changes}
    return {name: value for name, value in whole.items() if value is not None}


def signed(payload: dict[str, Any], key: Any = SECRET, algorithm: str = "HS256", **headers: Any) -> str:
    return jwt.encode(payload, key, algorithm, headers)


def refusal(tokens: TokenVerifier, token: str) -> str:
    """Why a token is refused; in one line."""
    with pytest.raises(Unauthorized) as refused:
        tokens.caller(token)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_minted_token_is_for_its_user_alone(by_secret: TokenVerifier) -> None:
    """Given a token that `ltm key token` makes, I expect a caller for user and character, with the rate of keys."""
    caller = by_secret.caller(mint(SECRET.encode(), "anna", (Right.SEARCH,), 900, "luna"))

    assert caller == Caller("token:anna", frozenset({Right.SEARCH}), "anna", agent="luna", rate=7)


def test_a_token_that_names_no_rights_may_chat(by_secret: TokenVerifier) -> None:
    """Given no claim `may`, I expect what a chat program needs, and no right to delete or export."""
    assert by_secret.caller(signed(claims())).rights == frozenset(TOKEN_RIGHTS)
    assert not {Right.DELETE, Right.FORGET, Right.EXPORT, Right.TRACE} & set(TOKEN_RIGHTS)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": time.time() - 60}, "the token has expired"),
        ({"exp": None}, "the token lacks the claim exp"),
        ({"exp": 1e300}, "the token is valid for more than 24 hours"),
        ({"exp": time.time() + 48 * 3_600}, "the token is valid for more than 24 hours"),
        ({"exp": float("inf")}, "the token is not valid"),
        ({"exp": float("nan")}, "the token is not valid"),
        ({"exp": []}, "the token is not valid"),
        ({"exp": {}}, "the token is not valid"),
        ({"exp": "soon"}, "the token is not valid"),
        ({"nbf": time.time() + 1e6}, "the token is not valid yet"),
        ({"iat": time.time() + 1e6}, "the token is not valid yet"),
        ({"sub": None}, "the token lacks the claim sub"),
        ({"sub": 7}, "the token is not valid"),
        ({"sub": " "}, "the token's claims are not valid: sub: must not be blank"),
        ({"sub": "x" * 3_000}, "the token's claims are not valid: sub: is longer than 2600 bytes"),
        ({"aud": None}, "the token lacks the claim aud"),
        ({"aud": "elsewhere"}, "the token is for another audience: aud must be keepsake"),
        ({"may": []}, "the token's claims are not valid: may"),
        ({"may": "search"}, "the token's claims are not valid: may"),
        ({"may": ["everything"]}, "the token's claims are not valid: may.0"),
        ({"may": {"search": True}}, "the token's claims are not valid: may"),
        ({"agent": []}, "the token's claims are not valid: agent"),
        ({"agnet": "luna"}, "the token's claims are not valid: agnet: Extra inputs are not permitted"),
        ({"exp": 10**400}, "the token"),
        ({"a\nb": 1}, "the token's claims are not valid: a?b: Extra inputs are not permitted"),
        ({"users": ""}, "the token's claims are not valid: users: Extra inputs are not permitted"),
    ],
)
def test_claims_that_are_not_valid_are_refused(by_secret: TokenVerifier, changes: dict[str, Any], reason: str) -> None:
    """Given a signed token whose claims are missing, of the wrong kind, too long or unknown, I expect one line that
    names the claim."""
    assert refusal(by_secret, signed(claims(**changes))).startswith(reason)


def test_clocks_may_differ_by_half_a_minute(by_secret: TokenVerifier) -> None:
    """Given a token that ended 20 s ago by the gateway's clock, or begins in 20 s, I expect it valid."""
    assert by_secret.caller(signed(claims(exp=time.time() - 20))).user == "anna"
    assert by_secret.caller(signed(claims(nbf=time.time() + 20, iat=time.time() + 20))).user == "anna"


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_another_algorithm_is_refused(by_secret: TokenVerifier, algorithm: str) -> None:
    """Given the right secret and another algorithm, I expect a refusal: there is one algorithm for each key."""
    assert "algorithm" in refusal(by_secret, signed(claims(), SECRET * 2, algorithm))


def test_another_secret_is_refused(by_secret: TokenVerifier) -> None:
    """Given a token that is signed with another secret, I expect a refusal."""
    assert refusal(by_secret, signed(claims(), OTHER)).startswith("the token is not valid")


def unsigned(header: dict[str, Any], signature: bytes = b"") -> str:
    """A token as an attacker writes it."""
    parts = [json.dumps(header).encode(), json.dumps(claims()).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.mark.parametrize(
    "token",
    [
        unsigned({"alg": "none", "typ": "JWT"}),
        unsigned({"alg": "None"}),
        unsigned({"alg": "HS256"}),
        unsigned({"alg": "HS256"}, b"x" * 32),
        unsigned({"alg": ["HS256"]}),
        unsigned({"alg": None}),
        unsigned({}),
        unsigned({"alg": "HS256", "crit": ["exp"]}, b"x" * 32),
        base64.urlsafe_b64encode(b"[" * 5_000).decode().rstrip("=") + ".e30.",
        f"eyJhbGciOiJIUzI1NiJ9.{base64.urlsafe_b64encode(b'[' * 5_000).decode().rstrip('=')}.",
        "..",
        "a.b.c",
        "\x00.\x00.\x00",
        "é.é.é",
        f"{'A' * 4_000}.{'B' * 4_000}.",
    ],
    ids=map(str, range(15)),  # the tokens themselves hold the time
)
def test_a_forged_token_is_refused(by_secret: TokenVerifier, token: str) -> None:
    """Given no signature, a wrong one, no algorithm, or no token at all, I expect a refusal, and no other error."""
    assert refusal(by_secret, token).startswith("the token is not valid")


def test_a_secret_that_is_a_public_key_is_refused(rsa_key: rsa.RSAPrivateKey) -> None:
    """Given a public key in the place of the secret, which everyone may know, I expect a start refused in words."""
    with pytest.raises(
        InvalidSetting, match=r"^LTM_GATEWAY_TOKEN_SECRET holds a public or private key; allowed: a random"
    ):
        token_verifier(load_settings(ltm_gateway_token_secret=spki(rsa_key).decode()))


def spki(private: Any) -> bytes:
    """The public key of a private one, as a PEM file has it."""
    encoded: bytes = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def pem(path: Path, private: Any) -> Path:
    path.write_bytes(spki(private))
    return path


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, 2_048)


@pytest.mark.parametrize("kind", ["RS256", "ES256", "ES384", "ES512", "EdDSA"])
def test_a_public_key_verifies_by_the_algorithm_of_its_type(
    tmp_path: Path, rsa_key: rsa.RSAPrivateKey, kind: str
) -> None:
    """Given a public key, I expect tokens valid that its private key has signed, and none of another key."""
    curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}

    def private() -> Any:
        return ec.generate_private_key(curves[kind]) if kind in curves else ed25519.Ed25519PrivateKey.generate()

    key, other = (rsa_key, None) if kind == "RS256" else (private(), private())
    tokens = verifier(ltm_gateway_token_public_key=pem(tmp_path / "key.pem", key))

    assert tokens.caller(signed(claims(), key, kind)).user == "anna"
    if other:
        assert refusal(tokens, signed(claims(), other, kind)).startswith("the token is not valid")


def test_a_public_key_is_no_secret(tmp_path: Path, rsa_key: rsa.RSAPrivateKey) -> None:
    """Given a token that is signed by HS256 with the text of the public key, which everyone knows, I expect a
    refusal; with a secret of its own beside it, too."""
    path = pem(tmp_path / "key.pem", rsa_key)
    header, payload = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "HS256"}, claims())
    )
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        header + b"." + payload, path.read_bytes()
    )
    confused = b".".join([header, payload, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()

    assert refusal(verifier(ltm_gateway_token_public_key=path), confused).startswith("the token is not valid")
    both = verifier(ltm_gateway_token_public_key=path, ltm_gateway_token_secret=SECRET)
    assert refusal(both, confused).startswith("the token is not valid")


def test_secret_and_public_key_work_side_by_side(tmp_path: Path, rsa_key: rsa.RSAPrivateKey) -> None:
    """Given both settings, I expect tokens of either, each by its own algorithm."""
    path = pem(tmp_path / "key.pem", rsa_key)
    tokens = verifier(ltm_gateway_token_public_key=path, ltm_gateway_token_secret=SECRET)

    assert tokens.caller(signed(claims())).user == "anna"
    assert tokens.caller(signed(claims(), rsa_key, "RS256")).user == "anna"


def test_a_short_secret_is_refused_without_being_shown() -> None:
    """Given a secret of 31 bytes, I expect a start refused in one line that does not hold it."""
    with pytest.raises(InvalidSetting) as refused:
        token_verifier(load_settings(ltm_gateway_token_secret="hush" * 7 + "hus"))

    assert str(refused.value) == "LTM_GATEWAY_TOKEN_SECRET has 31 bytes; allowed: at least 32"


#: Contents of a PEM file that are no public key that is taken.
REFUSED_KEYS: dict[str, Callable[[], bytes]] = {
    "private": lambda: ed25519.Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    ),
    "text": lambda: b"no key",
    "empty": lambda: b"",
    "raw": lambda: ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw),
    "curve": lambda: spki(ec.generate_private_key(ec.SECP256K1())),
    "short": lambda: spki(rsa.generate_private_key(65_537, 1_024)),
    "dsa": lambda: spki(dsa.generate_private_key(1_024)),
}


@pytest.mark.parametrize("kind", REFUSED_KEYS)
def test_a_public_key_that_cannot_be_used_is_one_line(tmp_path: Path, kind: str) -> None:
    """Given a private key, no key, a short or an unusual one, I expect a start refused that says what is allowed."""
    path = tmp_path / "key.pem"
    path.write_bytes(REFUSED_KEYS[kind]())
    with pytest.raises(
        InvalidSetting, match=r"^LTM_GATEWAY_TOKEN_PUBLIC_KEY is '.*key.pem', .*(give a PEM|allowed: RSA)"
    ):
        token_verifier(load_settings(ltm_gateway_token_public_key=path))


def test_a_public_key_that_is_missing_is_one_line(tmp_path: Path) -> None:
    """Given no file, I expect the reason."""
    with pytest.raises(InvalidSetting, match="which cannot be read: No such file or directory"):
        token_verifier(load_settings(ltm_gateway_token_public_key=tmp_path / "none.pem"))


def test_without_secret_and_key_no_tokens_are_taken() -> None:
    """Given neither setting, I expect nothing that verifies tokens."""
    assert token_verifier(load_settings()) is None
