"""Retrieval with and without facts: `python -m bench.retrieval.facts --data FILE... [--provider NAME ...]`.

The messages of each user (of any form that `bench.retrieval.datasets` reads) are stored and searched; then an LLM
reads them, by the whole path of extraction into PostgreSQL, and the same searches find facts beside them. A fact counts
as the messages that it was found in, a message as itself.

Without --provider the rule-based model of `bench.harness.rule_model` answers, over HTTP. With one, LTM_LLM_MODEL and
LTM_LLM_BASE_URL, or the options, say which; the key is taken from the environment alone (LTM_LLM_API_KEY, or what the
provider's library reads). --answers DIR keeps each answer: a run that was stopped goes on without paying twice.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keepsake_client.protocol import Memory, SearchData

from bench.harness.databases import scratch_database
from bench.harness.llm_server import LLMServer
from bench.harness.tables import progress_bar, show, track, write_json
from bench.retrieval import figures
from bench.retrieval.datasets import ADVERSARIAL, Question, User, read
from bench.retrieval.kept_answers import KeptAnswers
from services.long_term_memory.extraction.budget import Budget
from services.long_term_memory.extraction.prompt import Prompts
from services.long_term_memory.extraction.provider import FactFinder
from services.long_term_memory.extraction.rebuilding import rebuild
from services.long_term_memory.extraction.report import read_report
from services.long_term_memory.extraction.service import ExtractionService
from services.long_term_memory.factory import LongTermMemory, open_long_term_memory
from services.long_term_memory.mem0_bridge import build_llm
from services.long_term_memory.retrieval.fingerprints import fingerprint
from services.runtime.settings import Settings, load_settings

#: Results of a search, as many as the wire allows for.
LIMIT = 100
#: Messages that are stored in one batch.
_STORED_AT_ONCE = 64
#: Between two looks whether a provider that asked to be left alone may be asked again.
_POLL_S = 1.0
# The end of a session is not waited for, nor is a message that failed; the provider is.
_DUE = "UPDATE extraction SET due_at = now(), not_before = NULL WHERE lease_until IS NULL"
_FACTS = "SELECT count(*), count(*) FILTER (WHERE kind = 'superseded') FROM memories"
_FACTS += " JOIN users ON users.number = user_number WHERE kind <> 'message'"


@dataclass(frozen=True)
class Answers:
    """The results of one search.

    Args:
        evidence: for each part of the answer, the ids of the memories that hold it.
        said: for each result, best first, the ids of the messages that it stands for.
        scores: of the results.
    """

    question: Question
    evidence: tuple[frozenset[str], ...]
    said: list[frozenset[str]]
    scores: list[float]

    def recall(self, first: int, min_score: float = 0.0) -> float:
        """The share of the answer's parts among the first results, of those with at least that score."""
        found = frozenset[str]().union(
            *(ids for ids, score in zip(self.said[:first], self.scores, strict=False) if score >= min_score)
        )
        return sum(not part.isdisjoint(found) for part in self.evidence) / len(self.evidence)

    def hit(self, first: int, min_score: float = 0.0) -> float:
        """Whether an answer is among the first."""
        return float(self.recall(first, min_score) > 0)

    @property
    def best(self) -> float:
        """The best score; 0 where nothing was found."""
        return self.scores[0] if self.scores else 0.0


class StoredUser:
    """A user of a data set whose messages are stored."""

    def __init__(self, user: User, ltm: LongTermMemory) -> None:
        self._user = user
        self._id = user.messages[0].user_id
        self._ltm = ltm
        ids: list[str] = []
        for begin in range(0, len(user.messages), _STORED_AT_ONCE):
            ids += ltm.memories.index_many(user.messages[begin : begin + _STORED_AT_ONCE])
        # A text that was said several times is found once.
        copies = defaultdict(set)
        for memory_id, message in zip(ids, user.messages, strict=True):
            copies[fingerprint(message.content)].add(memory_id)
        self._ids = {m.message_id: copies[fingerprint(m.content)] for m in user.messages}

    def search(self) -> Iterator[Answers]:
        """The results of all questions."""
        for question in self._user.questions:
            search = SearchData(query=question.text, limit=LIMIT, min_score=0.0, speaker=question.asker)
            found = self._ltm.memories.search(self._id, search, now=question.asked_at)
            parts = tuple(frozenset().union(*(self._ids[one] for one in part)) for part in question.evidence)
            yield Answers(question, parts, [_said(memory) for memory in found], [m.score or 0.0 for m in found])

    def read_again(self) -> None:
        """Put all messages into the outbox."""
        with self._ltm.pool.connection() as connection:
            rebuild(connection, self._id)


def _said(memory: Memory) -> frozenset[str]:
    return frozenset(memory.metadata["evidence"] if memory.kind == "fact" else [memory.id])


def extract(ltm: LongTermMemory, finder: KeptAnswers, settings: Settings, tokens: int) -> dict[str, float]:
    """Have the LLM read everything in the outbox; what it took and found.

    Raises:
        SystemExit: the provider refuses, or `tokens` are used up.
    """
    threads = settings.ltm_extract_threads
    service = ExtractionService(
        ltm.pool,
        finder,
        ltm.memories.writer.embed,
        Budget(tokens, tokens),
        capacity=threads,
        call_s=settings.ltm_llm_timeout_s,
        zone=settings.timezone,
    )
    with ltm.pool.connection() as connection, ThreadPoolExecutor(threads) as executor, progress_bar() as progress:
        connection.autocommit = True
        left = read_report(connection).messages
        bar = progress.add_task("extracting", total=left)
        while (report := read_report(connection)).messages:
            progress.update(bar, completed=left - report.messages)
            if report.state in ("stopped", "over budget"):
                raise SystemExit(f"{report.state}: {report.reason or f'--tokens {tokens} are used up'}")
            connection.execute(_DUE)
            leases = service.tick()
            list(executor.map(lambda lease: service.extract(*lease), leases))
            if not leases:
                time.sleep(_POLL_S)
        facts, superseded = connection.execute(_FACTS).fetchone() or (0, 0)
        report = read_report(connection)
    return {"facts": facts, "superseded": superseded, "set aside": report.set_aside}


def measure(
    users: list[User], ltm: LongTermMemory, finder: KeptAnswers, settings: Settings, tokens: int
) -> tuple[figures.Table, figures.Table]:
    """The figures without and with facts, and what these took."""
    stored = [StoredUser(user, ltm) for user in track(users, "storing")]
    found = {"without": [one for user in track(stored, "searching") for one in user.search()]}
    for user in stored:
        user.read_again()
    took = extract(ltm, finder, settings, tokens)
    found["with facts"] = [one for user in track(stored, "searching") for one in user.search()]
    table = {}
    for name, of in found.items():
        counted = [one for one in of if one.evidence and one.question.kind != ADVERSARIAL]
        none = [one for one in of if not one.evidence]
        kept = {"n": float(len(counted)), "kept": figures.kept(counted)["recall@10 at 0.09"]}
        empty = {"empty": figures.unanswerable(none)["empty at 0.09"]} if none else {}
        table[name] = {**figures.quality(counted), **kept, **empty}
    table["one question"] = dict.fromkeys(table["without"], 1 / table["without"]["n"])
    messages = float(sum(len(user.messages) for user in users))
    spent = {
        name: {"messages": messages, **asdict(of)} for name, of in (("answers", finder.used), ("paid", finder.paid))
    }
    return table, {"answers": {**spent["answers"], **took}, "paid now": spent["paid"]}


@contextmanager
def _settings(given: argparse.Namespace, database_url: str) -> Iterator[Settings]:
    """Settings of the LLM that the options name, or of a server with the rule-based model."""
    options = {"ltm_llm_model": given.model, "ltm_llm_base_url": given.base_url, "ltm_extract_threads": given.threads}
    own = {name: value for name, value in options.items() if value is not None} | {"database_url": database_url}
    if given.provider is not None:
        yield load_settings(ltm_llm_provider=given.provider, **own)
        return
    with LLMServer() as server:
        rules = {"ltm_llm_base_url": server.url, "ltm_llm_api_key": "none", "ltm_llm_model": "rules"}
        yield load_settings(**{**own, "ltm_llm_provider": "openai", **rules})


def run(given: argparse.Namespace, path: Path) -> tuple[figures.Table, figures.Table]:
    """Measure one file on a database of its own."""
    with scratch_database() as url, _settings(given, url) as settings:
        llm = build_llm(settings)
        assert llm is not None
        finder = FactFinder(llm, settings.profile_slots, settings.ltm_llm_timeout_s)
        address = settings.ltm_llm_base_url.get_secret_value() if settings.ltm_llm_base_url else ""
        model = f"{settings.ltm_llm_provider} {settings.ltm_llm_model} {address}"
        # The rule-based model costs nothing, and changes with the code.
        kept = KeptAnswers(finder, Prompts(settings.profile_slots), given.answers if given.provider else None, model)
        ltm = open_long_term_memory(settings, settings.ltm_extract_threads + 1)
        try:
            return measure(read(path), ltm, kept, settings, given.tokens)
        finally:
            ltm.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files")
    parser.add_argument("--provider", help="of the LLM, as LTM_LLM_PROVIDER; the rule-based model without it")
    parser.add_argument("--model", help="as LTM_LLM_MODEL, which it overrides")
    parser.add_argument("--base-url", help="as LTM_LLM_BASE_URL, which it overrides")
    parser.add_argument("--threads", type=int, help="calls at a time, as LTM_EXTRACT_THREADS")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="the most that calls for one file may take")
    parser.add_argument("--answers", type=Path, help="a directory that keeps the LLM's answers for the next run")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    everything: dict[str, Any] = {}
    for path in given.data:
        quality, spent = run(given, path)
        show(f"{path.stem}: retrieval", quality, 4)
        show(f"{path.stem}: extraction", spent, 0)
        everything[path.stem] = {"retrieval": quality, "extraction": spent}
        write_json(given.json, everything)


if __name__ == "__main__":
    main()
