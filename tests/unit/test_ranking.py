"""Stories statement to the ranking: who said what, what is asked, what comes back."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from services.long_term_memory.retrieval.ranking import DEFAULT_MIN_SCORE, Memories, Query, Ranking, Weights, rank
from services.long_term_memory.retrieval.tokenizer import term_weight, terms
from services.long_term_memory.retrieval.utterances import asks, asks_current_state, fingerprint, script, speaker

# Cosines, by how many deviations they lie above those of unrelated texts.
UNRELATED, RELATED, VERY_NEAR = (
    Weights().unrelated_cosine[0][0] + deviations * Weights().cosine_deviation for deviations in (-1, 3, 5)
)


@dataclass(frozen=True)
class Said:
    text: str
    cosine: float = UNRELATED
    session: int = 1
    from_ai: bool = False
    timestamp: float = 0.0


def _number(text: str) -> int:
    return hash(text) if text else 0


def search(question: str, *said: Said, now: float = 1_000.0) -> tuple[list[str], Ranking]:
    words = [terms(one.text) for one in said]
    asked = sorted(set(terms(question)))
    postings = [(t, r, w.count(a)) for t, a in enumerate(asked) for r, w in enumerate(words) if a in w]
    columns = np.array(postings, np.int64).reshape(-1, 3).T
    named = [speaker(one.text) for one in said if speaker(one.text) and speaker(one.text) in question.casefold()]
    memories = Memories(
        session=np.array([one.session for one in said], np.int64),
        length=np.array([len(w) for w in words], np.int64),
        asks=np.array([int(asks(one.text)) for one in said], np.int64),
        speaker=np.array([_number(speaker(one.text)) for one in said], np.int64),
        script=np.array([int(script(one.text)) for one in said], np.int64),
        from_ai=np.array([one.from_ai for one in said], np.bool_),
        fingerprint=np.array([_number(fingerprint(one.text)) for one in said], np.int64),
        timestamp=np.array([one.timestamp for one in said]),
    )
    query = Query(
        cosine=np.array([one.cosine for one in said], np.float64),
        terms=columns[0],
        rows=columns[1],
        counts=columns[2],
        term_weight=np.array([term_weight(term) for term in asked], np.float64),
        script=int(script(question)),
        fingerprint=_number(fingerprint(question)),
        asks=int(asks(question)),
        asks_current_state=asks_current_state(question),
        speakers=np.array(sorted({_number(name) for name in named}), np.int64),
        now=now,
    )
    ranking = rank(memories, query)
    return [said[row].text for row in ranking.rows], ranking


SMALL_TALK = tuple(
    Said(text, session=9)
    for text in (
        "the weather was fine",
        "we watched football",
        "dinner was late",
        "he fixed the roof",
        "trains are slow",
    )
)


def test_what_is_meant_comes_first() -> None:
    texts, _ = search("What is my cat called?", Said("The little one is Mochi", RELATED), *SMALL_TALK)
    assert texts[0] == "The little one is Mochi"


OLD_HOME = Said("I live in Lyon", RELATED, session=1, timestamp=1.0)
TALK_SINCE = [replace(one, timestamp=2.0 + place) for place, one in enumerate(SMALL_TALK)]
NEW_HOME = Said("we moved to Porto", RELATED, session=10, timestamp=9.0)


def test_of_two_facts_the_newer_comes_first_where_the_question_is_of_now() -> None:
    ever, _ = search("Where have I lived?", OLD_HOME, *TALK_SINCE, NEW_HOME)
    now, _ = search("Where do I live these days?", OLD_HOME, *TALK_SINCE, NEW_HOME)

    assert ever[0] == OLD_HOME.text
    assert now[0] == NEW_HOME.text


def test_an_old_fact_without_a_newer_one_is_as_sure_as_ever() -> None:
    _, ever = search("Which is my town?", OLD_HOME, *TALK_SINCE)
    texts, now = search("Which is my town now?", OLD_HOME, *TALK_SINCE)

    assert texts[0] == OLD_HOME.text
    assert now.score[0] == pytest.approx(ever.score[0])


def test_words_alone_find_a_memory() -> None:
    texts, _ = search("What about the Speichenwerk?", *SMALL_TALK, Said("I start at Speichenwerk", session=2))
    assert texts[0] == "I start at Speichenwerk"


def test_meaning_alone_finds_a_memory_in_another_language() -> None:
    found = Said("我对花生过敏", RELATED, session=2)
    texts, ranking = search("What am I allergic to?", *SMALL_TALK, found)
    assert texts[0] == found.text
    assert ranking.words[0] == 0


def test_the_turn_after_a_question_answers_it() -> None:
    question = Said("So when does your flight leave?", RELATED, session=2, from_ai=True)
    answer = Said("Thursday at noon", session=2)
    texts, _ = search(
        "When does my flight leave again?", *SMALL_TALK, question, answer, Said("nothing else", session=3)
    )
    assert texts[0] == "Thursday at noon"


def test_neighbours_do_not_reach_over_the_end_of_a_session() -> None:
    hit = Said("we flew to Lisbon", VERY_NEAR, session=2)
    _, ranking = search("Where did we fly?", hit, Said("bread and milk", session=2), Said("milk and bread", session=3))
    evidence = dict(zip(ranking.rows.tolist(), ranking.meaning.tolist(), strict=True))
    assert evidence[1] > evidence[2]


def test_whose_words_are_asked_for_matters() -> None:
    texts, _ = search(
        "What did Anna buy?",
        Said("Ben: you bought a lovely boat", RELATED, session=1),
        Said("Anna: I bought a lovely boat", RELATED, session=2),
    )
    assert texts[0].startswith("Anna")


def test_the_question_does_not_come_back() -> None:
    question = "Where did I park the car?"
    texts, _ = search(
        question,
        Said("I parked the car behind the church", RELATED),
        *SMALL_TALK,
        Said("where did I park the car", VERY_NEAR, session=10, timestamp=1.0),
        Said(question, VERY_NEAR, session=10, timestamp=1_000.0),
    )
    assert texts[0] == "I parked the car behind the church"
    assert question not in texts
    assert "where did I park the car" not in texts


def test_earlier_askings_in_other_words_come_after_the_answer() -> None:
    texts, _ = search(
        "Where did I park the car?",
        Said("I left it behind the church", RELATED),
        *(Said(f"Where is the car that I parked {when}?", VERY_NEAR, session=10) for when in ("today", "now", "here")),
    )
    assert texts[0] == "I left it behind the church"


def test_asking_often_does_not_make_a_word_common() -> None:
    statement, noise = Said("the harpsichord is out of tune", session=2), Said("out of milk", session=3)
    echoes = tuple(Said(f"What about my harpsichord, number {n}?", RELATED, session=10) for n in range(30))
    _, quiet = search("Is the harpsichord sold?", statement, noise, *SMALL_TALK)
    _, after = search("Is the harpsichord sold?", statement, noise, *SMALL_TALK, *echoes)
    assert after.rows[0] == quiet.rows[0] == 0
    assert after.words[0] == pytest.approx(quiet.words[0], rel=0.05)


def test_a_statement_in_the_words_of_the_query_is_found() -> None:
    old = Said("My dog is called Rex", VERY_NEAR, timestamp=10.0)
    said_now = Said("my dog is called rex!", VERY_NEAR, session=10, timestamp=1_000.0)
    texts, _ = search("my dog is called Rex", old, *SMALL_TALK, said_now)
    assert texts[0] == old.text
    assert said_now.text not in texts


def test_a_fact_told_with_a_question_is_no_question() -> None:
    texts, _ = search(
        "Where does my sister live?", Said("My sister moved to Paris, can you name a hotel?", RELATED), *SMALL_TALK
    )
    assert texts[0].startswith("My sister")


def test_copies_are_shown_once() -> None:
    texts, _ = search(
        "Do I like tea?", Said("I like tea"), Said("I like TEA!", session=2), Said("I like coffee", session=3)
    )
    assert len(texts) == 2


def test_scores_fall_in_order_and_stay_between_nought_and_one() -> None:
    _, ranking = search("tea and football", Said("I like tea", RELATED), *SMALL_TALK)
    assert (np.diff(ranking.score) <= 0).all()
    assert ((ranking.score >= 0) & (ranking.score <= 1)).all()


@pytest.mark.parametrize("company", [0, 4])
def test_nothing_relevant_means_nothing_even_for_a_new_user(company: int) -> None:
    _, found = search("What is my cat called?", Said("My cat is called Mochi", VERY_NEAR), *SMALL_TALK[:company])
    _, missed = search("What is my cat called?", Said("we watched football"), *SMALL_TALK[:company])
    assert found.score[0] > 0.8
    assert missed.score[0] < DEFAULT_MIN_SCORE


def test_an_empty_memory_and_an_empty_query_are_answered() -> None:
    assert len(search("anything?")[1]) == 0
    assert len(search("???", *SMALL_TALK)[1]) == len(SMALL_TALK)
    assert len(search("Where is it?", Said("Where is it?", 0.99))[1]) == 0


def _many(size: int) -> tuple[Memories, Query]:
    random = np.random.default_rng(7)
    rows = [np.flatnonzero(random.random(size) < share) for share in (0.2, 0.05, 0.02, 0.01, 0.001)]
    memories = Memories(
        session=np.sort(random.integers(0, size // 20 + 1, size)),
        length=random.integers(1, 20, size),
        asks=random.integers(0, 3, size),
        speaker=random.integers(0, 3, size),
        script=random.integers(0, 2, size),
        from_ai=random.random(size) < 0.5,
        fingerprint=random.integers(0, 2**62, size),
        timestamp=np.zeros(size),
    )
    query = Query(
        cosine=random.normal(0.785, 0.028, size),
        terms=np.repeat(np.arange(5), [len(r) for r in rows]),
        rows=np.concatenate(rows),
        counts=np.ones(sum(map(len, rows)), np.int64),
        term_weight=np.ones(5),
        script=0,
        fingerprint=int(memories.fingerprint[-1]),
        asks=2,
    )
    return memories, query


def test_a_limit_and_a_filter_only_shorten_the_list() -> None:
    memories, query = _many(2_000)
    everything = rank(memories, query)
    assert rank(memories, query, limit=7).rows.tolist() == everything.rows[:7].tolist()
    eligible = memories.speaker == 1
    some = rank(memories, query, eligible=eligible, limit=5)
    assert some.rows.tolist() == [row for row in everything.rows.tolist() if eligible[row]][:5]
