"""Visibility: an access filter, which records of traces and turns a caller sees."""

from __future__ import annotations

from dataclasses import dataclass

from services.gateway.access import Caller
from services.runtime.logging import user_id_hasher
from services.runtime.settings import Settings
from services.runtime.trace_reader import Trace
from services.runtime.turn import ReplyMemory, Search, Turn


@dataclass(frozen=True)
class Visibility:
    """Which records a caller sees: those of its users. Where users are hashed, a prefix of ids matches none.

    Args:
        sees_all: records of all users, and what waits, which does not say whose it is.
        user: the only user, as records name it; None for others, see `prefix`.
        prefix: of the ids of users; "" for none.
    """

    sees_all: bool = False
    user: str | None = None
    prefix: str = ""

    @classmethod
    def of(cls, caller: Caller, settings: Settings) -> Visibility:
        """What a caller sees.

        Raises:
            NotPermitted: the key is for one character; a record does not say which one it is about.
        """
        caller.agent_of(None, all_agents=True)
        return cls(
            sees_all=caller.user is None and not caller.users,
            user=None if caller.user is None else user_id_hasher(settings)(caller.user),
            prefix=caller.users if settings.ltm_log_user_ids else "",
        )

    def sees(self, user: str) -> bool:
        """Whether the records of a user are seen.

        Args:
            user: as a record names it: its id, or the hash of it.
        """
        if self.user is not None:
            return user == self.user
        return self.sees_all or (self.prefix != "" and user.startswith(self.prefix))

    def part_of(self, trace: Trace) -> Trace:
        """What is seen of a trace."""
        if self.sees_all:
            return trace
        return Trace(id=trace.id, records=[record for record in trace.records if self.sees(record.user)])

    def part_of_turn(self, turn: Turn) -> Turn:
        """What is seen of a turn: nothing of other users, with whom it may share an id."""
        if self.sees_all:
            return turn
        message, reply_trace, reply = turn.message, turn.reply_trace, turn.reply_record
        searches = [search for search in turn.searches if self._sees_search(search)]
        sees_reply = reply is not None and self.sees(reply.user) and len(searches) == len(turn.searches)
        is_own = turn.user != "" and self.sees(turn.user)
        queries = [search.record.query for search in searches if search.record]
        return Turn(
            id=turn.id,
            user=turn.user if is_own else "",
            at=turn.at if is_own else None,
            message=message if message and self.sees(message.user) else None,
            text=reply.text if reply and sees_reply else next(iter(queries), None),
            searches=searches,
            reply_trace=reply_trace if reply_trace and self.sees(reply_trace.user) else None,
            reply_record=reply if sees_reply else None,
            reply_memory=turn.reply_memory if sees_reply else ReplyMemory(state="unknown", why="no_reply"),
            missing=turn.missing if is_own else [],
            trace=self.part_of(turn.trace),
        )

    def _sees_search(self, search: Search) -> bool:
        """Whether a search is seen: its user, and those of `also`, whose memories it ranked, too."""
        users = {record.user for record in (search.trace, search.record) if record is not None}
        also = search.record.options.get("also") if search.record else None
        others = {str(user) for user in also} if isinstance(also, list) else {str(also)} if also else set()
        return all(self.sees(user) for user in users | others)
