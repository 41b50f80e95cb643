"""Keys: what the key file holds of them, and the store that looks one up and reads the file again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

import structlog
from keepsake_client.errors import KeepsakeError
from keepsake_client.fields import Id
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from services.gateway.access import Right, Unauthorized

MAX_RATE = 1_000_000
_KEY = re.compile(r"ltm_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")

log = structlog.get_logger()


class KeyFileInvalid(KeepsakeError):
    """The key file is not what `ltm key` writes."""

    code = "key_file_invalid"


class _Stored(BaseModel):
    """Base of what is in the key file: an unknown field may restrict a key, so it is an error, and not ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredSecret(_Stored):
    """What is kept of a secret: enough to recognise it, and too little to know it.

    A plain SHA-256 is enough: the secret is 256 random bits, which no list of guesses holds, however fast the hash.

    Attributes:
        id: the part of the key by which it is looked up; no secret.
        sha256: of the whole key, in hexadecimal digits.
        until: set by a rotation: until when it stays valid beside its successor.
    """

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    until: AwareDatetime | None = None


class StoredKey(_Stored):
    """A key, as the key file has it.

    Attributes:
        name: by which `ltm key` and the log call it.
        may: its rights.
        user: the only user that it is for.
        users: the prefix of the ids of users that it is for; "" for all.
        agent: the only character that it is for.
        rate: requests a second; 0 for any number, None for LTM_GATEWAY_RATE.
        secrets: the present one last.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    may: tuple[Right, ...] = Field(min_length=1)
    user: Id | None = None
    users: str = ""
    agent: Id | None = None
    rate: float | None = Field(default=None, ge=0, le=MAX_RATE, allow_inf_nan=False)
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    secrets: tuple[StoredSecret, ...] = Field(min_length=1)

    def state(self, now: datetime) -> Literal["valid", "expired", "revoked"]:
        """Whether it is valid and, if not, why."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"


class StoredKeys(_Stored):
    """The content of the key file.

    Attributes:
        version: of its form.
        keys: in the order in which they were made.
    """

    version: Literal[1] = 1
    keys: tuple[StoredKey, ...] = ()

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [key.name for key in self.keys]
        ids = [secret.id for key in self.keys for secret in key.secrets]
        if len(set(names)) < len(names) or len(set(ids)) < len(ids):
            raise ValueError("a name or id occurs twice")
        return self


def new_key() -> tuple[str, StoredSecret]:
    """A random key, and what is kept of it."""
    key_id = secrets.token_hex(8)
    key = f"ltm_{key_id}_{secrets.token_urlsafe(32)}"
    return key, StoredSecret(id=key_id, sha256=_digest(key))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> StoredKeys:
    """The content of a key file.

    Raises:
        OSError: it cannot be read.
        KeyFileInvalid: one line that names the field, and no value.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device may have no end
        raise KeyFileInvalid("it is no regular file")
    return parse_keys(path.read_bytes())


def parse_keys(raw: bytes) -> StoredKeys:
    """The content of a key file, as `read_keys` has it.

    Raises:
        KeyFileInvalid
    """
    try:
        return StoredKeys.model_validate_json(raw)
    except ValidationError as error:
        raise KeyFileInvalid(first_problem(error)) from None


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line without the value."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # The name of an unknown field may be anything.
    where = "".join(char if char.isprintable() else "?" for char in ".".join(map(str, problem["loc"])))[:100]
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}" if where else reason


def utc_now() -> datetime:
    """The time, by the system's clock."""
    return datetime.now(UTC)


class KeyStore:
    """The keys of a file, which is read again when it changes.

    Args:
        path: of the file; None for no keys.
        count_failure: called when the file cannot be used, once for each cause.
        now: the time, with its zone.
    """

    def __init__(
        self, path: Path | None, count_failure: Callable[[], None], now: Callable[[], datetime] = utc_now
    ) -> None:
        self.path = path
        #: Whether the file has been there since the process started; if so, no request is permitted without a key.
        self.seen = False
        self._count_failure = count_failure
        self._now = now
        self._keys: dict[str, tuple[StoredKey, StoredSecret]] = {}
        self._version: tuple[int, ...] | None = None
        self._problem: str | None = None

    def read(self) -> None:
        """Read the file if it has changed; where it is gone, there are no keys.

        Raises:
            OSError, KeyFileInvalid: it cannot be used, and the keys are those of before.
        """
        if self.path is None:
            return
        try:
            found = self.path.stat()  # of what a symbolic link leads to: Kubernetes replaces a secret by swapping one
        except (FileNotFoundError, NotADirectoryError):
            if self._version is not None:
                log.warning("keys_gone", file=str(self.path))
            self._keys, self._version = {}, None
            return
        self.seen = True
        version = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if version == self._version:
            return
        stored = read_keys(self.path)
        self._keys = {secret.id: (key, secret) for key in stored.keys for secret in key.secrets}
        self._version = version
        log.info("keys_read", file=str(self.path), keys=len(stored.keys), valid=len(self.valid()))

    def refresh(self) -> None:
        """`read`, and log and count once why the file cannot be used: the keys stay those of before meanwhile."""
        try:
            self.read()
        except (OSError, KeyFileInvalid) as error:
            self.seen = True
            reason = error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
            if reason != self._problem:
                self._count_failure()
                log.warning("keys_unusable", file=str(self.path), reason=reason)
            self._problem = reason
        else:
            self._problem = None

    def valid(self) -> list[str]:
        """The names of the valid keys."""
        now = self._now()
        return sorted({key.name for key, _ in self._keys.values() if key.state(now) == "valid"})

    def find(self, key: str) -> StoredKey:
        """The key that a request brings.

        Raises:
            Unauthorized: it is unknown or, which only its bearer is told, revoked or expired.
        """
        parts = _KEY.fullmatch(key)
        stored, secret = self._keys.get(parts[1] if parts else "", (None, None))
        if stored is None or secret is None or not hmac.compare_digest(secret.sha256, _digest(key)):
            raise Unauthorized("this key is not known")
        now = self._now()
        if (state := stored.state(now)) != "valid":
            raise Unauthorized(f"this key is {state}: ask for another one")
        if secret.until is not None and secret.until <= now:
            raise Unauthorized("this key was rotated, and its time is over: use the new one")
        return stored
