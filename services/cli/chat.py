"""`ltm chat`: talk to the bot in the terminal."""

from __future__ import annotations

import readline  # noqa: F401  # importing it gives input() cursor keys and a history
import sys
import uuid
from typing import Annotated, Any

import typer
from keepsake_client.errors import RequestTimeout

from services.cli.conversation import Conversation, channels
from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, found_stack
from services.cli.output import Output, described, paragraph
from services.cli.subscription import subscribed
from services.runtime.redis import connect


def chat(
    user: Annotated[str, typer.Option(metavar="NAME", help="Your user id; the bot remembers you by it.")] = "you",
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Talk to the bot. /memories lists the memories used for its last reply, /quit leaves."""
    stack, output = found_stack(data_dir), Output()
    client = connect(stack.redis_url)
    with subscribed(client, *channels(stack.settings)) as events:
        session = f"chat-{uuid.uuid4().hex[:8]}"
        conversation = Conversation(client, stack.settings, events, user, session, "terminal")
        conversation.check_running()
        output.line(f"You are {user}. /memories lists the memories used for the last reply, /quit leaves.", "dim")
        unanswered = _converse(conversation, output)
    raise typer.Exit(1 if unanswered else 0)


def _converse(conversation: Conversation, output: Output) -> int:
    """Converse until the user leaves; the number of messages without a reply."""
    memories: list[dict[str, Any]] = []
    unanswered = 0
    while (line := read_line()) not in {None, "/quit"}:
        if line == "/memories":
            for memory in memories:
                output.line(f"  {described(memory)}", "cyan")
            if not memories:
                output.line("  none were used", "dim")
        elif line:
            try:
                reply = conversation.wait_for_reply(conversation.wait_until_stored(conversation.send(line)))
            except RequestTimeout as error:
                unanswered += 1
                output.line(f"  {error}", "bold red")
                continue
            memories = [memory for memory in reply.get("memories") or [] if isinstance(memory, dict)]
            output.line("bot> " + paragraph(str(reply.get("text")), "     "), "bold")
    return unanswered


def read_line() -> str | None:
    """One line of input, or None at its end."""
    try:
        # No prompt where the input is piped: the output has the replies alone.
        return input("you> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None
