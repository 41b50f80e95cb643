"""Evidence: what supports each memory of one user as the answer to a query.

It is added up in log-odds (one more makes a memory e times likelier), because BM25 weights are log-odds by derivation:

* meaning: by how many deviations its cosine exceeds that of an unrelated memory in the same script, with a share of its
  neighbours' in the session: a question often matches the turn before its answer;
* words: BM25F (bm25f.py), where the neighbours are fields of less weight: a word that occurs twice in a passage
  saturates instead of counting twice. Idf is the user's own;
* session: the same two of its whole session, with little weight;
* utterance: its speaker, whether it states or asks, its length, its age where a half-life is given; whether it is of
  the time that the query asks about; and, where it asks for the current state, how much newer it is than the best.

Everything here is a function of arrays; nothing depends on databases, texts or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from services.long_term_memory.retrieval import bm25f
from services.long_term_memory.retrieval.columns import Floats, Integers, MemoryColumns
from services.long_term_memory.retrieval.facts import ColumnsWithFacts, ahead_of_what_they_replaced
from services.long_term_memory.retrieval.features import Features
from services.long_term_memory.retrieval.neighbours import Neighbours, passages
from services.long_term_memory.retrieval.query import QueryFeatures
from services.long_term_memory.retrieval.weights import Weights

#: Memories of a session with a mean deviation of 0 that the session's own mean is shrunk with.
_SESSION_PRIOR: Final = 3.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence of n memories, at least one of them a message.

    Args:
        meaning, words, session, utterance: (n,) float64, its parts.
        total: (n,) float64, their sum.
        time_named: (n,) float64, what being of the time that is asked about gives to `utterance`.
        baseline_shift: by how many deviations the mean cosine exceeds the one expected.
        asked: the sum of the idf of the query's terms.
    """

    meaning: Floats
    words: Floats
    session: Floats
    utterance: Floats
    total: Floats
    time_named: Floats
    baseline_shift: float
    asked: float


def evidence_of(columns: MemoryColumns, query: QueryFeatures, features: Features, weights: Weights) -> Evidence:
    """The evidence of each memory, before any is compared with another."""
    deviation, baseline_shift = _deviations(columns, query, weights)
    neighbours = Neighbours.of(columns, weights.same_speaker)
    meaning = weights.meaning * _passage_meaning(deviation, neighbours, weights)
    idf = _idf(columns, query, features, weights)
    words = weights.words * _passage_words(columns, idf, features, neighbours, weights)
    session = _session_words(columns, query, features, weights)
    session += weights.session_meaning * _session_meaning(columns, deviation)
    time_named = _time_named(columns, features, weights)
    utterance = _utterance(columns, features, weights) + _circumstances(features) + time_named
    total = meaning + words + session + utterance
    if isinstance(columns, ColumnsWithFacts):
        lifted = ahead_of_what_they_replaced(columns, total)
        total, utterance = lifted, utterance + (lifted - total)
    return Evidence(meaning, words, session, utterance, total, time_named, baseline_shift, float(idf.sum()))


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
