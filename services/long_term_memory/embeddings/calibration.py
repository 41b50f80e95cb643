"""Calibration: mean and deviation of the cosines of unrelated texts, measured when an embedding model is opened.

Two unrelated texts have a cosine of 0.8 in one model and of 0.1 in another, and in two languages yet another one. The
ranking expresses cosines in deviations from that mean.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from mem0.embeddings.base import EmbeddingBase
from numpy.typing import NDArray

from services.long_term_memory.retrieval.weights import Weights

#: Questions and lines that answer them, of which only those with the same index are related, by utterances.Script.
QUESTIONS: Final = (
    (
        "What instrument does my sister play?",
        "When does the train to the airport leave?",
        "Which food must I avoid?",
        "What colour is the kitchen now?",
        "Where did he lose his keys?",
        "How many engineers did we hire?",
        "How has the weather been this week?",
        "What book is she reading?",
    ),
    (
        "我妹妹会什么乐器?",
        "去机场的火车几点开?",
        "我不能吃什么?",
        "厨房刷成了什么颜色?",
        "他的钥匙丢在哪儿了?",
        "我们招了几个工程师?",
        "这周天气怎么样?",
        "她在看什么书?",
    ),
)
LINES: Final = (
    (
        "My sister plays the cello in an orchestra, and on Sundays she teaches children.",
        "The train to the airport leaves at nine!",
        "I'm allergic to peanuts",
        "Wow, we finally painted the kitchen yellow last weekend, it took two whole days",
        "He lost his keys while hiking :(",
        "Our startup has just hired two engineers, so things are getting busy.",
        "Rain since Tuesday...",
        "Thanks! She is reading a novel about pirates, she told me it was great fun.",
    ),
    (
        "我妹妹在乐团拉大提琴,周日还教小朋友。",
        "去机场的火车九点开!",
        "我对花生过敏",
        "哇,上周末我们终于把厨房刷成黄色了,整整花了两天",
        "他爬山的时候把钥匙弄丢了",
        "我们公司刚招了两个工程师,越来越忙了",
        "从周二开始一直在下雨",
        "谢谢!她在看一本讲海盗的小说,说特别好看",
    ),
)

#: Messages of one person are more similar than these lines: the mean of their cosines is higher by this many
#: deviations, and the deviation larger by this factor. Fitted to multilingual-e5-small without the projection of
#: queries, whose cosines were measured on whole conversations.
MEAN_SHIFT: Final = 0.9
DEVIATION_FACTOR: Final = 1.3

#: With a smaller deviation the model's noise would count as meaning.
MIN_DEVIATION: Final = 0.01


def calibrate(embedder: EmbeddingBase, weights: Weights | None = None) -> tuple[Weights, int]:
    """The weights with the constants measured for this model, and the number of dimensions of its vectors.

    Args:
        weights: the others; None for the defaults.
    """
    questions, lines = (
        _unit(np.asarray(embedder.embed_batch([text for texts in kind for text in texts], action), np.float64))
        for kind, action in ((QUESTIONS, "search"), (LINES, "add"))
    )
    scripts, size = len(LINES), len(LINES[0])
    # (script of the question, script of the line, question, line) float64
    cosines = (questions @ lines.T).reshape(scripts, size, scripts, size).swapaxes(1, 2)
    unrelated = cosines[:, :, ~np.eye(size, dtype=bool)]
    alike = (lines @ lines.T).reshape(scripts, size, scripts, size)
    memories = [float(alike[n, :, n][~np.eye(size, dtype=bool)].mean()) for n in range(scripts)]
    deviation = max(DEVIATION_FACTOR * float(np.sqrt(unrelated.var(axis=2).mean())), MIN_DEVIATION)
    mean = unrelated.mean(axis=2) + MEAN_SHIFT * deviation
    calibrated = replace(
        weights or Weights(),
        unrelated_cosine=tuple(tuple(row) for row in mean.tolist()),
        japanese_cosine=(0.0, 0.0),  # of another model it is not known
        cosine_deviation=deviation,
        unrelated_memories=tuple(memories),
    )
    return calibrated, questions.shape[1]


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit
