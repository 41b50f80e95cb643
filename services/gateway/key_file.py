"""The key file, as `ltm key` changes it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from keepsake_client.errors import KeepsakeError
from pydantic import ValidationError

from services.gateway.access import Right
from services.gateway.keys import (
    KeyFileInvalid,
    StoredKey,
    StoredKeys,
    first_problem,
    new_key,
    read_keys,
    utc_now,
)
from services.runtime.private_file import write_private


class KeyRefused(KeepsakeError):
    """`ltm key` refuses: the key, its name or the file does not permit what was asked."""

    code = "key_refused"


class KeyFile:
    """A key file, locked while a command changes it.

    Args:
        path: of the file, which may not be there yet.
        now: the time, with its zone.
    """

    def __init__(self, path: Path, now: Callable[[], datetime] = utc_now) -> None:
        self.path = path
        self._now = now

    def read(self) -> tuple[StoredKey, ...]:
        """The keys, in the order in which they were made.

        Raises:
            KeyRefused: the file cannot be read.
        """
        try:
            return read_keys(self.path).keys
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise KeyRefused(f"{self.path} cannot be read: {error.strerror}") from None
        except KeyFileInvalid as error:
            raise KeyRefused(f"{self.path} is not what `ltm key` writes: {error}") from None

    def create(
        self,
        name: str,
        may: Sequence[Right],
        *,
        user: str | None = None,
        users: str = "",
        agent: str | None = None,
        rate: float | None = None,
        expires: datetime | None = None,
    ) -> str:
        """Make a key, and return it: the file has its hash alone. It replaces one of its name that is not valid.

        Raises:
            KeyRefused: there is a valid key of this name, an argument is not valid, or the file cannot be used.
        """
        with self._locked():
            now, keys = self._now(), self.read()
            if any(key.name == name and key.state(now) == "valid" for key in keys):
                raise KeyRefused(f"there is a key {name!r}: choose another name, or `ltm key rotate {name}`")
            text, secret = new_key()
            try:
                made = StoredKey(
                    name=name,
                    may=tuple(may),
                    user=user,
                    users=users,
                    agent=agent,
                    rate=rate,
                    created=now,
                    expires=expires,
                    secrets=(secret,),
                )
            except ValidationError as error:
                raise KeyRefused(first_problem(error)) from None
            if made.state(now) != "valid":
                raise KeyRefused("expires: must be in the future")
            self._write([*(key for key in keys if key.name != name), made])
        return text

    def revoke(self, name: str) -> None:
        """Revoke a key: no request is permitted with it from now on.

        Raises:
            KeyRefused: there is no such key, or the file cannot be used.
        """
        self._replace(name, lambda key: key.model_copy(update={"revoked": key.revoked or self._now()}))

    def rotate(self, name: str, keep: timedelta) -> str:
        """Give a key a new secret, and return the new key.

        Args:
            keep: for how long the present one stays valid beside it.

        Raises:
            KeyRefused: there is no such key, it is not valid, or the file cannot be used.
        """
        text, secret = new_key()

        def rotated(key: StoredKey) -> StoredKey:
            now = self._now()
            if (state := key.state(now)) != "valid":
                raise KeyRefused(f"the key {name!r} is {state}: make another one with `ltm key create {name}`")
            until = now + keep
            ends = [(old, min(old.until or until, until)) for old in key.secrets]
            kept = [old.model_copy(update={"until": end}) for old, end in ends if end > now]
            return key.model_copy(update={"secrets": (*kept, secret)})

        self._replace(name, rotated)
        return text

    def _replace(self, name: str, change: Callable[[StoredKey], StoredKey]) -> None:
        with self._locked():
            keys = self.read()
            if name not in {key.name for key in keys}:
                raise KeyRefused(f"{self.path} has no key {name!r}: see `ltm key list`")
            self._write([change(key) if key.name == name else key for key in keys])

    def _write(self, keys: Sequence[StoredKey]) -> None:
        content = StoredKeys(keys=tuple(keys)).model_dump_json(indent=2, exclude_none=True)
        place = self.path.resolve()  # a symbolic link stays one
        # As it was given to the gateway's user, who would otherwise not learn of a revocation.
        write_private(place, content + "\n", like=place.stat() if place.exists() else None)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the file within the block, by one beside it: it is itself replaced.

        Raises:
            KeyRefused: it cannot be written.
        """
        place = self.path.resolve()
        try:
            place.parent.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(place.with_name(f"{place.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise KeyRefused(f"{self.path} cannot be written: {error.strerror}") from None
