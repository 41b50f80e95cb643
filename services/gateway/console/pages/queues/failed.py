"""What failed: dead letters, which can be replayed and dropped, and what was not understood."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from nicegui import ui
from redis.exceptions import RedisError

from services.gateway.access import Right
from services.gateway.console.components import (
    attempted,
    button,
    confirmed,
    content,
    empty,
    heading,
    loaded,
    moment,
    panel,
    span,
)
from services.gateway.console.depths import DepthSampler
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import Viewer
from services.runtime.dead_letters import DeadLetter
from services.runtime.failed_messages import FailedMessages
from services.runtime.rejected import MAX_ENTRIES, Reject

#: Of each, the newest that are listed.
LISTED: Final = 50
#: Of what a message says of itself, such as its actor, outside its payload.
SHOWN_CHARS: Final = 200


@dataclass(frozen=True)
class _Actions:
    """What can be done with dead letters: each asks, does it, logs who did it, and shows the list anew."""

    viewer: Viewer
    text: Texts
    failed: FailedMessages
    show_anew: Callable[[], Awaitable[None]]

    async def replay(self, letter: DeadLetter) -> None:
        await self._do("dead_letter_replayed", letter, self.failed.replay)

    async def drop(self, letter: DeadLetter) -> None:
        lines = [self.text("drop_loses"), f"{letter.queue} · {letter.actor[:SHOWN_CHARS]} · {letter.id}"]
        if await confirmed(self.text, self.text("drop_it"), lines, self.text("drop")):
            await self._do("dead_letter_dropped", letter, self.failed.drop)

    async def replay_all(self, queue: str, number: int) -> None:
        lines = [self.text("replay_all_does", queue=queue)]
        action = self.text("replay_all", n=f"{number:,}", queue=queue)
        if not await confirmed(self.text, self.text("replay_all_of", queue=queue), lines, action):
            return

        replayed = await self._done("dead_letters_replayed", partial(self.failed.replay_all, queue), queue=queue)
        if replayed is not None:
            ui.notify(self.text("replayed_all", n=f"{replayed:,}", queue=queue))
            await self.show_anew()

    async def _do(self, what: str, letter: DeadLetter, work: Callable[[str], Awaitable[bool]]) -> None:
        done = await self._done(what, partial(work, letter.id), queue=letter.queue, letter_id=letter.id)
        if done is not None:
            ui.notify(self.text(what if done else "gone"))
            await self.show_anew()

    async def _done(self, what: str, work: Callable[[], Awaitable[int]], **ids: str) -> int | None:
        """How many were changed, which is logged: also where Redis did not answer, as some may be all the same."""

        async def do() -> int:
            self.viewer.permit(Right.OPERATE)
            try:
                number = await work()
            except RedisError:
                self.viewer.changed(what, **ids, outcome="unavailable")
                raise
            if number:
                self.viewer.changed(what, **ids, number=int(number))
            return number

        return await attempted(self.text, do())


def dead_letters(viewer: Viewer, text: Texts, failed: FailedMessages, sampler: DepthSampler) -> None:
    """Show the newest dead letters."""
    with panel(text("dead_letters")):
        place = ui.element("div")

        async def show_anew() -> None:
            await sampler.refresh(0)
            fill()

        def fill() -> None:
            place.clear()
            with place:
                loaded(text, lambda: failed.dead_letters(LISTED), show)

        def show(letters: list[DeadLetter]) -> None:
            numbers = {queue: states["dead"] for queue, states in sampler.figures.queues.items() if states["dead"]}
            if not letters:
                empty(text("no_dead_letters"))
                return
            total = max(len(letters), sum(numbers.values()))
            if total > len(letters):
                empty(text("newest_of", n=len(letters), total=f"{total:,}"), "ltm dead list")
            if viewer.may(Right.OPERATE):
                with ui.element("div").classes("actions"):
                    for queue, number in numbers.items():
                        label = text("replay_all", n=f"{number:,}", queue=queue)
                        button(label, partial(actions.replay_all, queue, number))
            for letter in letters:
                _letter(viewer, text, letter, actions)

        actions = _Actions(viewer, text, failed, show_anew)
        fill()


def _letter(viewer: Viewer, text: Texts, letter: DeadLetter, actions: _Actions) -> None:
    with ui.element("details").classes("letter"):
        with ui.element("summary"):
            moment(viewer, text, letter.died_at)
            span(letter.queue, "where")
            span(letter.actor[:SHOWN_CHARS], "where")
            span(letter.error[:SHOWN_CHARS], "bad")
        with ui.element("p").classes("quiet"):
            span(text("letter", id=letter.id, tries=letter.tries))
        heading(text("payload"), 3)
        whole = letter.raw.decode("utf-8", "replace") if letter.message is None else _as_json(letter.payload)
        content(viewer, text, whole)
        if letter.traceback:
            heading(text("traceback"), 3)
            content(viewer, text, letter.traceback)
        if viewer.may(Right.OPERATE):
            with ui.element("div").classes("actions"):
                if letter.message is not None:
                    button(text("replay"), partial(actions.replay, letter))
                button(text("drop"), partial(actions.drop, letter), danger=True)


def rejects(viewer: Viewer, text: Texts, failed: FailedMessages) -> None:
    """Show the newest messages that were not understood."""

    def show(found: list[Reject]) -> None:
        if not found:
            empty(text("no_rejects"))
            return
        if len(found) == LISTED:
            empty(text("newest_rejects", n=LISTED, kept=f"{MAX_ENTRIES:,}"))
        for reject in found:
            with ui.element("details").classes("letter"):
                with ui.element("summary"):
                    moment(viewer, text, reject.rejected_at)
                    span(reject.at[:SHOWN_CHARS], "where")
                    span(reject.reason[:SHOWN_CHARS], "bad")
                heading(text("payload"), 3)
                content(viewer, text, reject.message)

    with panel(text("rejected")):
        loaded(text, lambda: failed.rejects(LISTED), show)


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1)
