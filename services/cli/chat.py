"""`ltm chat`: talk to the bot in the terminal."""

from __future__ import annotations

import io
import sys
import uuid
from contextlib import suppress
from datetime import tzinfo
from typing import Annotated, Any

import typer
from keepsake_client.errors import RequestFailed, RequestTimeout

from services.cli.conversation import Conversation, channels
from services.cli.options import DEFAULT_DATA_DIRECTORY, Agent, As, DataDir, found_stack
from services.cli.output import Output, described, paragraph
from services.cli.subscription import subscribed
from services.runtime.redis import connect

with suppress(ImportError):  # not every Python has it
    import readline  # noqa: F401  # importing it gives input() cursor keys and a history, in memory alone

COMMANDS = "/memories lists the memories used for the last reply, /quit leaves, //text says /text."


def chat(
    user: Annotated[str, typer.Option(metavar="NAME", help="Your user id; the bot remembers you by it.")] = "you",
    agent: Agent = None,
    speaker: As = None,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Talk to the bot. /memories lists the memories used for its last reply, /quit leaves."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that the terminal's encoding does not have end no conversation
    stack, output = found_stack(data_dir), Output()
    client = connect(stack.redis_url)
    with subscribed(client, *channels(stack.settings)) as events:
        session = f"chat-{uuid.uuid4().hex[:8]}"
        conversation = Conversation(
            client, stack.settings, events, user, session, "terminal", agent_id=agent, speaker=speaker
        )
        conversation.check_running()
        if sys.stdin.isatty():
            output.line(f"You are {speaker + ' in ' if speaker else ''}{user}. {COMMANDS}", "dim")
        unanswered = Chat(conversation, output, stack.settings.timezone).run()
    raise typer.Exit(1 if unanswered else 0)


class Chat:
    """The dialogue in the terminal: messages to the bot, and commands, which begin with a slash.

    Args:
        zone: the time zone of the memories' dates.
    """

    def __init__(self, conversation: Conversation, output: Output, zone: tzinfo) -> None:
        self._conversation = conversation
        self._output = output
        self._zone = zone
        self._memories: list[dict[str, Any]] = []
        self._unanswered = 0

    def run(self) -> int:
        """Converse until the user leaves; the number of messages without a reply."""
        while (line := read_line()) is not None and line.lower() != "/quit":
            if line.lower() == "/memories":
                self._show_memories()
            elif line.startswith("/") and not line.startswith("//"):
                unknown = "" if line.lower() == "/help" else f"There is no command {line.split()[0]}. "
                self._output.line(f"  {unknown}{COMMANDS}", "dim")
            elif line:
                self._send(line.removeprefix("/"))
        return self._unanswered

    def _send(self, content: str) -> None:
        try:
            message_id = self._conversation.wait_until_stored(self._conversation.send(content))
            reply = self._conversation.wait_for_reply(message_id)
        except (RequestTimeout, RequestFailed) as error:
            self._unanswered += 1
            rejected = "rejected: " if isinstance(error, RequestFailed) else ""
            self._output.line(f"  {rejected}{error}", "bold red")
            return
        self._memories = [memory for memory in reply.get("memories") or [] if isinstance(memory, dict)]
        self._output.line("bot> " + paragraph(str(reply.get("text")), "     "), "bold")

    def _show_memories(self) -> None:
        for memory in self._memories:
            self._output.line(f"  {described(memory, self._zone)}", "cyan")
        if not self._memories:
            self._output.line("  none were used", "dim")


def read_line() -> str | None:
    """One line of input, or None at its end."""
    try:
        # No prompt where the input is piped: the output has the replies alone.
        line = input("you> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None
    # The slash of Chinese and Japanese keyboards begins a command too.
    return f"/{line[1:]}" if line.startswith("／") else line
