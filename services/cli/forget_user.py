"""`ltm forget USER --everything`: deletes everything that is kept of a user."""

from __future__ import annotations

from pathlib import Path

from keepsake_client.errors import RequestTimeout

from services.cli.options import found_stack
from services.cli.output import Output, confirm, memories_word
from services.stack.probe import client_of

#: What the request does not reach; docs/security.md says more.
_NOT_REACHED = "Backups, the logs of servers and what other programs keep are not reached: see docs/security.md."


def forget_everything(user: str, *, dry_run: bool, yes: bool, timeout_s: float, data_dir: Path) -> None:
    """Delete everything of a user, once that is confirmed at the prompt; or only count the memories."""
    output, deadline_ms = Output(), round(timeout_s * 1000)
    with client_of(found_stack(data_dir).settings) as client:
        try:
            count = client.user_forget(user, dry_run=True, deadline_ms=deadline_ms).count or 0
            if dry_run:
                output.line(f"{memories_word(count)} and everything else of {user!r} would be deleted")
                return
            question = f"Delete {memories_word(count)} and everything else of {user!r}? It cannot be undone."
            if not yes:
                confirm(question)
            count = client.user_forget(user, deadline_ms=deadline_ms).count or 0
        except RequestTimeout as error:
            raise RequestTimeout(f"{error}; it may be done or not: run the command again, see `ltm status`") from None
    output.line(f"forgotten: {memories_word(count)} and everything else of {user!r}")
    output.line(_NOT_REACHED, "dim")
