"""Retrieval with and without facts: `python -m bench.retrieval.facts --data FILE... [--cache DIR] [--json PATH]`.

The facts are made by rules (`bench.retrieval.restated`); that of a message finds what the message would. With facts no
figure may be lower. In process and without PostgreSQL, as `bench.retrieval.sets`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from keepsake_client.protocol import MemoryUpdateMessage, SearchData

from bench.harness.tables import show, track, write_json
from bench.retrieval import figures
from bench.retrieval.corpus import Corpus, Search, columns_of, corpora, half_precision
from bench.retrieval.datasets import User, read
from bench.retrieval.figures import Found
from bench.retrieval.restated import facts_of
from bench.retrieval.sets import LIMIT, answerable, search
from bench.retrieval.variants import FULL
from bench.retrieval.vectors import VectorCache
from services.long_term_memory.memory_service import MATTER_DEPTH
from services.long_term_memory.retrieval.columns import MemoryColumns
from services.long_term_memory.retrieval.facts import ColumnsWithFacts, with_facts
from services.long_term_memory.retrieval.features import match
from services.long_term_memory.retrieval.newer import prefer_newer
from services.long_term_memory.retrieval.ranking import rank
from services.long_term_memory.retrieval.results import depth_for, results


class CorpusWithFacts:
    """A user's memories with their facts."""

    def __init__(self, user: User, corpus: Corpus, vectors: VectorCache) -> None:
        self.corpus = corpus
        facts = facts_of(user.messages)
        columns, order = columns_of([_message(fact.text, fact.message) for fact in facts])
        facts = [facts[place] for place in order]
        numbers = dict(zip(corpus.ids, corpus.columns.number.tolist(), strict=True))
        columns = replace(columns, number=columns.number + corpus.columns.number.max())
        said = [(new, numbers[str(fact.message.message_id)]) for new, fact in zip(columns.number, facts, strict=True)]
        self.columns: MemoryColumns = ColumnsWithFacts.of(
            corpus.columns, [columns], np.array(said, np.int64).reshape(-1, 2), np.zeros((0, 2), np.int64)
        )
        self.vectors = np.concatenate([corpus.vectors, half_precision(vectors.memories([f.text for f in facts]))])

    def search(self, asked: Search) -> Found:
        """The results; a fact counts as the message that says it."""
        columns = replace(self.columns, cosine=(self.vectors @ half_precision(asked.vector)).astype(np.float64))
        question, query = asked.question, asked.query
        data = SearchData(query=question.text, speaker=question.asker)
        features = match(columns, query, data, question.asked_at)
        features = with_facts(columns, features, include_superseded=False)
        ranking = rank(columns, query, features, FULL, limit=depth_for(columns, LIMIT))
        if query.asks_current_state and len(ranking):
            ranking = ranking.first(MATTER_DEPTH)
            likeness = (self.vectors[ranking.rows] @ self.vectors[ranking.rows[0]]).astype(np.float64)
            ranking = prefer_newer(ranking, columns, features, likeness, FULL)
        shown, _ = results(ranking, columns, LIMIT)
        assert isinstance(columns, ColumnsWithFacts)
        message = np.arange(len(columns))
        message[columns.said_rows[:, 0]] = columns.said_rows[:, 1]
        return Found(self.corpus, asked, message[shown.rows].tolist(), shown.score.tolist())


def _message(text: str, said: MemoryUpdateMessage) -> MemoryUpdateMessage:
    return said.model_copy(update={"content": text})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files")
    parser.add_argument("--cache", type=Path, help="a directory that keeps the vectors for the next run")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    vectors = VectorCache(given.cache)
    everything = {}
    for path in given.data:
        users = read(path)
        found: dict[str, list[Found]] = {"without": [], "with facts": []}
        for user, corpus in track(list(zip(users, corpora(users, vectors), strict=True)), path.stem):
            found["without"] += [search(corpus, asked, FULL) for asked in corpus.searches]
            beside = CorpusWithFacts(user, corpus, vectors)
            found["with facts"] += [beside.search(asked) for asked in corpus.searches]
        table = {}
        for name, of in found.items():
            kept, none = figures.kept(answerable(of)), [one for one in of if not one.search.evidence]
            table[name] = {**figures.quality(answerable(of)), "kept": kept["recall@10 at 0.09"]}
            if none:
                table[name]["empty"] = figures.unanswerable(none)["empty at 0.09"]
        show(path.stem, table, 4)
        everything[path.stem] = table
    write_json(given.json, everything)


if __name__ == "__main__":
    main()
