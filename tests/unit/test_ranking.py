"""The ranking: what turns a conversation has, what is asked, what comes back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from keepsake_client.protocol import SearchData

from services.long_term_memory.retrieval.columns import MemoryColumns
from services.long_term_memory.retrieval.content import Content
from services.long_term_memory.retrieval.features import Features, match
from services.long_term_memory.retrieval.query import QueryFeatures, query_features
from services.long_term_memory.retrieval.ranking import DEFAULT_MIN_SCORE, Ranking, falling_scores, rank
from services.long_term_memory.retrieval.utterances import Question, Script
from services.long_term_memory.retrieval.weights import Weights
from tests.unit.turns import RELATED, UNRELATED, VERY_NEAR, Turn, columns_of


def search(
    question: str, *turns: Turn, now: float = 1_000.0, weights: Weights | None = None, **more: Any
) -> tuple[list[str], Ranking]:
    """The texts that are found, and their ranking."""
    columns, query = columns_of(turns), query_features(question)
    ranking = rank(columns, query, match(columns, query, SearchData(query=question, **more), now), weights)
    return [turns[row].text for row in ranking.rows], ranking


def by_row(ranking: Ranking, part: str) -> dict[int, float]:
    """A part of the evidence by row."""
    return dict(zip(ranking.rows.tolist(), getattr(ranking, part).tolist(), strict=True))


SMALL_TALK = tuple(
    Turn(text, session=9)
    for text in (
        "the weather was fine",
        "we watched football",
        "dinner was late",
        "he fixed the roof",
        "trains are slow",
    )
)


def test_the_nearest_meaning_comes_first() -> None:
    texts, _ = search("What is my cat called?", Turn("The little one is Mochi", RELATED), *SMALL_TALK)
    assert texts[0] == "The little one is Mochi"


def test_words_alone_find_a_memory() -> None:
    texts, _ = search("What about the Speichenwerk?", *SMALL_TALK, Turn("I start at Speichenwerk", session=2))
    assert texts[0] == "I start at Speichenwerk"


def test_meaning_alone_finds_a_memory_in_another_language() -> None:
    found = Turn("我对花生过敏", RELATED, session=2)
    texts, ranking = search("What am I allergic to?", *SMALL_TALK, found)
    assert texts[0] == found.text
    assert ranking.words[0] == 0


def test_the_turn_after_a_question_answers_it() -> None:
    question = Turn("So when does your flight leave?", RELATED, session=2, from_ai=True)
    answer = Turn("Thursday at noon", session=2)
    texts, _ = search(
        "When does my flight leave again?", *SMALL_TALK, question, answer, Turn("nothing else", session=3)
    )
    assert texts[0] == "Thursday at noon"


def test_neighbours_do_not_reach_over_the_end_of_a_session() -> None:
    hit = Turn("we flew to Lisbon", VERY_NEAR, session=2)
    _, ranking = search("Where did we fly?", hit, Turn("bread and milk", session=2), Turn("milk and bread", session=3))
    evidence = dict(zip(ranking.rows.tolist(), ranking.meaning.tolist(), strict=True))
    assert evidence[1] > evidence[2]


def test_a_lone_note_is_not_behind_every_turn_of_a_chat() -> None:
    """Given a note nearer to the query than each of five turns about the same, I expect the note first."""
    chat = [Turn(f"we talked about the boat, {n}", RELATED, session=2, from_ai=n % 2 == 1) for n in range(5)]
    note = Turn("The boat is blue", RELATED + 0.5 * Weights().cosine_deviation, session=3)

    texts, _ = search("Which colour?", *SMALL_TALK, *chat, note)

    assert texts[0] == note.text


def test_the_words_of_a_session_are_evidence_up_to_a_bound() -> None:
    """Given a question of thirty words, all in one session, I expect no more than the bound for its turns."""
    words = [f"{a}{b}{c}o" for a in "bdg" for b in "ae" for c in "lmnrs"]
    turns = *(Turn(word, session=2) for word in words), *SMALL_TALK

    session = by_row(search(" ".join(words), *turns, weights=replace(Weights(), session_meaning=0.0))[1], "session")

    assert 0.9 < session[0] <= 1.0
    assert session[len(words)] == 0


def test_the_named_speaker_comes_first() -> None:
    texts, _ = search(
        "What did Anna buy?",
        Turn("Ben: you bought a lovely boat", RELATED, session=1),
        Turn("Anna: I bought a lovely boat", RELATED, session=2),
    )
    assert texts[0].startswith("Anna")


def test_an_echo_of_the_query_is_not_found() -> None:
    question = "Where did I park the car?"
    texts, _ = search(
        question,
        Turn("I parked the car behind the church", RELATED),
        *SMALL_TALK,
        Turn("where did I park the car", VERY_NEAR, session=10, timestamp=1.0),
        Turn(question, VERY_NEAR, session=10, timestamp=1_000.0),
    )
    assert texts[0] == "I parked the car behind the church"
    assert question not in texts
    assert "where did I park the car" not in texts


def test_earlier_questions_in_other_words_come_after_the_answer() -> None:
    texts, _ = search(
        "Where did I park the car?",
        Turn("I left it behind the church", RELATED),
        *(Turn(f"Where is the car that I parked {when}?", VERY_NEAR, session=10) for when in ("today", "now", "here")),
    )
    assert texts[0] == "I left it behind the church"


def test_asking_often_does_not_make_a_word_common() -> None:
    statement, noise = Turn("the harpsichord is out of tune", session=2), Turn("out of milk", session=3)
    echoes = tuple(Turn(f"What about my harpsichord, number {n}?", RELATED, session=10) for n in range(30))
    _, quiet = search("Is the harpsichord sold?", statement, noise, *SMALL_TALK)
    _, after = search("Is the harpsichord sold?", statement, noise, *SMALL_TALK, *echoes)
    assert after.rows[0] == quiet.rows[0] == 0
    assert after.words[0] == pytest.approx(quiet.words[0], rel=0.05)


def test_a_statement_in_the_words_of_the_query_is_found() -> None:
    old = Turn("My dog is called Rex", VERY_NEAR, timestamp=10.0)
    repeated_now = Turn("my dog is called rex!", VERY_NEAR, session=10, timestamp=1_000.0)
    texts, _ = search("my dog is called Rex", old, *SMALL_TALK, repeated_now)
    assert texts[0] == old.text
    assert repeated_now.text not in texts


def test_a_fact_stated_before_a_question_is_a_statement() -> None:
    texts, _ = search(
        "Where does my sister live?", Turn("My sister moved to Paris, can you name a hotel?", RELATED), *SMALL_TALK
    )
    assert texts[0].startswith("My sister")


def test_copies_are_shown_once() -> None:
    texts, _ = search(
        "Do I like tea?", Turn("I like tea"), Turn("I like TEA!", session=2), Turn("I like coffee", session=3)
    )
    assert len(texts) == 2


def test_scores_fall_in_order_and_are_probabilities() -> None:
    _, ranking = search("tea and football", Turn("I like tea", RELATED), *SMALL_TALK)
    assert (np.diff(ranking.score) <= 0).all()
    assert ((ranking.score >= 0) & (ranking.score <= 1)).all()


@pytest.mark.parametrize("company", [0, 4])
def test_nothing_relevant_means_nothing_even_for_a_new_user(company: int) -> None:
    _, found = search("What is my cat called?", Turn("My cat is called Mochi", VERY_NEAR), *SMALL_TALK[:company])
    _, missed = search("What is my cat called?", Turn("we watched football"), *SMALL_TALK[:company])
    assert found.score[0] > 0.8 > DEFAULT_MIN_SCORE
    assert missed.score[0] < DEFAULT_MIN_SCORE


def test_the_score_falls_with_what_is_asked_and_not_found() -> None:
    """Given a query that also asks for what was never said, I expect a lower score of the same best memory."""
    turns = Turn("The little one is Mochi", RELATED, session=2), *SMALL_TALK
    texts, known = search("Who is Mochi?", *turns)
    more_texts, more = search("Who is Mochi, the harpsichord, the attic, the ladder or a lantern?", *turns)

    assert texts[0] == more_texts[0]
    assert more.score[0] < known.score[0] - 0.1


def test_the_score_of_the_same_meaning_falls_with_the_number_of_memories() -> None:
    """Given a query of common words and unrelated memories around, I expect the best to score less among more."""
    turns = Turn("The little one is Mochi", VERY_NEAR, session=2), *SMALL_TALK
    others = [Turn(f"story {n}", session=10 + n) for n in range(500)]
    few, many = search("Which is it?", *turns)[1], search("Which is it?", *turns, *others)[1]

    assert few.score[0] > many.score[0] + 0.05


@pytest.mark.parametrize(("script", "less"), [(Script.ALPHABET, 0.04), (Script.HAN, 0.055)])
def test_a_query_in_japanese_is_expected_to_be_less_near_to_unrelated_memories(script: Script, less: float) -> None:
    """Given memories with cosines that are lower by what is expected of Japanese, I expect the same score."""
    columns, query, features = _random_conversation(2)
    columns = replace(columns, script=np.full(len(columns), script))
    query = replace(query, script=Script.HAN)

    chinese = rank(columns, query, features)
    japanese = rank(replace(columns, cosine=columns.cosine - less), replace(query, is_japanese=True), features)

    assert japanese.score == pytest.approx(chinese.score)
    assert japanese.rows.tolist() == chinese.rows.tolist()


# The scores behind the best

FLOOR = math.log(DEFAULT_MIN_SCORE / (1 - DEFAULT_MIN_SCORE))


def scores(best: float, *evidence: float) -> list[float]:
    """The log-odds of the scores of memories with so much evidence, where the first has `best`."""
    falling = falling_scores(np.array([best]), np.array(evidence), Weights())
    return [float(one) for one in np.log(falling / (1 - falling))]


@pytest.mark.parametrize("best", [FLOOR + 0.1, 0.0, 3.0])
def test_a_score_falls_by_half_of_what_the_best_has_above_the_default_with_two_log_odds_less(best: float) -> None:
    """Given memories with 0, 2 and 6 log-odds less evidence, I expect 1, 1/2 and 1/4 of the best's margin."""
    margin = best - FLOOR

    expected = [best, FLOOR + margin / 2, FLOOR + margin / 4]
    assert scores(best, 20.0, 18.0, 14.0) == pytest.approx(expected)


def test_what_the_evidence_speaks_for_stays_above_the_default_min_score_however_far_behind() -> None:
    """Given parts of an answer far behind a very likely one, I expect them to be returned nevertheless."""
    assert FLOOR < scores(5.0, 60.0, 3.0)[1] < FLOOR + 0.3


def test_what_nothing_supports_falls_below_the_default_min_score() -> None:
    """Given memories with less than -1 log-odds, I expect each to lose 0.37 for every one that it lacks."""
    behind = {evidence: FLOOR + (2.0 - FLOOR) * 2 / (2 + 9.0 - evidence) for evidence in (-1.0, -2.0, -11.0)}

    expected = [behind[-1.0], behind[-2.0] - 0.37, behind[-11.0] - 3.7]
    assert scores(2.0, 9.0, *behind)[1:] == pytest.approx(expected)
    assert expected[1] > FLOOR > expected[2]


def test_below_the_default_min_score_the_scores_fall_by_one_at_most() -> None:
    """Given a search that finds nothing, I expect its order in the scores that are asked for with `min_score` 0."""
    best, second, third = scores(FLOOR - 1, 20.0, 18.0, 1.0)

    assert (best, second) == pytest.approx((FLOOR - 1, FLOOR - 1.5))
    assert FLOOR - 2 < third < second


@pytest.mark.parametrize("seed", range(3))
def test_the_ranking_does_not_depend_on_the_order_of_sessions(seed: int) -> None:
    """Given the sessions of a conversation in another order, I expect the same memories with the same scores."""
    turns = [
        *SMALL_TALK,
        Turn("I live in Lyon", RELATED, session=1, timestamp=1.0),
        Turn("we moved to Porto", RELATED, session=10, timestamp=9.0),
        *(Turn(f"we talked about Lyon, {n}", RELATED, session=4) for n in range(4)),
    ]
    sessions = list(dict.fromkeys(turn.session for turn in turns))
    order = np.random.default_rng(seed).permutation(sessions).tolist()
    texts, ranking = search("Where did I live?", *sorted(turns, key=lambda turn: sessions.index(turn.session)))

    other_texts, other = search("Where did I live?", *sorted(turns, key=lambda turn: order.index(turn.session)))

    assert dict(zip(other_texts, other.score.tolist(), strict=True)) == pytest.approx(
        dict(zip(texts, ranking.score.tolist(), strict=True))
    )


def test_an_empty_memory_and_an_empty_query_are_answered() -> None:
    nothing = search("anything?")[1]
    assert len(nothing) == len(nothing.score) == len(nothing.evidence) == 0
    assert len(search("???", *SMALL_TALK)[1]) == len(SMALL_TALK)
    assert len(search("Where is it?", Turn("Where is it?", 0.99))[1]) == 0


def _many(size: int) -> tuple[MemoryColumns, QueryFeatures, Features]:
    random = np.random.default_rng(7)
    rows = [np.flatnonzero(random.random(size) < share) for share in (0.2, 0.05, 0.02, 0.01, 0.001)]
    columns = MemoryColumns(
        number=np.arange(size),
        session=np.sort(random.integers(0, size // 20 + 1, size)),
        length=(length := random.integers(1, 20, size)),
        asks=random.integers(0, 3, size),
        speaker=random.integers(0, 3, size),
        script=random.integers(0, 2, size),
        from_ai=random.random(size) < 0.5,
        added=np.zeros(size, np.bool_),
        fingerprint=random.integers(0, 2**62, size),
        timestamp=np.zeros(size),
        terms=np.zeros(length.sum(), np.uint32),
        cosine=random.normal(0.785, 0.028, size),
    )
    query = QueryFeatures(
        terms=np.arange(5, dtype=np.uint32),
        term_weight=np.ones(5),
        script=Script.ALPHABET,
        stated=0,
        asked=1,
        marked=False,
        asks=Question.ONLY,
        asks_current_state=False,
        content=Content.WORDS,
        names=np.zeros(0, np.int64),
        name_texts=(),
    )
    features = Features(
        terms=np.repeat(np.arange(5), [len(r) for r in rows]),
        rows=np.concatenate(rows),
        counts=np.ones(sum(map(len, rows)), np.int64),
        speakers=np.zeros(0, np.int64),
        mentions=np.zeros(size, np.bool_),
        echoes=np.arange(size) == size - 1,
        repeats=np.zeros(size, np.bool_),
        eligible=np.ones(size, np.bool_),
        recency=np.zeros(size),
        unsought=np.zeros(size),
    )
    return columns, query, features


def test_a_limit_and_a_filter_only_shorten_the_list() -> None:
    columns, query, features = _many(2_000)
    everything = rank(columns, query, features)
    assert rank(columns, query, features, limit=7).rows.tolist() == everything.rows[:7].tolist()
    eligible = columns.speaker == 1
    some = rank(columns, query, replace(features, eligible=eligible), limit=5)
    assert some.rows.tolist() == [row for row in everything.rows.tolist() if eligible[row]][:5]


# The rules, one by one


def test_a_statement_by_the_ai_in_the_words_of_the_query_is_no_echo() -> None:
    """Given that the AI has just stated what the user searches for, I expect it found."""
    by_ai = Turn("my dog is called Rex", VERY_NEAR, from_ai=True, timestamp=1_000.0)
    by_user = replace(by_ai, from_ai=False)

    assert search("my dog is called Rex", by_ai, *SMALL_TALK)[0][0] == by_ai.text
    assert by_user.text not in search("my dog is called Rex", by_user, *SMALL_TALK)[0]


@pytest.mark.parametrize("part", ["meaning", "words"])
def test_a_turn_that_only_asks_is_not_lifted_by_its_neighbours(part: str) -> None:
    """Given a question between two answers, I expect of it no more than of the same question between other turns."""
    near, question = Turn("The harpsichord is out of tune", VERY_NEAR), Turn("Why do you ask?")
    far = Turn("The weather is out of order")
    between, elsewhere = (
        search("Is the harpsichord sold?", turn, question, turn, replace(near, session=2))[1] for turn in (near, far)
    )

    assert by_row(between, part)[1] <= by_row(elsewhere, part)[1]


def test_words_count_in_full_from_the_coverage_on() -> None:
    """Given a memory with every word of the query, I expect no more for it, however little would have been enough."""
    turns = Turn("green tea", session=2), *SMALL_TALK
    at = {
        share: search("Is there green tea?", *turns, weights=replace(Weights(), full_coverage=share))[1]
        for share in (0.7, 0.1)
    }

    assert at[0.7].words[0] == at[0.1].words[0] > 0


def test_words_count_in_proportion_below_the_coverage() -> None:
    """Given a memory with one of three words, I expect half of its evidence where twice the coverage is wanted."""
    turns = Turn("green tea", session=2), *SMALL_TALK
    full, half = (
        by_row(
            search("green harpsichord of glass?", *turns, weights=replace(Weights(), full_coverage=share))[1], "words"
        )
        for share in (2.0, 4.0)
    )

    assert half[0] == pytest.approx(full[0] / 2)
    assert full[0] > 0


def test_a_query_that_was_not_embedded_finds_words_alone() -> None:
    """Given no cosines, I expect only memories with a word of the query, and no evidence of meaning."""
    turns = [replace(turn, cosine=np.nan) for turn in (Turn("green tea", session=2), *SMALL_TALK)]

    texts, ranking = search("tea?", *turns)

    assert texts == ["green tea"]
    assert ranking.meaning == pytest.approx([0.0], abs=1e-12)


def test_a_query_that_was_not_embedded_finds_the_least_of_its_words() -> None:
    """Given no cosines and one word of many, I expect the memory with that word, however little evidence it is."""
    turn = Turn("green tea", cosine=np.nan)
    _, ranking = search("Which tea, harpsichord, attic, ladder or lantern did the neighbour borrow?", turn)

    assert 0 < ranking.words[0] < 1


def test_a_limit_counts_the_memories_with_a_word_where_the_query_was_not_embedded() -> None:
    """Given more likely utterances than the limit, none with a word of the query, I expect the one that has a word."""
    others = [Turn(f"we watched a long game of football, number {n}", np.nan, session=n) for n in range(30)]
    turns = *others, Turn("green tea", np.nan, session=99, from_ai=True)
    columns, query = columns_of(turns), query_features("Which tea, ladder or lantern did the neighbour borrow?")

    found = rank(columns, query, match(columns, query, SearchData(query="tea"), 1_000.0), limit=5)

    assert [turns[row].text for row in found.rows] == ["green tea"]
    assert found.words[0] > 0


@pytest.mark.parametrize(("intercept", "log_odds"), [(1e4, 30.0), (-1e4, -30.0)])
def test_a_score_is_never_quite_0_or_1(intercept: float, log_odds: float) -> None:
    """Given evidence beyond all bounds, I expect the logistic of 30 or of -30."""
    weights = replace(Weights(), calibration_intercept=intercept)

    score = search("tea?", Turn("green tea"), weights=weights)[1].score[0]

    assert np.log(score / (1 - score)) == pytest.approx(log_odds, abs=0.01)


def test_a_session_of_one_term_is_of_average_length() -> None:
    """Given one session, of one word of the query, I expect idf log(1 + 0.5 / 1.5) times a saturated frequency of 1."""
    session = search("green tea?", Turn("tea", cosine=np.nan))[1].session

    assert session == pytest.approx([np.tanh(0.15 * np.log(4 / 3))])


def test_of_memories_with_the_same_evidence_the_first_comes_first() -> None:
    """Given three values of evidence in turn, I expect the order of the conversation within each."""
    cosines = (UNRELATED, RELATED, VERY_NEAR)
    turns = [Turn(f"story {n}", cosines[n % 3], session=n) for n in range(60)]

    _, ranking = search("Which one?", *turns)

    assert ranking.rows.tolist() == [*range(2, 60, 3), *range(1, 60, 3), *range(0, 60, 3)]


@pytest.mark.parametrize("size", [19, 20, 21])  # 4 * 1 + 16 are considered at first
def test_the_best_one_is_found_among_few_and_many(size: int) -> None:
    """Given about as many memories as are considered at first, I expect the best of all, which is the last."""
    turns = [Turn(f"story {n}", UNRELATED + n / 1_000, session=n) for n in range(size)]
    columns, query = columns_of(turns), query_features("Which one?")

    best = rank(columns, query, match(columns, query, SearchData(query="Which one?"), 1_000.0), limit=1)

    assert best.rows.tolist() == [size - 1]


def test_a_very_old_memory_is_scored_without_overflow() -> None:
    """Given a half-life of minutes and a memory of years ago, I expect a score of about nought, and no warning."""
    _, ranking = search("tea?", Turn("green tea"), now=1e9, recency_half_life_days=0.01)

    assert 0 < ranking.score[0] < 1e-12


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Turn("I like tea"), Turn("You like tea", from_ai=True)),
        (Turn("I like tea"), Turn("I like tea, and you?")),
        (Turn("I like tea from Assam in the morning"), Turn("I like tea")),
        (Turn("I like tea"), Turn("Where is tea?")),
    ],
    ids=["the user's own", "a plain statement", "a longer one", "a statement"],
)
def test_the_form_of_an_utterance_is_evidence(better: Turn, worse: Turn) -> None:
    """Given two turns of like meaning, I expect more evidence for the one of the better form."""
    utterance = by_row(search("Which drink?", better, replace(worse, session=2))[1], "utterance")

    assert utterance[0] > utterance[1]


def test_a_session_about_the_query_supports_its_turns() -> None:
    """Given one turn in a session near the query and one in another session, I expect more evidence for the former."""
    near, other = Turn("bread and milk", session=1), Turn("milk and bread", session=2)
    about = [Turn(f"the harpsichord, part {n}", VERY_NEAR) for n in range(3)]
    far = [replace(turn, text="soup", cosine=UNRELATED, session=2) for turn in about]

    session = by_row(search("Is the harpsichord sold?", near, *about, *far, other)[1], "session")

    assert session[0] > session[7]


def test_recency_is_evidence_of_the_utterance() -> None:
    """Given a half-life of a day, I expect log(2) less for a memory that is a day old."""
    turn = Turn("green tea", timestamp=0.0)
    (ever,), (aged,) = (
        search("tea?", turn, now=86_400.0, recency_half_life_days=days)[1].utterance for days in (None, 1)
    )

    assert aged == pytest.approx(ever - np.log(2))


def test_a_filtered_memory_still_supports_its_neighbours() -> None:
    """Given a filter that leaves the turn after the nearest one, I expect its evidence as without the filter."""
    turns = Turn("the boat is blue", VERY_NEAR, from_ai=True), Turn("Thursday at noon")
    everything, filtered = (
        search("Is it blue?", *turns)[1],
        search("Is it blue?", *turns, filters={"source": "user"})[1],
    )

    assert filtered.rows.tolist() == [1]
    assert filtered.evidence.tolist() == [by_row(everything, "evidence")[1]]


def test_of_many_copies_the_best_is_shown_and_the_list_still_filled() -> None:
    """Given a text that was repeated a hundred times, I expect it once, and the others after it."""
    copies = [Turn("I like tea", VERY_NEAR, session=n) for n in range(100)]
    texts, ranking = search("tea?", *copies, *SMALL_TALK, limit=3)

    columns = columns_of([*copies, *SMALL_TALK])
    query = query_features("tea?")
    three = rank(columns, query, match(columns, query, SearchData(query="tea?"), 1_000.0), limit=3)
    assert len(texts) == 1 + len(SMALL_TALK)
    assert three.rows.tolist() == ranking.rows[:3].tolist()
    assert three.rows[0] < 100
    assert (three.rows[1:] >= 100).all()


def test_the_constants_are_those_of_the_recorded_figures() -> None:
    """Given the defaults, I expect the values that docs/benchmarks.md was measured with: a change needs new figures."""
    assert asdict(Weights()) == {
        "unrelated_cosine": ((0.741, 0.73), (0.735, 0.797)),
        "japanese_cosine": (-0.04, -0.055),
        "cosine_deviation": 0.028,
        "prior": 8.0,
        "meaning": 1.0,
        "words": 0.53,
        "k1": 0.7,
        "b": 0.4,
        "idf_smoothing": 10.0,
        "full_coverage": 0.7,
        "meaning_kernel": (0.16, 0.1),
        "words_kernel": (0.3, 0.2),
        "follow_up_boost": 0.4,
        "same_speaker": 0.5,
        "session_words": 0.15,
        "session_words_bound": 1.0,
        "session_meaning": 0.6,
        "other_speaker": -2.0,
        "not_of_asker": -2.5,
        "from_ai": -0.7,
        "ends_asking": -0.5,
        "only_asks": -25.0,
        "length": 0.15,
        "fact": -1.35,
        "newest": 8.0,
        "same_matter": 3.0,
        "unrelated_memories": (0.79, 0.89),
        "answers_then": 0.7,
        "least_then": 0.015,
        "then_in_score": 0.5,
        "corpus_size": 2.0,
        "corpus_size_prior": 150.0,
        "calibration_slope": 0.37,
        "calibration_intercept": 2.65,
        "runner_up": 2.0,
        "unsupported": -1.0,
    }


# All of it, against the definition memory by memory


class Definition:
    """The evidence of each memory by its definition, in loops."""

    def __init__(self, columns: MemoryColumns, query: QueryFeatures, features: Features, weights: Weights) -> None:
        self.columns, self.query, self.features, self.weights = columns, query, features, weights
        self.rows = range(len(columns))
        self.states = [asks != 2 for asks in columns.asks.tolist()]
        self.counts = {
            (t, r): c
            for t, r, c in zip(features.terms.tolist(), features.rows.tolist(), features.counts.tolist(), strict=True)
        }
        self.terms = range(len(query.terms))
        self.expected = weights.unrelated_cosine[query.script]
        means = []
        for script, expected in enumerate(self.expected):
            own = [columns.cosine[r] for r in self.rows if self.states[r] and columns.script[r] == script]
            means.append((sum(own) + weights.prior * expected) / (len(own) + weights.prior))
        self.deviation = [(columns.cosine[r] - means[columns.script[r]]) / weights.cosine_deviation for r in self.rows]
        shifts = [means[script] - self.expected[script] for script in columns.script.tolist()]
        self.shift = sum(shifts) / len(shifts) / weights.cosine_deviation

    def passage(self, row: int, kernel: tuple[float, float], values: list[float]) -> float:
        """A value of a turn with the shares of its neighbours in the session."""
        total = values[row]
        for distance, weight in enumerate(kernel, start=1):
            for other in (row - distance, row + distance):
                if not self.states[row]:
                    continue
                if not self.joined(row, other):
                    total += weight * values[row]
                else:
                    total += self.share(row, other, weight) * values[other]
        return total

    def joined(self, row: int, other: int) -> bool:
        """Whether they are neighbours: of one session, and both with a name or both without, or one is the AI's."""
        columns = self.columns
        if other not in self.rows or columns.session[other] != columns.session[row]:
            return False
        both_named = bool(columns.speaker[other]) == bool(columns.speaker[row])
        return both_named or columns.from_ai[other] != columns.from_ai[row]

    def share(self, row: int, other: int, weight: float) -> float:
        """What a turn takes of a neighbour."""
        columns, first, last = self.columns, min(row, other), max(row, other)
        follows = other == row - 1
        only_asks = columns.asks[other] == 2
        if columns.from_ai[row] and not columns.from_ai[other] and not (follows and only_asks):
            return 0.0
        if follows and columns.asks[other] > 0 and (only_asks or not columns.from_ai[row]):
            weight += self.weights.follow_up_boost
        by_one = any(
            columns.speaker[r] == columns.speaker[r + 1] and columns.from_ai[r] == columns.from_ai[r + 1]
            for r in range(first, last)
        )
        return weight * (self.weights.same_speaker if by_one else 1.0)

    def meaning(self, row: int) -> float:
        """Deviations, of the turn and its neighbours."""
        return self.weights.meaning * self.passage(row, self.weights.meaning_kernel, self.deviation)

    def idf(self, term: int, documents: int, size: float) -> float:
        """Of a term in so many of `size` documents."""
        return float(self.query.term_weight[term] * np.log(1 + (max(size - documents, 0) + 0.5) / (documents + 0.5)))

    def bm25(self, frequency: float, length: float) -> float:
        """The saturated frequency, `length` times the average."""
        k1, b = self.weights.k1, self.weights.b
        return frequency * (k1 + 1) / (frequency + k1 * (1 - b + b * length))

    def words(self, row: int) -> float:
        """BM25F of the turn and its neighbours, by coverage."""
        w = self.weights
        lengths = [
            self.passage(r, w.words_kernel, [float(length) for length in self.columns.length.tolist()])
            for r in self.rows
        ]
        stating = [lengths[r] for r in self.rows if self.states[r]]
        average = (sum(stating) + w.prior * 8) / (len(stating) + w.prior)
        total = possible = 0.0
        for term in self.terms:
            documents = sum(self.states[r] and (term, r) in self.counts for r in self.rows)
            idf = self.idf(term, documents, sum(self.states) + w.idf_smoothing)
            counts = [float(self.counts.get((term, r), 0)) for r in self.rows]
            frequency = self.passage(row, w.words_kernel, counts)
            total += idf * self.bm25(frequency, lengths[row] / average)
            possible += idf
        return w.words * total * min(total / possible / w.full_coverage, 1.0)

    def session(self, row: int) -> float:
        """BM25 and mean deviation of the session."""
        w = self.weights
        sessions = sorted(set(self.columns.session.tolist()))
        of = {s: [r for r in self.rows if self.columns.session[r] == s and self.states[r]] for s in sessions}
        lengths = {s: float(sum(self.columns.length[r] for r in of[s])) for s in sessions}
        average = max(sum(lengths.values()) / len(sessions), 1.0)
        own = int(self.columns.session[row])
        bm25 = 0.0
        for term in self.terms:
            frequency = {s: sum(self.counts.get((term, r), 0) for r in of[s]) for s in sessions}
            idf = self.idf(term, sum(f > 0 for f in frequency.values()), len(sessions))
            bm25 += idf * self.bm25(frequency[own], lengths[own] / average)
        meaning = sum(self.deviation[r] for r in of[own]) / (len(of[own]) + 3)
        words = w.session_words_bound * np.tanh(w.session_words * bm25 / w.session_words_bound)
        return float(words + w.session_meaning * meaning)

    def utterance(self, row: int) -> float:
        """Length, source, question, speaker, age."""
        w, columns = self.weights, self.columns
        average = (float(columns.length.sum()) + w.prior * 8) / (len(columns) + w.prior)
        total = w.length * min(max(np.log((columns.length[row] + 1) / (average + 1)), -2.0), 1.5)
        total += w.from_ai if columns.from_ai[row] else 0.0
        total += (0.0, w.ends_asking, w.only_asks)[columns.asks[row]]
        speaker = int(columns.speaker[row])
        if len(self.features.speakers) and speaker and speaker not in self.features.speakers.tolist():
            total += w.other_speaker
        if self.features.of_others is not None and self.features.of_others[row]:
            total += w.not_of_asker
        return float(total + self.features.recency[row])

    def score(self, evidence: float, best: float) -> float:
        """The probability of a memory, given the best one's evidence."""
        w, asked = self.weights, 0.0
        for term in self.terms:
            documents = sum(self.states[r] and (term, r) in self.counts for r in self.rows)
            asked += self.idf(term, documents, sum(self.states) + w.idf_smoothing)
        chance = w.corpus_size * np.log(sum(self.states) + w.corpus_size_prior) + np.log(1 + asked)
        shift, behind = w.meaning * self.shift, best - evidence
        log_odds = w.calibration_slope * (best + shift - chance) + w.calibration_intercept
        margin = log_odds - FLOOR if log_odds > FLOOR else 1.0
        log_odds -= margin * behind / (behind + w.runner_up)
        log_odds -= w.calibration_slope * min(max(w.unsupported - evidence - shift, 0.0), behind)
        return float(1 / (1 + np.exp(-min(max(log_odds, -30.0), 30.0))))


def _random_conversation(seed: int) -> tuple[MemoryColumns, QueryFeatures, Features]:
    random = np.random.default_rng(seed)
    size, terms = 40, 4
    length = random.integers(1, 60, size)
    length[:2] = 0, 400  # beyond the bounds of what length is worth
    columns = MemoryColumns(
        number=np.arange(size),
        session=np.repeat(random.permutation(8), 5),
        timestamp=random.permutation(size).astype(np.float64),
        from_ai=random.random(size) < 0.4,
        added=np.zeros(size, np.bool_),
        asks=random.integers(0, 3, size),
        script=random.integers(0, 2, size),
        speaker=random.integers(0, 4, size),
        fingerprint=np.arange(size),
        length=length,
        terms=np.zeros(length.sum(), np.uint32),
        cosine=random.normal(0.78, 0.05, size),
    )
    found = random.integers(1, 4, (terms, size)) * (random.random((terms, size)) < 0.15)
    query = QueryFeatures(
        terms=np.arange(terms, dtype=np.uint32),
        term_weight=np.array([1.0, 0.5, 1.0, 1.0]),
        script=Script(seed % 2),
        stated=-1,
        asked=-2,
        marked=False,
        asks=Question.ONLY,
        asks_current_state=False,
        content=Content.WORDS,
        names=np.zeros(0, np.int64),
        name_texts=(),
    )
    features = Features(
        terms=np.nonzero(found)[0],
        rows=np.nonzero(found)[1],
        counts=found[np.nonzero(found)],
        speakers=np.array([1, 2] if seed % 3 else [], np.int64),
        mentions=np.zeros(size, np.bool_),
        echoes=np.zeros(size, np.bool_),
        repeats=np.zeros(size, np.bool_),
        eligible=np.ones(size, np.bool_),
        recency=-random.random(size),
        unsought=np.zeros(size),
        of_others=random.random(size) < 0.5 if seed % 2 else None,
    )
    return columns, query, features


@pytest.mark.parametrize("seed", range(4))
def test_the_ranking_is_what_its_definition_says(seed: int) -> None:
    """Given a random conversation, I expect every part of the evidence, the score and the order of the definition."""
    columns, query, features = _random_conversation(seed)
    weights = Weights()
    definition = Definition(columns, query, features, weights)

    ranking = rank(columns, query, features, weights)

    rows = ranking.rows.tolist()
    assert sorted(rows) == list(range(len(columns)))
    for part in ("meaning", "words", "session", "utterance"):
        assert getattr(ranking, part) == pytest.approx([getattr(definition, part)(row) for row in rows]), part
    evidence = ranking.evidence.tolist()
    assert ranking.score == pytest.approx([definition.score(one, evidence[0]) for one in evidence])
    assert (np.diff(ranking.evidence) <= 0).all()


def test_a_part_of_a_ranking_has_all_of_each_memory() -> None:
    """Given a mask, I expect those memories in their order, each with its score and its parts of the evidence."""
    ranking = rank(*_random_conversation(0))
    kept = np.arange(len(ranking)) % 3 == 1

    part = ranking.where(kept)

    assert part.rows.tolist() == ranking.rows[1::3].tolist()
    for name in ("score", "meaning", "words", "session", "utterance", "evidence"):
        assert getattr(part, name).tolist() == getattr(ranking, name)[1::3].tolist(), name


def test_an_echo_counts_as_if_it_had_never_been_stored() -> None:
    """Given two echoes, I expect the ranking of the others alone, under their own rows."""
    columns, query, features = _random_conversation(1)
    kept = ~np.isin(np.arange(len(columns)), [3, 17])
    alone = rank(columns.where(kept), query, features.where(kept))

    ranking = rank(columns, query, replace(features, echoes=~kept))

    assert ranking.rows.tolist() == np.flatnonzero(kept)[alone.rows].tolist()
    assert ranking.score.tolist() == alone.score.tolist()
    assert ranking.evidence.tolist() == alone.evidence.tolist()


def _of_then(shares: Sequence[float]) -> dict[int, float]:
    """What the evidence of each memory gains, where so much of each is of the time that is asked about."""
    columns, query, features = _random_conversation(3)
    then = np.zeros(len(columns))
    then[: len(shares)] = shares
    before, after = (
        by_row(rank(columns, query, asked), "utterance") for asked in (features, replace(features, then=then))
    )
    return {row: after[row] - before[row] for row in before}


def test_what_is_of_the_time_asked_about_gains_by_how_rare_that_is() -> None:
    """Given that 0.7 of the answers are of the time, I expect the likelihood ratios as among ten more."""
    gained = _of_then([1.0, 1.0, 0.5])
    inside, outside = np.log(0.7 / (2 / 50)), np.log(0.3 / (48 / 50))
    assert gained == pytest.approx(dict.fromkeys(gained, outside) | {0: inside, 1: inside, 2: (inside + outside) / 2})


@pytest.mark.parametrize("shares", [[], [0.5], [1.0] * 35])
def test_a_time_of_no_memory_or_of_most_says_nothing(shares: list[float]) -> None:
    """Given a time without memories, or with 0.7 of all, I expect no evidence of it."""
    assert set(_of_then(shares).values()) == {0.0}


def test_among_a_few_memories_one_of_the_time_counts_as_one_among_ten_more() -> None:
    """Given four memories of which one is of the time, I expect it to gain what one of fourteen does."""
    turns = [Turn(f"story {n}", session=n) for n in range(4)]
    columns, query = columns_of(turns), query_features("Which is it?")
    features = match(columns, query, SearchData(query="Which is it?"), 1_000.0)
    then = np.array([0.0, 0.0, 1.0, 0.0])
    before, after = (by_row(rank(columns, query, f), "utterance") for f in (features, replace(features, then=then)))
    assert after[2] - before[2] == pytest.approx(np.log(0.7 / (1 / 14)))


def test_a_time_is_bounded() -> None:
    """Given one memory of a time among many, I expect it to gain no more than one among 67."""
    columns, query, features = _many(2_000)
    then = (np.arange(len(columns)) == 5).astype(np.float64)
    before, after = (by_row(rank(columns, query, f), "utterance") for f in (features, replace(features, then=then)))
    assert after[5] - before[5] == pytest.approx(np.log(0.7 / 0.015))


def test_half_of_the_evidence_of_a_time_counts_for_the_score() -> None:
    """Given the best as one of two of the time, I expect half of what it gains by that in its score."""
    columns, query, features = _random_conversation(3)
    before = rank(columns, query, features)
    then = np.isin(np.arange(40), before.rows[:2]).astype(np.float64)
    after = rank(columns, query, replace(features, then=then))

    log_odds = [np.log(ranking.score[0] / (1 - ranking.score[0])) for ranking in (before, after)]
    assert after.rows[0] == before.rows[0]
    assert log_odds[1] - log_odds[0] == pytest.approx(0.37 * 0.5 * np.log(0.7 / (2 / 50)))


def test_a_time_survives_an_echo() -> None:
    """Given an echo before the memory of the time, I expect that memory to gain, and not its neighbour."""
    columns, query, features = _random_conversation(3)
    then, echoes = np.arange(40) == 9, np.arange(40) == 4
    asked = replace(features, echoes=echoes)
    before, after = (
        by_row(rank(columns, query, f), "utterance") for f in (asked, replace(asked, then=then.astype(np.float64)))
    )
    assert [row for row in before if after[row] > before[row]] == [9]


def test_the_first_of_a_ranking_are_the_best() -> None:
    """Given a number, I expect so many, or all where there are fewer."""
    ranking = rank(*_random_conversation(0))
    assert ranking.first(3).rows.tolist() == ranking.rows[:3].tolist()
    assert len(ranking.first(99)) == len(ranking)
