"""The benchmark of retrieval on data sets: what it reads, what it ranks, and what its figures are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from keepsake_client.protocol import MemoryUpdateMessage
from numpy.typing import NDArray

from bench.retrieval import figures
from bench.retrieval.corpus import Corpus, Search, asked_of_the_next, columns_of
from bench.retrieval.datasets import Question, read, without_captions
from bench.retrieval.figures import Found
from bench.retrieval.variants import FULL
from bench.retrieval.vectors import VectorCache

MESSAGES = [
    {"id": "chat:1#1u", "text": "I have a cat", "source": "user", "timestamp": 10.0, "session": "chat:1"},
    {"id": "chat:1#1a", "text": "How nice", "source": "ai", "timestamp": 20.0, "session": "chat:1"},
    {"id": "note:2", "text": "milk and bread", "source": "user", "timestamp": 90_000.0, "session": None},
]
QUESTIONS = [
    {"text": "Which pet?", "evidence": ["chat:1", "note:2"], "kind": "plain", "asked_at": 99_000.0},
    {"text": "Which car?", "evidence": [], "kind": "unanswerable", "asked_at": 99_000.0},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of one user in the form of a list of users."""
    path = tmp_path / "set.json"
    path.write_text(json.dumps([{"user": "u1", "messages": MESSAGES, "questions": QUESTIONS}]))
    return path


class _Embedder:
    """Counts the texts that it embeds, each as its length in the first number."""

    engine = "int8"

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def embed_batch(self, texts: list[str], action: str) -> list[NDArray[np.float32]]:
        self.embedded += texts
        return [np.eye(384, dtype=np.float32)[0] * len(text) for text in texts]


def found(
    rows: list[int],
    parts: list[set[int]],
    scores: list[float] | None = None,
    corpus: Corpus | None = None,
    kind: str = "plain",
) -> Found:
    """The result of a search whose answer has these parts."""
    question = Question("Which?", kind, (), 0.0)
    search = Search(question, np.zeros(384, np.float32), tuple(map(frozenset, parts)))
    return Found(corpus or _corpus("a", 1), search, rows, scores or [0.9] * len(rows))


def test_any_turn_of_a_chat_that_is_evidence_answers(file: Path) -> None:
    """Given evidence that names a whole chat and a note, I expect two parts, the first of them both of its turns."""
    (user,) = read(file)

    assert user.questions[0].evidence == (frozenset({"chat:1#1u", "chat:1#1a"}), frozenset({"note:2"}))
    assert user.questions[1].evidence == ()


def test_a_message_without_a_session_belongs_to_its_day(file: Path) -> None:
    """Given two turns of a session and a note of the next day, I expect two sessions, the turns together."""
    columns, order = columns_of(read(file)[0].messages)

    session = dict(zip(order.tolist(), columns.session.tolist(), strict=True))
    assert session[0] == session[1] != session[2]


def test_captions_are_left_out(tmp_path: Path) -> None:
    """Given a turn with a photo in LoCoMo's form, I expect its text with the caption, and without."""
    turn = {"speaker": "Anna", "dia_id": "D1:1", "text": "Look!", "blip_caption": "a cat"}
    conversation = {"session_1": [turn], "session_1_date_time": "1:56 pm on 8 May, 2023"}
    path = tmp_path / "locomo.json"
    path.write_text(json.dumps([{"sample_id": "c", "conversation": conversation, "qa": []}]))

    (user,) = read(path)

    assert [m.content for m in user.messages] == ["Anna: Look! [photo: a cat]"]
    assert [m.content for m in without_captions(user).messages] == ["Anna: Look!"]


def test_a_text_is_embedded_once_for_all_runs(tmp_path: Path) -> None:
    """Given a directory with the vectors of an earlier run, I expect the same vectors, and new texts alone embedded."""
    first, second = _Embedder(), _Embedder()
    before = VectorCache(tmp_path, first).memories(["one", "three", "one"])  # type: ignore[arg-type]

    after = VectorCache(tmp_path, second).memories(["three", "seven", "one"])  # type: ignore[arg-type]

    assert first.embedded == ["one", "three"]
    assert second.embedded == ["seven"]
    assert after[2].tolist() == before[0].tolist()


def test_recall_is_the_share_of_the_parts_and_a_hit_any_of_them() -> None:
    """Given an answer of two parts, one of two copies, I expect one copy to count as the part."""
    result = found([7, 3, 5], [{3, 4}, {9}])

    assert [result.recall(k) for k in (1, 2)] == [0.0, 0.5]
    assert [result.hit(k) for k in (1, 2)] == [0.0, 1.0]


def test_what_scores_too_little_is_not_found() -> None:
    """Given an answer in the second place with a score of 0.1, I expect it kept at 0.1 and lost at 0.2."""
    result = found([7, 3], [{3}], [0.9, 0.1])

    assert (result.recall(10, 0.1), result.recall(10, 0.2)) == (1.0, 0.0)


def test_the_interval_of_equal_differences_is_their_value() -> None:
    """Given the same difference for every question, I expect no width; given different ones, the mean within."""
    assert figures.interval([0.25] * 10) == (0.25, 0.25)
    low, high = figures.interval([0.0, 1.0] * 50)
    assert low < 0.5 < high


def test_a_search_without_an_answer_is_empty_below_the_cutoff() -> None:
    """Given best scores of 0.04, of 0.5 and none, I expect two of three empty at 0.05, and the median best."""
    figure = figures.unanswerable([found([1], [], [0.04]), found([1], [], [0.5]), found([], [])])

    assert figure["empty at 0.05"] == pytest.approx(2 / 3)
    assert figure["median best"] == 0.04


def test_reliability_weighs_searches_with_and_without_an_answer_alike() -> None:
    """Given two answered searches, both right, and four unanswerable, all scored alike, I expect half to be right."""
    own, others = [found([3], [{3}], [0.7])] * 2, [found([1], [], [0.7])] * 4

    (row,) = figures.reliability(own, others).values()

    assert (row["answerable"], row["unanswerable"]) == (2, 4)
    assert (row["right"], row["right, answerable"]) == (0.5, 1.0)


def _corpus(name: str, number: int) -> Corpus:
    columns, _ = columns_of(messages(number))
    search = Search(Question(f"{name}?", "plain", (), 0.0), np.zeros(384, np.float32), (frozenset({0}),))
    return Corpus(name, columns, np.zeros((number, 384), np.float32), [], [search])


def messages(number: int) -> list[MemoryUpdateMessage]:
    """So many messages of one session, a second apart."""
    return [
        MemoryUpdateMessage(
            user_id="u1", content=f"line {n}", source="user", timestamp=float(n), meta={"session_id": "s"}
        )
        for n in range(number)
    ]


def test_a_users_questions_are_asked_of_the_user_before() -> None:
    """Given three users, I expect each asked the next one's question, the last the first one's, unanswered."""
    users = [_corpus(name, 2) for name in "abc"]

    asked = asked_of_the_next(users)

    assert [(user.name, s.question.text, s.evidence) for user, s in asked] == [
        ("a", "b?", ()),
        ("b", "c?", ()),
        ("c", "a?", ()),
    ]
    assert asked_of_the_next(users[:1]) == []


def test_of_an_update_the_newest_is_before_the_oldest() -> None:
    """Given answers of two times, the newer in the first place and the older in the third, I expect it counted so."""
    corpus = _corpus("a", 5)
    older, newer = np.argsort(corpus.columns.timestamp)[[0, 4]].tolist()
    other = next(row for row in range(5) if row not in (older, newer))

    (row,) = figures.updates(
        [found([newer, other, older], [{older}, {newer}], kind="temporal-update", corpus=corpus)]
    ).values()

    assert (row["newer first"], row["median place, newest"], row["oldest"]) == (1.0, 1.0, 3.0)


def test_newer_of_the_same_matter_comes_first_as_in_a_search() -> None:
    """Given an old fact nearer to a query of now than a new one of its matter, I expect the new one first of all."""
    columns, _ = columns_of(messages(12))
    vectors = np.eye(384, dtype=np.float32)[:12]
    vectors[11] = 0.98 * vectors[0] + 0.2 * vectors[11]
    searches = [Search(Question(text, "plain", (), 99.0), vectors[0], ()) for text in ("Who is it?", "Who is it now?")]
    corpus = Corpus("a", columns, vectors, [], searches)

    assert [corpus.ranked(one, FULL).rows[0] for one in searches] == [0, 11]
