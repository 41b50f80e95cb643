"""The page of a turn, as a viewer sees it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import fakeredis
import pytest
import redis
from keepsake_client.protocol import clean
from keepsake_client.turns import Candidate, Cut, TurnRecord, Verdict

from services.gateway.access import ALL_RIGHTS, Caller, Right
from services.gateway.console import feed
from services.gateway.console.texts import read_texts
from services.gateway.console.turn_facts import CutReason, main_part, options_of, place_of_cut, reason_of_cut
from services.gateway.turn_lookup import TurnLookup
from services.runtime import turn_reader
from services.runtime.turn import Missing, ReplyMemory, Turn
from tests.support import eventually
from tests.unit.console_app import ConsoleApp, look
from tests.unit.console_records import HOSTILE, Pipeline, candidate
from tests.unit.gateway_app import MEMORY

CONTRACT = Path(__file__).parents[2] / "docs/contract.md"


@pytest.fixture(autouse=True)
def servers(monkeypatch: pytest.MonkeyPatch) -> list[fakeredis.FakeServer]:
    """Where a lookup connects to: the test puts its server in."""
    known: list[fakeredis.FakeServer] = []

    def connect(_: str) -> redis.Redis:
        return fakeredis.FakeRedis(server=known[0])

    monkeypatch.setattr(turn_reader, "connect", connect)
    return known


def test_an_id_that_is_being_typed_is_not_set_back(servers: list[fakeredis.FakeServer]) -> None:
    """Given a page, which a browser draws anew when the turn has come, I expect the id to be a beginning alone."""

    async def story(app: ConsoleApp) -> None:
        servers.append(app.server)
        await app.user.open("/console/turn?id=m1")
        elements = list(app.user.client.elements.values()) if app.user.client else []
        [field] = [element.props for element in elements if element.tag == "input"]
        assert (field["defaultValue"], field.get("value")) == ("m1", None)

    look(story)


def test_the_first_screen_goes_from_the_words_to_the_reply(servers: list[fakeredis.FakeServer]) -> None:
    """Given a turn, I expect what was said, what was found and why, what the model was told, and the reply."""

    async def story(app: ConsoleApp) -> None:
        servers.append(app.server)
        await Pipeline(app.redis).whole("Where is Anna?", "In Lisbon.")
        await app.user.open("/console/turn?id=m1")
        await app.user.should_see("Where is Anna?", retries=30)
        await app.user.should_see("Remembered, 500 ms after it was published")
        await app.user.should_see("1 of 14 memories, in 120 ms of 600 ms")
        await app.user.should_see("Anna lives in Lisbon")
        await app.user.should_see("mainly by meaning")
        await app.user.should_see("You are kind.")
        await app.user.should_see("In Lisbon.")
        await app.user.should_see("The reply was remembered.")
        await app.user.should_see("what scores below 0.09 is not returned")
        await app.user.should_see("score too low")

    look(story)


@pytest.mark.parametrize("how", ["forget", "delete"])
def test_an_open_page_loses_the_words_that_are_erased(
    servers: list[fakeredis.FakeServer], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Given an open page, and a user who is forgotten, or a memory that is deleted, I expect the words gone."""
    monkeypatch.setattr(feed, "POLL_S", 0.05)
    monkeypatch.setattr(feed, "RENEW_S", 0.05)

    async def story(app: ConsoleApp) -> None:
        servers.append(app.server)
        pipeline = Pipeline(app.redis)
        await pipeline.whole("Where is Anna?", "In Lisbon.")
        await app.user.open("/console/turn?id=m1")
        await app.user.should_see("In Lisbon.", retries=30)
        await (pipeline.forget() if how == "forget" else pipeline.delete())
        await app.user.should_not_see("In Lisbon.", retries=100)
        for words in ("Where is Anna?", "Anna lives in Lisbon", "You are kind."):
            await app.user.should_not_see(words)

    look(story)


def test_a_reply_that_is_recorded_as_the_contract_says_is_shown(servers: list[fakeredis.FakeServer]) -> None:
    """Given a chat service that runs the example of docs/contract.md, I expect its prompt and reply on the page."""
    example = re.search(r"```python\n(import time\n.*?TurnRecord\(.*?)```", CONTRACT.read_text(), re.DOTALL)
    assert example is not None

    async def story(app: ConsoleApp) -> None:
        servers.append(app.server)
        await Pipeline(app.redis, "u1").message("8f14e45f")
        exec(example[1], {"redis": fakeredis.FakeRedis(server=app.server)})
        await app.user.open("/console/turn?id=8f14e45f")
        await app.user.should_see("Mochi, as you told me.", retries=30)
        await app.user.should_see("You know: the cat is called Mochi.")
        await app.user.should_see("a-model")

    look(story)


def test_an_open_page_stays_as_it_is_when_another_user_is_forgotten(
    servers: list[fakeredis.FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an open page, and another user who is forgotten, I expect what is shown not to be drawn anew."""
    monkeypatch.setattr(feed, "POLL_S", 0.05)
    followed: list[str] = []
    follow = TurnLookup.follow

    async def follow_counting(lookup: TurnLookup, identifier: str) -> Turn:
        followed.append(identifier)
        return await follow(lookup, identifier)

    monkeypatch.setattr(TurnLookup, "follow", follow_counting)

    async def story(app: ConsoleApp) -> None:
        servers.append(app.server)
        await Pipeline(app.redis).whole("Where is Anna?", "In Lisbon.")
        await app.user.open("/console/turn?id=m1")
        await app.user.should_see("In Lisbon.", retries=30)
        [shown] = app.user.find("In Lisbon.").elements
        for reads in (2, 3, 4):
            await Pipeline(app.redis, "").search("r-forget", type="user_forget")
            await eventually(lambda: len(followed) >= reads)  # noqa: B023 - at once
        assert len(followed) == 4
        await app.user.should_see("In Lisbon.")
        assert app.user.find("In Lisbon.").elements == {shown}

    look(story)


def test_what_is_missing_is_said_with_its_reason(servers: list[fakeredis.FakeServer]) -> None:
    """Given traces alone, with LTM_TURNS=off, I expect the times, and why there are no candidates and no prompt."""

    async def story(app: ConsoleApp) -> None:
        servers.append(app.server)
        pipeline = Pipeline(app.redis)
        await pipeline.message()
        await pipeline.search()
        await pipeline.reply()
        await app.user.open("/console/turn?id=m1")
        await app.user.should_see("prompt and reply: LTM_TURNS is off", retries=30)
        await app.user.should_see("indexed: it can be found")

    look(story, ltm_turns="off")


def test_of_an_unknown_id_it_asks_whose_memory_it_is(servers: list[fakeredis.FakeServer]) -> None:
    """Given the id of a memory, I expect a field for the user, and with it the turn that the memory is of."""

    async def story(app: ConsoleApp) -> None:
        servers.append(app.server)
        await Pipeline(app.redis).whole()
        app.memory.answer = lambda *_: {"memories": [{**MEMORY, "metadata": {"message_id": "m1"}}]}
        await app.user.open(f"/console/turn?id={MEMORY['id']}")
        await app.user.should_see("Nothing is known of this id", retries=30)
        await app.user.should_see("User id")
        await app.user.open(f"/console/turn?id={MEMORY['id']}&user=anna")
        await app.user.should_see("In Lisbon.", retries=30)

    look(story)


@pytest.mark.parametrize(
    "caller",
    [Caller("k", ALL_RIGHTS, user="bert"), Caller("k", ALL_RIGHTS, user="anna", agent="luna")],
    ids=["of another user", "of one agent"],
)
def test_a_key_of_others_sees_nothing(servers: list[fakeredis.FakeServer], caller: Caller) -> None:
    """Given a key that is not for the user of the turn, I expect no word of it, and not the user's id."""

    async def story(app: ConsoleApp) -> None:
        servers.append(app.server)
        await Pipeline(app.redis).whole("Where is Lisbon?")
        app.keys.of = caller
        await app.user.open("/console/turn?id=m1")
        await app.user.should_see("may not see them" if caller.agent is None else "That did not work", retries=30)
        await app.user.should_not_see("Lisbon")
        await app.user.should_not_see("anna")

    look(story)


def test_names_of_speakers_are_contents() -> None:
    """Given who asks, and whose words are asked for, I expect their names only where contents may be seen."""
    options = {"limit": 3, "speaker": {"name": "Anna"}, "filters": {"speaker": "Ben", "source": "user"}}
    record = TurnRecord(kind="search", at=1, options=options)

    assert options_of(record, names=True) == options
    assert options_of(record, names=False) == {"limit": 3, "filters": {"source": "user"}}


def test_contents_are_hidden_from_a_key_without_the_right_to_read(servers: list[fakeredis.FakeServer]) -> None:
    """Given a key that may only trace, I expect figures and times, and of contents their length alone."""

    async def story(app: ConsoleApp) -> None:
        servers.append(app.server)
        await Pipeline(app.redis).whole("Where is Anna?", "In Lisbon.")
        app.keys.of = Caller("operator", frozenset({Right.TRACE}))
        await app.user.open("/console/turn?id=m1")
        await app.user.should_see("14 characters, hidden", retries=30)
        await app.user.should_see("score too low")
        for secret in ("Where is Anna?", "In Lisbon.", "You are kind.", "Anna lives in Lisbon"):
            await app.user.should_not_see(secret)

    look(story)


def test_hostile_contents_are_text(servers: list[fakeredis.FakeServer]) -> None:
    """Given texts of every kind as words, memories, prompts and replies, I expect each as text, the long one cut."""

    async def story(app: ConsoleApp) -> None:
        servers.append(app.server)
        pipeline = Pipeline(app.redis)
        memories = [candidate(words) for words in HOSTILE]
        prompt = [{"role": words[:50], "content": words} for words in HOSTILE]
        cut = {"min_score": 0.09, "limit": 5, "ranked": 14}
        await pipeline.search(type="search")
        await pipeline.turn("search", request_id="r1", query=HOSTILE[0], candidates=memories, cut=cut)
        await pipeline.turn("reply", request_id="r1", text=HOSTILE[1], reply=HOSTILE[2], prompt=prompt)
        await app.user.open("/console/turn?id=r1")
        await app.user.should_see("Prompt, role by role", retries=30)
        for words in HOSTILE:
            await app.user.should_see(str(clean(words))[:100])
        await app.user.should_see("Show all 30000 characters")

    look(story)


def candidates(*verdicts: str) -> list[Candidate]:
    return [Candidate.model_validate(candidate("x", 0.5, verdict)) for verdict in verdicts]


@pytest.mark.parametrize(
    ("verdicts", "place", "reason"),
    [
        (("returned", "returned", "over_limit"), 2, "limit"),
        (("returned", "said_by_fact", "returned", "below_min_score"), 3, "min_score"),
        (("below_min_score",), 0, "none_reached"),
        (("returned", "same_text"), 1, "all"),
        ((), 0, "nothing_ranked"),
    ],
)
def test_the_cut_falls_behind_the_last_that_was_returned(verdicts: tuple[str, ...], place: int, reason: str) -> None:
    """Given what became of the candidates, I expect the place of the cut, and why it is there."""
    found = candidates(*verdicts)
    cut = Cut(min_score=0.09, limit=2, ranked=len(found))
    assert (place_of_cut(found), reason_of_cut(found, cut)) == (place, reason)


def test_the_main_part_is_what_speaks_most_for_a_memory() -> None:
    """Given parts of a score, I expect the largest; of those that speak against it, none."""
    assert main_part(Candidate.model_validate(candidate("x"))) == "meaning"
    assert main_part(Candidate.model_validate(candidate("x", parts={"meaning": -1.0}))) is None


def test_every_state_has_its_words_in_both_languages() -> None:
    """Given what may become of candidates and replies, and what may be missing, I expect a text for each."""
    fields = {"why": Missing.model_fields["why"], "missing": Missing.model_fields["what"]}
    needed = {f"{prefix}_{name}" for prefix, field in fields.items() for name in get_args(field.annotation)}
    needed |= {f"verdict_{name}" for name in get_args(Verdict)} | {f"cut_{name}" for name in get_args(CutReason)}
    needed |= {f"reply_{name}" for name in get_args(ReplyMemory.model_fields["why"].annotation)}
    texts = read_texts("turn")
    assert {name: {"en", "zh"} for name in needed} == {name: set(texts.get(name, ())) for name in needed}
