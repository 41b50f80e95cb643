"""Search with the real embedder on a real PostgreSQL: what is returned, what is not, and the fields of a request."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from keepsake_client.protocol import AddData, MemoryUpdateMessage, SearchData

from services.long_term_memory.memory_service import MemoryService
from services.runtime.errors import Expired

T = TypeVar("T")

DAY = 86_400.0
NOW = 1_700_000_000.0

CHATTER = [
    "Good morning!",
    "The train was late again",
    "I had soup for lunch",
    "It rained all afternoon",
    "My boss wants the report by Friday",
    "I watched an old film yesterday",
]


def say(service: MemoryService, *contents: str, user_id: str = "u1", **more: Any) -> None:
    """Index utterances, a minute apart, an hour ago unless given otherwise."""
    begin = more.pop("timestamp", NOW - 3_600)
    service.index_many(
        [
            MemoryUpdateMessage(
                **{"user_id": user_id, "content": content, "source": "user", "timestamp": begin + 60 * place, **more}
            )
            for place, content in enumerate(contents)
        ]
    )


def found(service: MemoryService, query: str, *, user_id: str = "u1", now: float = NOW, **more: Any) -> list[str]:
    return [memory.content for memory in service.search(user_id, SearchData(query=query, **more), now=now)]


# The fields of a request


@pytest.fixture
def tea_talk(keepsake: MemoryService) -> MemoryService:
    """Four statements about tea, in three sessions, of both sides, days apart."""
    say(keepsake, "I drink green tea in the morning", timestamp=NOW - 40 * DAY, meta={"session_id": "s1"})
    say(keepsake, "You like green tea", source="ai", timestamp=NOW - 40 * DAY + 90, meta={"session_id": "s1"})
    say(keepsake, "I drink black tea in the morning", timestamp=NOW - 20 * DAY, meta={"session_id": "s2"})
    say(keepsake, "I drink mint tea in the morning", timestamp=NOW - DAY, meta={"session_id": "s3"})
    return keepsake


GREEN, LIKE, BLACK, MINT = (
    "I drink green tea in the morning",
    "You like green tea",
    "I drink black tea in the morning",
    "I drink mint tea in the morning",
)
FILTERS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nothing": ({}, {GREEN, LIKE, BLACK, MINT}),
    "session": ({"filters": {"session_id": "s1"}}, {GREEN, LIKE}),
    "unknown session": ({"filters": {"session_id": "s9"}}, set()),
    "user": ({"filters": {"source": "user"}}, {GREEN, BLACK, MINT}),
    "AI": ({"filters": {"source": "ai"}}, {LIKE}),
    "since": ({"filters": {"since": NOW - 30 * DAY}}, {BLACK, MINT}),
    "since, in words": ({"filters": {"since": "2023-10-20T00:00:00Z"}}, {BLACK, MINT}),
    "until": ({"filters": {"until": NOW - 20 * DAY}}, {GREEN, LIKE, BLACK}),
    "between": ({"filters": {"since": NOW - 30 * DAY, "until": NOW - 10 * DAY}}, {BLACK}),
    "all of them": ({"filters": {"session_id": "s1", "source": "user", "until": NOW}}, {GREEN}),
    "another session": ({"exclude_session": "s1"}, {BLACK, MINT}),
    "no unknown session": ({"exclude_session": "s9"}, {GREEN, LIKE, BLACK, MINT}),
    "null": ({"filters": {"session_id": None, "source": None}}, {GREEN, LIKE, BLACK, MINT}),
}


@pytest.mark.parametrize(("more", "expected"), FILTERS.values(), ids=FILTERS)
def test_a_filter_returns_exactly_what_matches(
    tea_talk: MemoryService, more: dict[str, Any], expected: set[str]
) -> None:
    """Given a filter, I expect what fits it, all of it, and nothing else."""
    assert set(found(tea_talk, "which tea in the morning?", min_score=0, limit=100, **more)) == expected


def test_a_half_life_prefers_newer_memories(tea_talk: MemoryService) -> None:
    """Given a half-life of days, I expect the last of three similar statements first, and the first of them last."""
    ranked = found(tea_talk, "which tea do I drink in the morning?", min_score=0, recency_half_life_days=5)

    assert [content for content in ranked if content != LIKE] == [MINT, BLACK, GREEN]


def test_age_does_not_matter_without_a_half_life(tea_talk: MemoryService) -> None:
    """Given no half-life, I expect the same scores now and a year later."""
    now, later = (
        [m.score for m in tea_talk.search("u1", SearchData(query="which tea do I drink?", min_score=0), now=moment)]
        for moment in (NOW, NOW + 365 * DAY)
    )

    assert now == later


def test_a_search_returns_at_most_its_limit(tea_talk: MemoryService) -> None:
    """Given a limit, I expect the best so many."""
    assert found(tea_talk, "green tea?", limit=2, min_score=0) == found(tea_talk, "green tea?", min_score=0)[:2]


def test_memories_below_min_score_are_left_out(tea_talk: MemoryService) -> None:
    """Given a score that one memory has, I expect it and what is above, and nothing below."""
    scores = [m.score or 0 for m in tea_talk.search("u1", SearchData(query="green tea?", min_score=0), now=NOW)]

    cut = tea_talk.search("u1", SearchData(query="green tea?", min_score=scores[1] - 0.0001), now=NOW)

    assert [m.score for m in cut] == scores[:2]


def test_scores_are_probabilities_in_descending_order(tea_talk: MemoryService) -> None:
    """Given a search, I expect scores between 0 and 1, best first."""
    scores = [m.score or 0 for m in tea_talk.search("u1", SearchData(query="green tea?", min_score=0), now=NOW)]

    assert (scores == sorted(scores, reverse=True), all(0 <= score <= 1 for score in scores)) == (True, True)


def test_a_score_is_explained_where_asked(tea_talk: MemoryService) -> None:
    """Given explain, I expect the four parts of each score."""
    (best, *_) = tea_talk.search("u1", SearchData(query="green tea?", explain=True), now=NOW)

    assert set(best.metadata["score_parts"]) == {"meaning", "words", "session", "utterance"}


def test_a_score_is_not_explained_unasked(tea_talk: MemoryService) -> None:
    """Given no explain, I expect nothing of the kind."""
    result = tea_talk.search("u1", SearchData(query="green tea?"), now=NOW)

    assert "score_parts" not in result[0].metadata


def test_what_was_not_returned_is_explained(tea_talk: MemoryService) -> None:
    """Given a limit of two, I expect both results and what comes behind them, with content, parts and verdict."""
    asked = {"query": "green tea?", "limit": 2, "filters": {"source": "user"}, "recency_half_life_days": 5}

    result = tea_talk.search("u1", SearchData(**asked), now=NOW)

    assert result.explain is not None
    explained = result.explain()
    candidates, cut = explained.candidates, explained.cut
    assert [c.verdict for c in candidates] == ["returned", "returned", "over_limit"]
    assert [(c.id, c.score, c.timestamp, c.source) for c in candidates[:2]] == [
        (m.id, m.score, m.timestamp, m.source) for m in result
    ]
    assert {c.content for c in candidates} == {GREEN, BLACK, MINT}
    assert {c.session_id for c in candidates} == {"s1", "s2", "s3"}
    assert all(set(c.parts) == {"meaning", "words", "session", "utterance", "recency"} for c in candidates)
    assert {c.content: c.parts["recency"] for c in candidates}[MINT] == pytest.approx(-0.139, abs=0.001)
    assert (cut.ranked, cut.filtered, cut.echoes, cut.limit, cut.min_score) == (3, 1, 0, 2, 0.09)


def test_an_explanation_has_no_long_ids(keepsake: MemoryService) -> None:
    """Given a memory whose session is named by half a million characters, I expect the first 2,600 of them."""
    say(keepsake, "I drink green tea", meta={"session_id": "s" * 500_000})

    result = keepsake.search("u1", SearchData(query="green tea?"), now=NOW)

    assert result.explain is not None
    assert [candidate.session_id for candidate in result.explain().candidates] == ["s" * 2_600]


def test_the_newer_of_a_matter_is_explained(keepsake: MemoryService) -> None:
    """Given a query of the current state, which ranks the best once more, I expect candidates in that order."""
    say(keepsake, "I live in Porto", *CHATTER, "I have moved to Lyon")

    result = keepsake.search("u1", SearchData(query="Where do I live now?", limit=2, min_score=0), now=NOW)

    assert result.explain is not None
    candidates = result.explain().candidates
    assert [c.id for c in candidates[:2]] == [m.id for m in result]
    assert len(candidates) == len(CHATTER) + 2


# Messages of the AI


@pytest.mark.parametrize(
    ("query", "content"),
    [
        ("what day did you say the delivery comes?", "It is on its way and should be with you on Tuesday, March 5."),
        ("do I have to pay for a return?", "Returns are free within 30 days, the label is in your account."),
        ("when is my parcel arriving?", "It is on its way and should be with you on Tuesday, March 5."),
    ],
)
def test_an_answer_of_the_ai_is_found(keepsake: MemoryService, query: str, content: str) -> None:
    """Given answers that only the AI has given, I expect them first, and neither the question nor a greeting."""
    chat = (
        "hi there",
        "Hello! How can I help you today?",
        "when will my parcel arrive?",
        "It is on its way and should be with you on Tuesday, March 5.",
        "and what does it cost to send it back?",
        "Returns are free within 30 days, the label is in your account.",
        "ok thanks, it's raining here all week",
        "You're welcome, stay dry!",
    )
    for place, said in enumerate(chat):
        source, timestamp = ("ai" if place % 2 else "user"), NOW - DAY + 10 * place
        say(keepsake, said, source=source, timestamp=timestamp, meta={"session_id": "s1"})

    assert found(keepsake, query)[0] == content


# What is not returned


def test_the_message_that_is_searched_for_is_not_returned(keepsake: MemoryService) -> None:
    """Given a statement that is indexed while it is searched for, I expect related memories without itself."""
    say(keepsake, "I am allergic to peanuts", *CHATTER)
    say(keepsake, "I feel like having peanuts", timestamp=NOW - 1)

    assert found(keepsake, "I feel like having peanuts")[:1] == ["I am allergic to peanuts"]
    assert "I feel like having peanuts" not in found(keepsake, "I feel like having peanuts")


def test_an_older_statement_in_the_same_words_is_found(keepsake: MemoryService) -> None:
    """Given a statement that was made a week ago too, I expect the older one."""
    say(keepsake, "I feel like having peanuts", timestamp=NOW - 7 * DAY)
    say(keepsake, *CHATTER)
    say(keepsake, "I feel like having peanuts", timestamp=NOW - 1)

    (first, *_) = keepsake.search("u1", SearchData(query="I feel like having peanuts"), now=NOW)

    assert (first.content, first.timestamp) == ("I feel like having peanuts", NOW - 7 * DAY)


def test_without_now_the_clock_decides_what_is_an_echo(keepsake: MemoryService) -> None:
    """Given no `now`, as in a worker, I expect the same of a message of this second."""
    say(keepsake, "I feel like having peanuts", timestamp=time.time())

    assert keepsake.search("u1", SearchData(query="I feel like having peanuts")) == []


def say_at(service: MemoryService, content: str, said_at: float, arrived_at: float, **more: Any) -> None:
    service.index(
        MemoryUpdateMessage(user_id="u1", content=content, source="user", timestamp=said_at, **more), arrived_at
    )


@pytest.mark.parametrize("wrong_by", [-5 * 3_600, -600, 120, 11 * 3_600])
def test_a_message_just_said_by_a_wrong_clock_is_an_echo(keepsake: MemoryService, wrong_by: float) -> None:
    """Given a message that has just arrived, dated by a clock or zone that is wrong, I expect it not to come back."""
    say_at(keepsake, "I drink green tea", NOW + wrong_by, NOW - 1)

    assert found(keepsake, "I drink green tea", now=NOW) == []
    assert found(keepsake, "I drink green tea", now=NOW + 60) == ["I drink green tea"]
    assert found(keepsake, "which tea do I drink?", now=NOW) == ["I drink green tea"]


def test_history_that_arrives_just_now_is_no_echo(keepsake: MemoryService) -> None:
    """Given an old message that has just been imported, I expect it found by its own words."""
    say_at(keepsake, "I drink green tea", NOW - 2 * DAY, NOW - 1)

    assert found(keepsake, "I drink green tea", now=NOW) == ["I drink green tea"]


@pytest.mark.parametrize("content", ["My sister Anna lives in Lisbon", "我对虾过敏", "Where does Anna live?"])
def test_what_was_added_is_found_by_its_own_words_at_once(keepsake: MemoryService, content: str) -> None:
    """Given a memory that was added, I expect a search in the same words to find it in the same moment."""
    keepsake.add("u1", AddData(content=content), "r1", NOW)

    assert found(keepsake, content, now=NOW, min_score=0) == [content]


def test_what_was_said_just_now_is_an_echo_beside_what_was_added(keepsake: MemoryService) -> None:
    """Given the same words added and just said, I expect what was added alone."""
    say_at(keepsake, "I drink green tea", NOW, NOW)
    [added] = keepsake.add("u1", AddData(content="I drink green tea"), "r1", NOW)

    (memory,) = keepsake.search("u1", SearchData(query="I drink green tea"), now=NOW)

    assert memory.id == added.id


def test_earlier_questions_do_not_displace_the_answer(keepsake: MemoryService) -> None:
    """Given a question that was asked ten times, in the same words and in others, I expect its answer first."""
    say(keepsake, "My sister Anna lives in Lisbon", *CHATTER)
    for day in range(5):
        say(keepsake, "Where does my sister live?", timestamp=NOW - day * DAY - 60)
        say(keepsake, "Where is my sister living?", timestamp=NOW - day * DAY - 30)

    assert found(keepsake, "Where does my sister live?")[0] == "My sister Anna lives in Lisbon"


def test_the_question_itself_is_never_returned(keepsake: MemoryService) -> None:
    """Given a question that was asked before, in another case, I expect it nowhere, however long the list."""
    say(keepsake, "My sister Anna lives in Lisbon", "where does my sister live", "Where does my sister live?!")

    assert found(keepsake, "Where does my sister live?", min_score=0, limit=100) == ["My sister Anna lives in Lisbon"]


def test_near_duplicates_are_shown_once(keepsake: MemoryService) -> None:
    """Given the same words with other capitals and marks, I expect one of them."""
    say(keepsake, "I like green tea", "I like green tea!", "i LIKE green tea...", "I like black tea")

    shown = found(keepsake, "what tea do I like?", min_score=0)

    assert (len(shown), sum("green" in content.lower() for content in shown)) == (2, 1)


def test_numbers_make_a_difference(keepsake: MemoryService) -> None:
    """Given two texts that differ in a number, I expect both."""
    say(keepsake, "I paid 50 for the ticket", "I paid 60 for the ticket")

    assert len(found(keepsake, "how much was the ticket?")) == 2


UNRELATED = [
    "What is the capital of France?",
    "How does quantum entanglement work?",
    "Write me a haiku about the sea",
    "法国的首都是哪里?",
]


@pytest.mark.parametrize("query", UNRELATED)
def test_nothing_relevant_gives_nothing(keepsake: MemoryService, query: str) -> None:
    """Given a query about a subject of no memory, I expect nothing rather than the least bad.

    The sea has a score of 0.098, the others of 0.06 at most; the default `min_score` is 0.09, chosen for longer chats.
    """
    say(keepsake, "I am allergic to peanuts", *CHATTER)

    assert found(keepsake, query, min_score=0.11) == []


def test_a_user_without_memories_gets_nothing(keepsake: MemoryService) -> None:
    """Given an unknown user, I expect nothing."""
    assert found(keepsake, "what do I like?") == []


# The fields of a memory

CLAIMS = {
    "user_id": "u2",
    "source": "ai",
    "timestamp": 1,
    "id": "x",
    "data": "x",
    "content": "x",
    "memory": "x",
    "score": 9,
    "hash": "x",
    "created_at": "x",
    "message_id": "x",
    "request_id": "x",
    "role": "x",
    "meta": {"meta": "x"},
}


def test_what_an_event_claims_changes_nothing(keepsake: MemoryService) -> None:
    """Given an event whose meta claims another user, source, time and ids, I expect those of the event itself."""
    say(keepsake, "I like green tea", message_id="m1", meta=CLAIMS)

    (memory,) = keepsake.search("u1", SearchData(query="tea?"), now=NOW)

    assert (memory.content, memory.source, memory.timestamp) == ("I like green tea", "user", NOW - 3_600)
    assert memory.metadata == {**CLAIMS, "message_id": "m1"}
    assert keepsake.search("u2", SearchData(query="tea?"), now=NOW) == []


def test_what_an_add_claims_changes_nothing(keepsake: MemoryService) -> None:
    """Given an add whose metadata claims the same, I expect those of the request itself."""
    [added] = keepsake.add("u1", AddData(content="I like green tea", metadata=CLAIMS), "r1", NOW)

    (memory,) = keepsake.search("u1", SearchData(query="tea?"), now=NOW + 60)

    assert (memory.id, memory.source, memory.timestamp) == (added.id, "user", NOW)
    assert memory.metadata == {**CLAIMS, "request_id": "r1"}
    assert keepsake.search("u2", SearchData(query="tea?"), now=NOW) == []


# Every language

BY_WORDS = {
    "Chinese": ("我把护照放在书桌左边的抽屉里", "护照"),
    "Traditional for Simplified": ("我養了一隻烏龜", "乌龟"),
    "Japanese": ("来週の金曜日に歯医者へ行きます", "歯医者"),
    "Korean": ("우리 강아지 이름은 두부예요", "강아지"),
    "Arabic": ("اشتريت سيارة حمراء من أخي", "سيارة"),
    "Russian": ("Моя сестра играет на скрипке", "скрипка"),
    "emoji": ("Friday was all about 🏓 with Wei", "🏓"),
    "a number": ("The gate code is 48213", "48213"),
    "a name": ("I met Oyelaran at the station", "Oyelaran"),
    "mixed": ("今天开会用了新的Notion模板", "notion"),
}


@pytest.mark.parametrize(("content", "query"), BY_WORDS.values(), ids=BY_WORDS)
def test_words_alone_find_a_memory(
    keepsake: MemoryService, monkeypatch: pytest.MonkeyPatch, content: str, query: str
) -> None:
    """Given no time to embed the query, I expect its words to find the memory in any script."""
    say(keepsake, *CHATTER, content)
    monkeypatch.setattr(keepsake._query_cache, "get", lambda *_: None)

    result = keepsake.search("u1", SearchData(query=query), now=NOW, deadline=time.time() + 60)

    assert (result.partial, [memory.content for memory in result][:1]) == (True, [content])


def test_words_alone_find_nothing_where_there_are_none(
    keepsake: MemoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given no time to embed the query and none of its words in any memory, I expect nothing rather than anything."""
    say(keepsake, *CHATTER)
    monkeypatch.setattr(keepsake._query_cache, "get", lambda *_: None)

    assert keepsake.search("u1", SearchData(query="quantum entanglement"), now=NOW, deadline=time.time() + 60) == []


class Clock:
    """The service's clock, and an embedder and a database that take a second of it each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, keepsake: MemoryService) -> None:
        self.now = NOW
        monkeypatch.setattr(keepsake, "_clock", lambda: self.now)
        monkeypatch.setattr(keepsake._query_cache, "get", self.slow(keepsake._query_cache.get))
        monkeypatch.setattr(
            keepsake._reads.primary.candidates, "read", self.slow(keepsake._reads.primary.candidates.read)
        )

    def slow(self, stage: Callable[..., T]) -> Callable[..., T]:
        """The stage, a second later."""

        def take_a_second(*arguments: Any) -> T:
            self.now += 1
            return stage(*arguments)

        return take_a_second


@pytest.mark.parametrize(
    ("seconds", "message"),
    [(-0.5, "came to its turn 500 ms"), (0.75, "was embedded 250 ms"), (1.5, "was done 500 ms")],
)
def test_a_search_past_its_deadline_is_aborted(
    keepsake: MemoryService, monkeypatch: pytest.MonkeyPatch, seconds: float, message: str
) -> None:
    """Given a deadline that has passed before a search or by one of its stages, I expect `Expired`."""
    Clock(monkeypatch, keepsake)

    with pytest.raises(Expired, match=f"{message} after its deadline"):
        keepsake.search("u1", SearchData(query="tea"), deadline=NOW + seconds)


def test_a_search_within_its_deadline_is_answered(keepsake: MemoryService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a deadline after all of that, I expect what was found."""
    say(keepsake, "I like tea")
    Clock(monkeypatch, keepsake)

    assert keepsake.search("u1", SearchData(query="What do I like to drink?"), deadline=NOW + 2.25)


ACROSS = {
    "Chinese of English": ("我对什么食物过敏?", "I am allergic to peanuts"),
    "English of Chinese": ("Where did I leave my passport?", "我把护照放在书桌左边的抽屉里"),
    "English of Spanish": ("What instrument does my sister play?", "Mi hermana toca el violonchelo"),
}


@pytest.mark.parametrize(("query", "content"), ACROSS.values(), ids=ACROSS)
def test_a_question_in_another_language_finds_its_answer(keepsake: MemoryService, query: str, content: str) -> None:
    """Given a question in a language that its answer is not in, I expect the answer first."""
    say(keepsake, *CHATTER, content, "昨天看了一部老电影", "周末去爬山了")

    assert found(keepsake, query)[:1] == [content]
