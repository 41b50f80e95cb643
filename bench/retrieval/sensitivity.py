"""Sensitivity analysis of the ranking's constants.

`python -m bench.retrieval.sensitivity --data FILE [--span S] [--draws N] [--json PATH]`.

All constants of the ranking but the embedder's are multiplied at once, each by a random factor between 1 - S and 1 + S,
N times. Prints the range of recall@10 on a LoCoMo file and of hit@5 on tests/data/chats-unseen.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from keepsake_client.protocol import SearchData

from bench.harness.databases import scratch_database
from bench.harness.statistics import mean
from bench.harness.tables import show, track, write_json
from bench.retrieval import locomo
from bench.retrieval.chats import UNSEEN, Chat, read_chat, read_chats
from bench.retrieval.variants import FULL
from services.long_term_memory.embeddings.projection import PROJECTION, project
from services.long_term_memory.factory import open_long_term_memory
from services.long_term_memory.retrieval.features import match
from services.long_term_memory.retrieval.query import query_features
from services.long_term_memory.retrieval.ranking import rank
from services.long_term_memory.retrieval.weights import Weights
from services.runtime.settings import load_settings

#: Properties of the embedding model, not of the ranking.
FIXED = {"unrelated_cosine", "cosine_deviation"}


def perturbed(rng: np.random.Generator, span: float) -> Weights:
    """The weights, each multiplied by a random factor between 1 - span and 1 + span."""
    moved: dict[str, Any] = {}
    for name in (field.name for field in fields(Weights) if field.name not in FIXED):
        value = getattr(FULL, name)
        factors = rng.uniform(1 - span, 1 + span, np.size(value)).tolist()
        moved[name] = tuple(np.multiply(value, factors).tolist()) if isinstance(value, tuple) else value * factors[0]
    return replace(FULL, **moved)


def recalls(chats: Sequence[Chat], weights: Weights, first: int) -> list[float]:
    """Recall of each query: the share of the memories that answer it among the first results."""
    projection, found = np.load(PROJECTION).astype(np.float32), []
    for chat in chats:
        queries = project(np.stack([asked.vector for asked in chat.asked]), projection)
        for asked, vector in zip(chat.asked, queries, strict=True):
            conversation = replace(chat.conversation, cosine=(chat.vectors @ vector).astype(np.float64))
            query, search = query_features(asked.text), SearchData(query=asked.text)
            features = match(conversation, query, search, chat.now)
            ranked = rank(conversation, query, features, weights, limit=first)
            found.append(float(asked.wanted[ranked.rows].sum() / asked.wanted.sum()))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a file in LoCoMo's format")
    parser.add_argument("--span", type=float, default=0.25, help="largest relative change of a constant")
    parser.add_argument("--draws", type=int, default=25, help="how many times")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    with scratch_database() as url:
        ltm = open_long_term_memory(load_settings(database_url=url), 1)
        conversations = []
        for conversation in track(locomo.read(given.data), given.data.stem):
            answerable = [question for question in conversation.questions if question.category in locomo.ANSWERABLE]
            questions = [(question.text, str(question.category), question.evidence) for question in answerable]
            conversations.append(read_chat(ltm, "en", conversation.turns, questions))
        unseen = list(read_chats(ltm, UNSEEN))
        ltm.close()

    def measured(weights: Weights) -> dict[str, float]:
        return {
            "recall@10, LoCoMo": mean(recalls(conversations, weights, 10)),
            "hit@5, unseen chats": mean([float(share > 0) for share in recalls(unseen, weights, 5)]),
        }

    rng = np.random.default_rng(7)
    found = [measured(perturbed(rng, given.span)) for _ in track(range(given.draws), "perturbing")]
    figures = {"unchanged": measured(FULL)}
    for name, of in (("lowest", min), ("highest", max)):
        figures[name] = {figure: of(one[figure] for one in found) for figure in figures["unchanged"]}
    show(f"all constants changed by up to {given.span:.0%}, {given.draws} times", figures)
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
