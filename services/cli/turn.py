"""The turn of `ltm trace`: its searches with their candidates, the prompt, and the reply with what became of it."""

from __future__ import annotations

from datetime import tzinfo
from typing import Final

from keepsake_client.turns import Candidate, Cut

from services.cli.output import Output, described, paragraph, printable
from services.runtime.turn import ReplyMemory, Search, Turn

_VERDICTS: Final = {
    "returned": "returned",
    "below_min_score": "scores less than min_score",
    "over_limit": "behind the last place",
    "with_message": "returned with its message",
    "said_by_fact": "a returned fact says it",
    "same_text": "in the words of a better one",
}
_REPLIES: Final = {
    "indexed": "the reply was remembered",
    "waits": "the reply is on its way to be remembered",
    "not_to_be_remembered": "the reply is not to be remembered (meta.remember is false)",
    "failed": "the reply was not remembered",
    "no_reply": "no reply is known",
    "gone": "whether the reply was remembered is not known: it was not stored, or the record of that is gone",
}


def show_turn(turn: Turn, output: Output, zone: tzinfo) -> None:
    """Print what a turn has besides its trace records."""
    if len(turn.users) > 1:
        users = ", ".join(sorted(turn.users))
        output.line(
            printable(f"this id is one of several users; what follows is of all of them: {users}"), "bold yellow"
        )
    for search in turn.searches:
        if search.record is not None:
            _show_search(search, output, zone)
    record = turn.reply_record
    if record is not None:
        if record.text is not None:
            _show_text("said", record.text, output)
        output.line(f"prompt for {printable(record.model or 'the model')}", "bold")
        for message in turn.prompt or ():
            _show_text(message.role, message.content, output)
        _show_text("replied", "(not recorded)" if record.reply is None else record.reply, output)
    output.line(_remembered(turn.reply_memory), "dim" if turn.reply_memory.why == "no_reply" else "bold")
    for missing in turn.missing:
        output.line(printable(f"not shown: {missing}"), "yellow")


def _show_search(search: Search, output: Output, zone: tzinfo) -> None:
    record = search.record
    if record is None:
        return
    query = "" if record.query is None else f": {record.query}"
    output.line(printable(f"{record.type or 'search'} {search.request_id}{query}"), "bold")
    if record.cut is not None:
        output.line(f"  {_cut(record.cut)}", "dim")
    for place, candidate in enumerate(record.candidates, 1):
        fields = candidate.model_dump(exclude_none=True)
        output.line(f"  {place:>2}  {described(fields, zone)}", "dim" if candidate.verdict != "returned" else None)
        output.line(f"        {_parts(candidate)}: {_VERDICTS[candidate.verdict]}  {printable(candidate.id)}", "dim")


def _cut(cut: Cut) -> str:
    parts = [f"limit {cut.limit}", f"min_score {cut.min_score:g}", f"{cut.ranked:,} ranked"]
    parts += [f"{cut.filtered:,} filtered out"] if cut.filtered else []
    parts += [f"{cut.echoes:,} are the query itself"] if cut.echoes else []
    parts += ["by words alone"] if cut.partial else []
    return ", ".join(parts)


def _parts(candidate: Candidate) -> str:
    return "  ".join(printable(f"{name} {value:+.2f}") for name, value in candidate.parts.items())


def _show_text(name: str, text: str, output: Output) -> None:
    output.line(f"  {printable(name)}: {paragraph(text, '    ')}")


def _remembered(reply: ReplyMemory) -> str:
    detail = f": {printable(reply.detail)}" if reply.detail else ""
    event = f", as message {printable(reply.message_id)}" if reply.message_id else ""
    return f"{_REPLIES[reply.why]}{event}{detail}"
