"""`ltm chat`: talk to the bot in the terminal."""

from __future__ import annotations

import sys
import uuid
from typing import Annotated, Any

import typer
from keepsake_client.errors import RequestTimeout

from services.cli.conversation import Conversation, channels
from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, found_stack
from services.cli.output import Output, described, paragraph
from services.stack.wire import connect, subscribed


def chat(
    user: Annotated[str, typer.Option(metavar="NAME", help="Who you are; the bot remembers by this name.")] = "you",
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Talk to the bot. /memories lists what was used for its last reply, /quit leaves."""
    stack, output = found_stack(data_dir), Output()
    client = connect(stack.redis_url)
    with subscribed(client, *channels(stack.settings)) as events:
        session = f"chat-{uuid.uuid4().hex[:8]}"
        talk = Conversation(client, stack.settings, events, user, session, "terminal")
        output.line(f"You are {user}. /memories lists what was used for the last reply, /quit leaves.", "dim")
        unanswered = _converse(talk, output)
    raise typer.Exit(1 if unanswered else 0)


def _converse(talk: Conversation, output: Output) -> int:
    """Converse until the user leaves; how many messages had no reply."""
    memories: list[dict[str, Any]] = []
    unanswered = 0
    while (said := _read_line()) not in {None, "/quit"}:
        if said == "/memories":
            for memory in memories:
                output.line(f"  {described(memory)}", "cyan")
            if not memories:
                output.line("  none were used", "dim")
        elif said:
            try:
                reply = talk.replied(talk.stored(talk.say(said)))
            except RequestTimeout as error:
                unanswered += 1
                output.line(f"  {error}", "bold red")
                continue
            memories = [memory for memory in reply.get("memories") or [] if isinstance(memory, dict)]
            output.line("bot> " + paragraph(str(reply.get("text")), "     "), "bold")
    return unanswered


def _read_line() -> str | None:
    """What the user typed, or None at the end of the input."""
    try:
        # A prompt is for people; piped input leaves the output to the replies.
        return input("you> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None
