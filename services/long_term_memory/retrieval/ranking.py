"""Which memories of one user answer a query, and how surely.

Every memory of the user is ranked; no list of candidates decides beforehand. What speaks for a memory is added up as
evidence in nats (one more makes it e times likelier), because that is what BM25 weights are by derivation:

* meaning: how many deviations its cosine lies above that of an unrelated memory written in the same script, with a
  share of its neighbours' in the session: a question often matches the turn before its answer;
* words: BM25 (Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond") in its form for
  weighted fields (BM25F, Robertson, Zaragoza & Taylor 2004): the turns around are fainter fields of a turn, so a word
  said twice in a passage saturates instead of counting twice. Idf is the user's own;
* session: the same two of its whole session, faintly;
* utterance: whose words they are, whether they tell or ask, how much they tell; and how new they are, where the query
  asks how things are by now.

Order follows evidence. `score` is the probability made of it: comparable across queries and users, and low everywhere
when nothing relevant is stored.

Everything here is a function of arrays; nothing knows of databases, texts or models.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

DEFAULT_MIN_SCORE: Final = 0.05

_ONLY_ASKS: Final = 2  # utterances.Question.ONLY
_JUST_NOW: Final = 5.0  # seconds: a pipeline searches for what was said as soon as it hears it


@dataclass(frozen=True, slots=True)
class Weights:
    """The constants of the ranking.

    The optimum is flat: any one may change by a third for less than 0.01 of LoCoMo's recall@10 and hit@5, and less than
    three in a hundred of the chats' hit@5. `bench.retrieval.sensitivity` moves all at once.
    """

    # Meaning. The cosine of unrelated texts and its spread belong to the embedding model, and its place to the scripts
    # of the two; these are multilingual-e5-small's with its queries projected, [of the query][of the memory]. A user's
    # own memories correct them: they count as `prior` memories themselves.
    unrelated_cosine: tuple[tuple[float, ...], ...] = ((0.74, 0.73), (0.733, 0.795))
    cosine_deviation: float = 0.028
    prior: float = 8.0
    meaning: float = 1.0
    # Words. BM25 is flat on purpose: chat lines are short and repeat little. Idf counts `unseen` more memories without
    # the word, so that among a user's first five a rare word is rare already. Words count in full once they cover
    # `full_coverage` of what was asked and less below: where a question shares no more than a chance word with
    # anything said, as it mostly does in Chinese, meaning decides.
    words: float = 0.53
    k1: float = 0.7
    b: float = 0.4
    idf_smoothing: float = 10.0
    full_coverage: float = 0.7
    # Neighbours, one and two turns away; `answers` is added for the turn that follows one which asks.
    meaning_kernel: tuple[float, float] = (0.16, 0.1)
    words_kernel: tuple[float, float] = (0.5, 0.3)
    follow_up_boost: float = 0.4
    session_words: float = 0.15
    session_meaning: float = 0.6
    # The utterance. One that only asks comes after all that tell: it is the question again, not its answer.
    other_speaker: float = -2.0
    from_ai: float = -0.7
    ends_asking: float = -0.7
    only_asks: float = -10.0
    length: float = 0.4
    # Where the query asks how things are by now: the newest of all memories against the oldest.
    newest: float = 2.5
    # From evidence to probability, fitted to searches for what was said against searches for what never was.
    calibration_intercept: float = 1.75
    corpus_size_correction: float = 30.0


@dataclass(frozen=True, slots=True)
class Memories:
    """All memories of one user as columns, in the order of the conversation: sessions whole, turns as they came."""

    session: Integers  # any numbers; equal means the same session
    length: Integers  # in terms
    asks: Integers  # utterances.Question
    speaker: Integers  # any numbers for the names before the colon; 0 is none
    script: Integers  # utterances.Script
    from_ai: Booleans
    fingerprint: Integers  # equal means the same text but for case and punctuation
    timestamp: Floats  # seconds

    def __len__(self) -> int:
        return len(self.session)


@dataclass(frozen=True, slots=True)
class Query:
    """A query as it meets those memories: row `rows[i]` contains its term number `terms[i]`, `counts[i]` times."""

    cosine: Floats  # of each memory
    terms: Integers
    rows: Integers
    counts: Integers
    term_weight: Floats  # of each distinct term, tokenizer.term_weight
    script: int
    fingerprint: int
    asks: int
    asks_current_state: bool = False  # utterances.asks_current_state
    speakers: Integers = field(default_factory=lambda: np.zeros(0, np.int64))  # those it names
    now: float = 0.0  # seconds


@dataclass(frozen=True, slots=True)
class Ranking:
    """Memories best first: their rows, their scores, and the parts whose sum is the evidence."""

    rows: Integers
    score: Floats
    meaning: Floats
    words: Floats
    session: Floats
    utterance: Floats

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, kept: Booleans) -> "Ranking":
        """Some of it, in the same order."""
        return Ranking(**{part.name: getattr(self, part.name)[kept] for part in fields(Ranking)})


def rank(
    memories: Memories,
    query: Query,
    weights: Weights | None = None,
    *,
    limit: int | None = None,
    eligible: Booleans | None = None,
    bonus: Floats | None = None,
) -> Ranking:
    """The `limit` memories most likely to answer, or all of them, best first, each text once.

    Memories that are not `eligible` (they fail a filter) still contribute for their neighbours and in the statistics.
    `bonus` is evidence from elsewhere: for a half-life, -log(2) * age / half_life.
    """
    weights = weights or Weights()
    present = ~_echoes(memories, query)
    original = np.flatnonzero(present)
    memories, query = _without_others(memories, query, present)
    if not len(memories):
        return Ranking(original, *(np.zeros(0) for _ in range(5)))

    conversation = _conversation(memories, weights)
    deviation, surroundings = _deviations(memories, query, weights)
    meaning = weights.meaning * _passage_meaning(deviation, conversation, weights)
    words = weights.words * _passage_words(memories, query, conversation, weights)
    session = weights.session_words * _session_words(memories, query, conversation, weights)
    session += weights.session_meaning * _session_meaning(deviation, conversation)
    utterance = _utterance(memories, query, weights)
    if bonus is not None:
        utterance = utterance + bonus[present]
    evidence = meaning + words + session + utterance

    candidates = np.arange(len(memories)) if eligible is None else np.flatnonzero(eligible[present])
    if query.asks_current_state and len(candidates):
        newer = weights.newest * _newer(memories, candidates[np.argmax(evidence[candidates])])
        utterance, evidence = utterance + newer, evidence + newer
    best = _best(evidence, candidates, memories.fingerprint, len(memories) if limit is None else limit)
    score = _probability(evidence[best] + weights.meaning * surroundings, memories, weights)
    return Ranking(original[best], score, meaning[best], words[best], session[best], utterance[best])


def _echoes(memories: Memories, query: Query) -> Booleans:
    """The query itself among the memories: said just now or, where it asks, at any time before.

    A statement in the same words that is older is no echo: one may search for what one said.
    """
    same: Booleans = memories.fingerprint == query.fingerprint
    if query.asks:
        return same
    return same & ~memories.from_ai & (np.abs(memories.timestamp - query.now) <= _JUST_NOW)


def _without_others(memories: Memories, query: Query, kept: Booleans) -> tuple[Memories, Query]:
    """As if only the kept memories had ever been stored, so that the others neither lift nor count."""
    if kept.all():
        return memories, query
    columns = {column.name: getattr(memories, column.name)[kept] for column in fields(Memories)}
    posted = kept[query.rows]
    renumbered = np.cumsum(kept) - 1
    return Memories(**columns), replace(
        query,
        cosine=query.cosine[kept],
        terms=query.terms[posted],
        rows=renumbered[query.rows[posted]],
        counts=query.counts[posted],
    )


@dataclass(frozen=True, slots=True)
class _Conversation:
    """How the turns hang together."""

    joined: tuple[Booleans, ...]  # joined[d - 1][row]: row and row + d are of one session
    follow_up_boost: Floats  # what each turn hands to the next beyond a neighbour's share, because it asks
    session: Integers  # numbered from 0 in their order
    statements: Booleans  # it does not only ask: statistics are of these, or asking often would make a word common


def _conversation(memories: Memories, weights: Weights) -> _Conversation:
    begins = memories.session[1:] != memories.session[:-1]
    return _Conversation(
        joined=tuple(memories.session[d:] == memories.session[:-d] for d in (1, 2)),
        follow_up_boost=np.where(memories.asks > 0, weights.follow_up_boost, 0.0),
        session=np.concatenate(([0], np.cumsum(begins))),
        statements=memories.asks < _ONLY_ASKS,
    )


def _neighbours(conversation: _Conversation, kernel: tuple[float, float]) -> list[tuple[int, Floats, Floats]]:
    """For each distance d: what row hands to row + d, and what row + d hands to row.

    A turn that only asks takes nothing: a row of questions would lift one another above every answer.
    """
    shares = []
    statements = conversation.statements
    for distance, (weight, joined) in enumerate(zip(kernel, conversation.joined, strict=True), start=1):
        onward = weight + conversation.follow_up_boost[:-1] if distance == 1 else weight
        forward = np.where(joined & statements[distance:], onward, 0.0)
        backward = np.where(joined & statements[:-distance], weight, 0.0)
        shares.append((distance, forward, backward))
    return shares


def _deviations(memories: Memories, query: Query, weights: Weights) -> tuple[Floats, float]:
    """How far each cosine lies above that of unrelated memories in its script, and how far the latter above the usual.

    Two texts in one language are nearer to each other than to their translations; measured against its own script, a
    memory in the other language stands where it belongs. The second figure makes scores comparable again.
    """
    statements, script = memories.asks < _ONLY_ASKS, memories.script
    usual = np.array(weights.unrelated_cosine[query.script])
    mean = _shrunken_means(query.cosine[statements], script[statements], usual, weights.prior)
    surroundings = float((mean - usual)[script].mean()) / weights.cosine_deviation
    return (query.cosine - mean[script]) / weights.cosine_deviation, surroundings


def _shrunken_means(values: Floats, group: Integers, expected: Floats, prior: float) -> Floats:
    """The mean of each group as if `prior` more of its members had the expected value."""
    number = np.bincount(group, minlength=len(expected))
    total = _sums(group, values, len(expected))
    means: Floats = (total + prior * expected) / (number + prior)
    return means


def _passage_meaning(deviation: Floats, conversation: _Conversation, weights: Weights) -> Floats:
    passage: Floats = deviation.copy()
    for distance, forward, backward in _neighbours(conversation, weights.meaning_kernel):
        passage[distance:] += forward * deviation[:-distance]
        passage[:-distance] += backward * deviation[distance:]
    return passage


def _passage_words(memories: Memories, query: Query, conversation: _Conversation, weights: Weights) -> Floats:
    """BM25F of each turn with its neighbours as fields, scaled by how much of the query it covers."""
    size = len(memories)
    if not len(query.term_weight):
        return np.zeros(size)
    key, count = query.terms * size + query.rows, query.counts.astype(np.float64)
    keys, counts = [key], [count]
    length = memories.length.astype(np.float64)
    passage = length.copy()
    for distance, forward, backward in _neighbours(conversation, weights.words_kernel):
        passage[distance:] += forward * length[:-distance]
        passage[:-distance] += backward * length[distance:]
        onward, back = query.rows < size - distance, query.rows >= distance
        keys += [key[onward] + distance, key[back] - distance]
        counts += [
            count[onward] * forward[query.rows[onward]],
            count[back] * backward[query.rows[back] - distance],
        ]
    frequency = _sums(np.concatenate(keys), np.concatenate(counts), len(query.term_weight) * size)
    found = np.flatnonzero(frequency)
    term, row = np.divmod(found, size)

    statements = conversation.statements
    documents = np.bincount(query.terms[statements[query.rows]], minlength=len(query.term_weight))
    idf = query.term_weight * _idf(documents, np.count_nonzero(statements) + weights.idf_smoothing)
    saturated = _saturated(frequency[found], passage[row] / _average(passage[statements], weights.prior), weights)
    bm25 = _sums(row, idf[term] * saturated, size)
    coverage = bm25 / idf.sum()
    scaled: Floats = bm25 * np.minimum(coverage / weights.full_coverage, 1.0)
    return scaled


def _session_words(memories: Memories, query: Query, conversation: _Conversation, weights: Weights) -> Floats:
    """BM25 of the session each memory belongs to; what was only asked in it does not count."""
    if not len(query.term_weight):
        return np.zeros(len(memories))
    session, statements = conversation.session, conversation.statements
    sessions = int(session[-1]) + 1
    length = _sums(session, memories.length * statements, sessions)
    posted = statements[query.rows]
    key = query.terms[posted] * sessions + session[query.rows[posted]]
    frequency = _sums(key, query.counts[posted], len(query.term_weight) * sessions)
    found = np.flatnonzero(frequency)
    term, number = np.divmod(found, sessions)
    idf = query.term_weight * _idf(np.bincount(term, minlength=len(query.term_weight)), sessions)
    saturated = _saturated(frequency[found], length[number] / max(float(length.mean()), 1.0), weights)
    bm25: Floats = _sums(number, idf[term] * saturated, sessions)[session]
    return bm25


def _session_meaning(deviation: Floats, conversation: _Conversation) -> Floats:
    sessions = int(conversation.session[-1]) + 1
    statements = conversation.statements
    return _shrunken_means(deviation[statements], conversation.session[statements], np.zeros(sessions), 3.0)[
        conversation.session
    ]


def _utterance(memories: Memories, query: Query, weights: Weights) -> Floats:
    """What the form of an utterance says about it."""
    relative = np.log((memories.length + 1) / (_average(memories.length, weights.prior) + 1))
    evidence: Floats = weights.length * np.clip(relative, -2.0, 1.5)
    evidence += weights.from_ai * memories.from_ai
    evidence += np.array([0.0, weights.ends_asking, weights.only_asks])[memories.asks]
    if len(query.speakers):  # "What did Anna buy?": she tells it herself, the others speak to her of it
        evidence += weights.other_speaker * ((memories.speaker != 0) & ~_among(memories.speaker, query.speakers))
    return evidence


def _newer(memories: Memories, best: np.int64) -> Floats:
    """How much newer each is than the one that would come first, as a share of all; its own score stays what it was.

    By their order in time: the minutes of a chat and the years between two of them weigh the same.
    """
    place = np.argsort(np.argsort(memories.timestamp, kind="stable"), kind="stable") / len(memories)
    newer: Floats = place - place[best]
    return newer


def _among(values: Integers, few: Integers) -> Booleans:
    among = np.zeros(len(values), np.bool_)
    for one in few:
        among |= values == one
    return among


def _probability(evidence: Floats, memories: Memories, weights: Weights) -> Floats:
    """The logistic of the evidence, less what the best of so many unrelated memories shows by chance."""
    statements = np.count_nonzero(memories.asks < _ONLY_ASKS)
    log_odds = evidence - np.log(statements + weights.corpus_size_correction) + weights.calibration_intercept
    probability: Floats = 1.0 / (1.0 + np.exp(-np.clip(log_odds, -30.0, 30.0)))
    return probability


def _idf(documents: Integers, number: float) -> Floats:
    idf: Floats = np.log1p((np.maximum(number - documents, 0.0) + 0.5) / (documents + 0.5))
    return idf


def _saturated(frequency: Floats, relative_length: Floats, weights: Weights) -> Floats:
    k1, b = weights.k1, weights.b
    saturated: Floats = frequency * (k1 + 1) / (frequency + k1 * (1 - b + b * relative_length))
    return saturated


def _average(length: Floats | Integers, prior: float) -> float:
    usual = 8.0  # terms in a line of chat
    return float((length.sum() + prior * usual) / (len(length) + prior))


def _best(evidence: Floats, candidates: Integers, fingerprint: Integers, limit: int) -> Integers:
    """The best `limit` candidates in order, of those with one fingerprint only the first."""
    looked_at = 4 * limit + 16
    while True:
        best = candidates
        if looked_at < len(best):
            best = best[np.argpartition(-evidence[best], looked_at)[:looked_at]]
        best = best[np.argsort(-evidence[best], kind="stable")]
        _, first = np.unique(fingerprint[best], return_index=True)
        if len(first) >= limit or looked_at >= len(candidates):
            distinct: Integers = best[np.sort(first)][:limit]
            return distinct
        looked_at *= 8  # a user who says the same all day


def _sums(key: Integers, values: Floats | Integers | Booleans, size: int) -> Floats:
    sums: Floats = np.bincount(key, values, size).astype(np.float64, copy=False)
    return sums
