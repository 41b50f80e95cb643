"""A call with a hard time limit, for libraries whose time-outs begin anew with every byte."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class LimitedCall(Generic[T]):
    """A call in a thread of its own, which is left alone where it does not return in time.

    A daemon thread: one that hangs does not keep the process from ending.

    Args:
        function: what is called.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._returned: T | None = None
        self._raised: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="provider-call", daemon=True)

    @property
    def running(self) -> bool:
        """Whether it has not returned yet."""
        return self._thread.is_alive()

    def result(self, timeout_s: float) -> T:
        """Make the call, and wait for what it returns or raises.

        Raises:
            TimeoutError: it has not returned in time; it goes on.
        """
        self._thread.start()
        self._thread.join(max(timeout_s, 0.0))
        if self.running:
            raise TimeoutError("the call has not returned in time")
        if self._raised is not None:
            raise self._raised
        return self._returned  # type: ignore[return-value]  # it has returned a T

    def _run(self) -> None:
        try:
            self._returned = self._function()
        except Exception as error:  # noqa: BLE001 - raised again by `result`
            self._raised = error
