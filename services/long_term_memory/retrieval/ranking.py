"""Ranking: orders the memories of one user by how likely they answer a query, and gives that probability.

Every memory is ranked. What supports a memory is added up as evidence in log-odds (one more makes it e times likelier),
because BM25 weights are log-odds by derivation:

* meaning: by how many deviations its cosine exceeds that of an unrelated memory in the same script, with a share of its
  neighbours' in the session: a question often matches the turn before its answer;
* words: BM25F (bm25f.py), where the neighbours are fields of less weight: a word that occurs twice in a passage
  saturates instead of counting twice. Idf is the user's own;
* session: the same two of its whole session, with little weight;
* utterance: its speaker, whether it states or asks, its length, its age where a half-life is given; whether it is of
  the time that the query asks about; and, where it asks for the current state, how much newer it is than the best.

Order follows evidence. `score` is the probability that follows from it: that of the best memory is comparable across
queries and users, and low when nothing relevant is stored; that of the others falls from there.

Everything here is a function of arrays; nothing depends on databases, texts or models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np

from services.long_term_memory.retrieval import bm25f
from services.long_term_memory.retrieval.columns import Booleans, Floats, Integers, MemoryColumns
from services.long_term_memory.retrieval.facts import ColumnsWithFacts, ahead_of_what_they_replaced
from services.long_term_memory.retrieval.features import Features
from services.long_term_memory.retrieval.neighbours import Neighbours, passages
from services.long_term_memory.retrieval.query import QueryFeatures
from services.long_term_memory.retrieval.quotations import behind_what_they_repeat
from services.long_term_memory.retrieval.weights import Weights

#: What scores less is not returned, unless the search says otherwise.
DEFAULT_MIN_SCORE: Final = 0.09

#: What scores as much may answer what the user has asked before: a line that repeats the query comes behind it. What
#: carries nothing scores less, and so do most others of a few memories.
ANSWER_SCORE: Final = 0.2
#: The default in log-odds.
_MIN_LOG_ODDS: Final = math.log(DEFAULT_MIN_SCORE / (1.0 - DEFAULT_MIN_SCORE))

#: Memories of a session with a mean deviation of 0 that the session's own mean is shrunk with.
_SESSION_PRIOR: Final = 3.0


@dataclass(frozen=True, slots=True)
class Ranking:
    """A ranking: memories, best first.

    Args:
        rows: (k,) int64, their rows among the columns that were ranked.
        score: (k,) float64, the probability that each answers; falls in order.
        meaning: (k,) float64, the parts of the evidence, in log-odds ...
        words: (k,) float64
        session: (k,) float64
        utterance: (k,) float64
    """

    rows: Integers
    score: Floats
    meaning: Floats
    words: Floats
    session: Floats
    utterance: Floats

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def evidence(self) -> Floats:
        """(k,) float64, the sum of the parts, in log-odds."""
        return self.meaning + self.words + self.session + self.utterance

    def first(self, count: int) -> Ranking:
        """The best `count` memories."""
        return self.where(np.arange(len(self)) < count)

    def followed_by(self, others: Ranking) -> Ranking:
        """These memories and behind them others, none with a higher score than the one before."""
        both = {part.name: np.append(getattr(self, part.name), getattr(others, part.name)) for part in fields(Ranking)}
        return Ranking(**{**both, "score": np.minimum.accumulate(both["score"])})

    def where(self, kept: Booleans) -> Ranking:
        """The memories of the mask `kept`, (k,) bool, in the same order."""
        return Ranking(**{part.name: getattr(self, part.name)[kept] for part in fields(Ranking)})


def rank(
    columns: MemoryColumns,
    query: QueryFeatures,
    features: Features,
    weights: Weights | None = None,
    *,
    limit: int | None = None,
) -> Ranking:
    """The memories most likely to answer, best first, each text once.

    Echoes of the query are ranked as if they had never been stored. Memories that are not eligible still contribute to
    their neighbours and to the statistics. Where the query was not embedded, only memories with one of its words are
    ranked, and the limit counts these alone.

    Args:
        limit: how many at most; None for all.
    """
    weights = weights or Weights()
    if features.repeats.any():
        return _with_repeats(columns, query, features, weights, len(columns) if limit is None else limit)
    embedded = not np.isnan(columns.cosine).all()
    original = np.flatnonzero(~features.echoes)
    if len(original) < len(columns):
        columns, features = columns.where(~features.echoes), features.where(~features.echoes)
    if not columns.message_count:
        return Ranking(original[:0], *(np.zeros(0) for _ in range(5)))

    deviation, baseline_shift = _deviations(columns, query, weights)
    neighbours = Neighbours.of(columns, weights.same_speaker)
    meaning = weights.meaning * _passage_meaning(deviation, neighbours, weights)
    idf = _idf(columns, query, features, weights)
    words = weights.words * _passage_words(columns, idf, features, neighbours, weights)
    session = _session_words(columns, query, features, weights)
    session += weights.session_meaning * _session_meaning(columns, deviation)
    time_named = _time_named(columns, features, weights)
    utterance = _utterance(columns, features, weights) + _circumstances(features) + time_named
    evidence = meaning + words + session + utterance
    if isinstance(columns, ColumnsWithFacts):
        lifted = ahead_of_what_they_replaced(columns, evidence)
        evidence, utterance = lifted, utterance + (lifted - evidence)

    candidates = np.flatnonzero(features.eligible & (embedded | (words > 0)))
    evidence = behind_what_they_repeat(columns, evidence, candidates, len(columns) if limit is None else limit)
    best = _best(evidence, candidates, columns.fingerprint, len(columns) if limit is None else limit)
    beside = weights.meaning * baseline_shift - (1.0 - weights.then_in_score) * time_named[best[:1]]
    score = _probability(evidence[best] + beside, float(idf.sum()), columns, weights)
    return Ranking(original[best], score, meaning[best], words[best], session[best], utterance[best])


def _with_repeats(
    columns: MemoryColumns, query: QueryFeatures, features: Features, weights: Weights, limit: int
) -> Ranking:
    """The memories as if what repeats the query had never been stored, with that after those which may answer.

    It takes the last place of a list that is full of answers: what is stored can be found by its own words.
    """
    none = np.zeros_like(features.repeats)
    others = replace(features, echoes=features.echoes | features.repeats, repeats=none)
    answers = rank(columns, query, others, weights, limit=limit)
    own = replace(features, eligible=features.eligible & features.repeats, repeats=none)
    repeats = rank(columns, query, own, weights, limit=limit)
    place = int(np.count_nonzero(answers.score >= ANSWER_SCORE))
    place = min(place, limit - 1) if limit > 1 else place
    order = np.r_[:place, len(answers) : len(answers) + len(repeats), place : len(answers)][:limit]
    ranking = Ranking(*(np.r_[getattr(answers, f.name), getattr(repeats, f.name)][order] for f in fields(Ranking)))
    return replace(ranking, score=np.minimum.accumulate(ranking.score))


def _deviations(columns: MemoryColumns, query: QueryFeatures, weights: Weights) -> tuple[Floats, float]:
    """By how many deviations each cosine exceeds the mean of memories in its script.

    Two texts in one language are nearer to each other than to their translations; measured against its own script, a
    memory in the other language becomes comparable. A query that was not embedded has the cosine of an unrelated one
    to every memory.

    Returns:
        (n,) float64 in deviations; and by how many that mean itself exceeds the model's expected one, the average over
        all memories, which makes scores comparable across users.
    """
    script, statements = columns.script, columns.statements
    expected = np.array(weights.unrelated_cosine[query.script])
    if query.is_japanese:
        expected += weights.japanese_cosine
    cosine = np.where(np.isnan(columns.cosine), expected[script], columns.cosine)
    mean = _shrunken_means(cosine[statements], script[statements], expected, weights.prior)
    baseline_shift = float((mean - expected)[script[columns.messages]].mean()) / weights.cosine_deviation
    return (cosine - mean[script]) / weights.cosine_deviation, baseline_shift


def _shrunken_means(values: Floats, group: Integers, expected: Floats, prior: float) -> Floats:
    """The mean of each group, (g,) float64, as if `prior` more of its members had the expected value."""
    number = np.bincount(group, minlength=len(expected))
    total = bm25f.sums(group, values, len(expected))
    means: Floats = (total + prior * expected) / (number + prior)
    return means


def _passage_meaning(deviation: Floats, neighbours: Neighbours, weights: Weights) -> Floats:
    """(n,) float64, the deviation of each turn with a share of its neighbours'."""
    kernel = weights.meaning_kernel
    return passages(deviation, neighbours.own(kernel), neighbours.shares(kernel, weights.follow_up_boost))


def _idf(columns: MemoryColumns, query: QueryFeatures, features: Features, weights: Weights) -> Floats:
    """(t,) float64, the idf of each of the query's terms among what the user's memories state."""
    statements = columns.statements
    documents = np.bincount(features.terms[statements[features.rows]], minlength=len(query.terms))
    return query.term_weight * bm25f.idf(documents, np.count_nonzero(statements) + weights.idf_smoothing)


def _passage_words(
    columns: MemoryColumns, idf: Floats, features: Features, neighbours: Neighbours, weights: Weights
) -> Floats:
    """(n,) float64, BM25F of each turn with its neighbours as fields, scaled by how much of the query it covers."""
    terms, size, statements = len(idf), len(columns), columns.statements
    if not terms:
        return np.zeros(size)
    own = neighbours.own(weights.words_kernel)
    shares = neighbours.shares(weights.words_kernel, weights.follow_up_boost)
    length = passages(columns.length.astype(np.float64), own, shares)
    relative_length = length / bm25f.average_length(length[statements], weights.prior)
    frequency = bm25f.field_frequencies((features.terms, features.rows, features.counts), (terms, size), own, shares)
    bm25 = bm25f.bm25(frequency, relative_length, idf, weights.k1, weights.b)
    coverage = bm25 / idf.sum()
    scaled: Floats = bm25 * np.minimum(coverage / weights.full_coverage, 1.0)
    return scaled


def _session_words(columns: MemoryColumns, query: QueryFeatures, features: Features, weights: Weights) -> Floats:
    """(n,) float64, the bounded BM25 of the session of each turn; turns that only ask do not count."""
    terms, session, statements = len(query.terms), columns.session_index, columns.statements
    sessions = int(session[columns.messages][-1]) + 1
    length = bm25f.sums(session, columns.length * statements, sessions)
    stated = statements[features.rows]
    key = features.terms[stated] * sessions + session[features.rows[stated]]
    frequency = bm25f.sums(key, features.counts[stated], terms * sessions)
    documents = np.bincount(np.flatnonzero(frequency) // sessions, minlength=terms)
    idf = query.term_weight * bm25f.idf(documents, sessions)
    relative_length = length / max(float(length.mean()), 1.0)
    bm25 = bm25f.bm25(frequency, relative_length, idf, weights.k1, weights.b)
    bounded: Floats = weights.session_words_bound * np.tanh(weights.session_words * bm25 / weights.session_words_bound)
    return bounded[session]


def _session_meaning(columns: MemoryColumns, deviation: Floats) -> Floats:
    """(n,) float64, the mean deviation of the session of each turn, shrunk towards 0; questions do not count."""
    session, statements = columns.session_index, columns.statements
    expected = np.zeros(int(session[columns.messages][-1]) + 1)
    return _shrunken_means(deviation[statements], session[statements], expected, _SESSION_PRIOR)[session]


def _utterance(columns: MemoryColumns, features: Features, weights: Weights) -> Floats:
    """(n,) float64, the evidence of the form of each utterance."""
    average = bm25f.average_length(columns.length[columns.messages], weights.prior)
    relative = np.log((columns.length + 1) / (average + 1))
    evidence: Floats = weights.length * np.clip(relative, -2.0, 1.5)
    evidence += weights.from_ai * columns.from_ai
    evidence += np.array([0.0, weights.ends_asking, weights.only_asks])[columns.asks]
    if len(features.speakers):  # "What did Anna buy?": Anna states it herself, or another tells it of Anna
        named = np.isin(columns.speaker, features.speakers)
        evidence += weights.other_speaker * ((columns.speaker != 0) & ~named & ~features.mentions)
    if isinstance(columns, ColumnsWithFacts):
        evidence += weights.fact * columns.is_fact
    if features.of_others is not None:  # "When is my birthday?": the asker's own
        evidence += weights.not_of_asker * features.of_others
    return evidence


def _circumstances(features: Features) -> Floats:
    """(n,) float64, evidence that lies neither in words nor in meaning nor in form, each term in log-odds.

    Its age, and that the query looks for nothing.
    """
    return features.recency + features.unsought


def _time_named(columns: MemoryColumns, features: Features, weights: Weights) -> Floats:
    """(n,) float64, the evidence of being of the time that the query asks about, as a ratio of likelihoods.

    A time that holds a memory in fifty says much, one that holds half of them little; one without memories, or with
    almost all, says nothing. As with words, `idf_smoothing` more memories count outside: that one of a user's first
    four is of a day is rare already.
    """
    then, nothing = features.then, np.zeros(len(features.eligible))
    if then is None or not (then == 1.0).any():
        return nothing
    of_messages = then[columns.messages]
    within = np.count_nonzero(of_messages == 1.0)
    if within >= weights.answers_then * len(of_messages):
        return nothing
    share = max(within / (len(of_messages) + weights.idf_smoothing), weights.least_then)
    inside, outside = np.log(weights.answers_then / share), np.log((1.0 - weights.answers_then) / (1.0 - share))
    evidence: Floats = outside + (inside - outside) * then
    return evidence


def _probability(evidence: Floats, asked: float, columns: MemoryColumns, weights: Weights) -> Floats:
    """The probability that each memory answers, from its evidence and that of the best, which is the first.

    Args:
        evidence: (k,) float64, best first, in log-odds.
        asked: the sum of the idf of the query's terms, in log-odds.
    """
    statements = np.count_nonzero(columns.statements)
    chance = weights.corpus_size * np.log(statements + weights.corpus_size_prior) + np.log1p(asked)
    best = weights.calibration_slope * (evidence[:1] - chance) + weights.calibration_intercept
    return falling_scores(best, evidence, weights)


def falling_scores(best: Floats, evidence: Floats, weights: Weights) -> Floats:
    """The scores of memories by how much less evidence each has than the first, which has the highest.

    They fall from the score of the first towards the default `min_score`: one with less evidence is hardly as likely an
    answer, but may be the rest of one, and whether there is an answer at all is decided by the first. One that nothing
    supports, as an unrelated one of a few or a greeting, falls below that.

    Args:
        best: (1,) float64, the log-odds of the score of the first.
        evidence: (k,) float64, in log-odds.
    """
    margin = best - _MIN_LOG_ODDS
    margin = np.where(margin > 0.0, margin, 1.0)
    behind = evidence[:1] - evidence
    lacking = np.minimum(np.maximum(weights.unsupported - evidence, 0.0), behind)
    log_odds = best - margin * behind / (behind + weights.runner_up) - weights.calibration_slope * lacking
    scores: Floats = 1.0 / (1.0 + np.exp(-np.clip(log_odds, -30.0, 30.0)))
    return scores


def _best(evidence: Floats, candidates: Integers, fingerprint: Integers, limit: int) -> Integers:
    """The rows of the best `limit` candidates, best first; of those with one fingerprint only the first."""
    considered = 4 * limit + 16
    while True:
        best = candidates
        if considered < len(best):
            best = best[np.argpartition(-evidence[best], considered)[:considered]]
        best = best[np.argsort(-evidence[best], kind="stable")]
        _, first = np.unique(fingerprint[best], return_index=True)
        if len(first) >= limit or considered >= len(candidates):
            distinct: Integers = best[np.sort(first)][:limit]
            return distinct
        considered *= 8  # a user who repeats one message all day
