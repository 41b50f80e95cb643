"""Fit of the projection of queries, with leave-users-out cross-validation.

`python -m bench.retrieval.projection [--data FILE ...] [--folds N] [--write] [--json PATH]`.

The default embedder was trained on which web page answers a question. An affine map of the query's vector (an offset of
384 numbers, a matrix of 384 by 384) adapts it to which line of a chat does; the memories' vectors stay as they are. The
objective is that the ranking as a whole finds the answers. For a given query text, the log-odds of every memory are
affine in the cosines; so the map is fitted by gradient descent on the cross-entropy between the memories that answer
and the softmax of the log-odds, with a penalty on large displacements.

Prints the results for users that the map was not fitted to: of N groups of users, each is searched with the map fitted
to the others. `--write` fits it to all users and writes the file of the projection.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from keepsake_client.protocol import SearchData
from numpy.typing import NDArray

from bench.harness.databases import scratch_database
from bench.harness.statistics import mean
from bench.harness.tables import show, track, write_json
from bench.retrieval.chats import BILINGUAL, SEEN, Chat, read_chats
from bench.retrieval.variants import FULL
from services.long_term_memory.embeddings.projection import PROJECTION, project
from services.long_term_memory.factory import open_long_term_memory
from services.long_term_memory.retrieval.features import match
from services.long_term_memory.retrieval.query import query_features
from services.long_term_memory.retrieval.ranking import rank
from services.runtime.settings import load_settings

Matrix = NDArray[np.float32]

#: Ridge penalty on matrix and offset. A third or three times as much changes hit rates by less than 0.01.
MATRIX_COST, OFFSET_COST = 0.03, 3.0
#: Divides the log-odds before their softmax; values from 1 to 2 find as much.
TEMPERATURE = 1.2
#: Number and size of the steps of the descent. Twice as many steps change nothing.
STEPS, RATE = 60, 3e-3


@dataclass(frozen=True)
class Affine:
    """One user's log-odds as an affine function of the projected queries: `queries @ lift.T + rest`.

    Of q queries and n memories.

    Args:
        queries: (q, 384) float32, their vectors, not projected.
        lift: (n, 384) float32, the change of each memory's log-odds by direction of the query.
        rest: (q, n) float32, the log-odds of each memory for each query if all cosines were 0.
        wanted: (q, n) bool, which memories answer it.
    """

    queries: Matrix
    lift: Matrix
    rest: Matrix
    wanted: NDArray[np.bool_]

    @classmethod
    def of(cls, chat: Chat) -> Affine:
        """The affine function of a chat, from its ranking: one evaluation for each memory and one for each query."""
        size = len(chat.conversation)
        # Fingerprints are unique, or the ranking would drop duplicates; and the boost of the newest is not affine.
        columns = replace(chat.conversation, fingerprint=np.arange(size))
        weights, unfiltered = replace(FULL, newest=0.0), SearchData(query="anything")

        def evidence(text: str, cosine: NDArray[np.float64]) -> NDArray[np.float64]:
            memories, query = replace(columns, cosine=cosine), query_features(text)
            ranked = rank(memories, query, match(memories, query, unfiltered, chat.now), weights)
            found = np.zeros(size)
            found[ranked.rows] = ranked.evidence
            return found

        nought = evidence("", np.zeros(size))
        slopes = np.stack([evidence("", unit) - nought for unit in np.eye(size)], axis=1)
        return cls(
            np.stack([asked.vector for asked in chat.asked]),
            (slopes @ chat.vectors).astype(np.float32),
            np.stack([evidence(asked.text, np.zeros(size)) for asked in chat.asked]).astype(np.float32),
            np.stack([asked.wanted for asked in chat.asked]),
        )


def fit(users: Sequence[Affine]) -> Matrix:
    """The projection that finds these users' answers best, as `providers.project` takes it: (385, 384) float32."""
    centre = np.concatenate([user.queries for user in users]).mean(axis=0)
    matrix, offset = np.zeros((len(centre), len(centre)), np.float32), np.zeros_like(centre)
    number = sum(len(user.queries) for user in users)
    moments: dict[str, tuple[Matrix, Matrix]] = {}
    for step in range(1, STEPS + 1):
        of_matrix, of_offset = 2 * MATRIX_COST * matrix, 2 * OFFSET_COST * offset
        for user in users:
            centred = user.queries - centre
            moved = user.queries + offset + centred @ matrix
            length = np.linalg.norm(moved, axis=1, keepdims=True)
            unit = moved / length
            evidence = (unit @ user.lift.T + user.rest) / TEMPERATURE
            wrong = _softmax(evidence) - _softmax(np.where(user.wanted, evidence, -np.inf))
            slope = wrong @ user.lift / TEMPERATURE
            slope = (slope - (slope * unit).sum(axis=1, keepdims=True) * unit) / length
            of_matrix += centred.T @ slope / number
            of_offset += slope.sum(axis=0) / number
        matrix = matrix - _adam("matrix", of_matrix, step, moments)
        offset = offset - _adam("offset", of_offset, step, moments)
    return np.vstack([offset - centre @ matrix, matrix + np.eye(len(centre), dtype=np.float32)])


def _softmax(evidence: Matrix) -> Matrix:
    powers = np.exp(evidence - evidence.max(axis=1, keepdims=True))
    shares: Matrix = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _adam(name: str, slope: Matrix, step: int, moments: dict[str, tuple[Matrix, Matrix]]) -> Matrix:
    """The step of Adam (Kingma & Ba 2015, arXiv:1412.6980, with its default constants)."""
    first, second = moments.get(name, (np.zeros_like(slope), np.zeros_like(slope)))
    first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
    moments[name] = first, second
    distance: Matrix = RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return distance


def places(user: Affine, queries: Matrix) -> list[int]:
    """The rank, from 0, of the first memory that answers, for each query."""
    evidence = queries @ user.lift.T + user.rest
    best = np.where(user.wanted, evidence, -np.inf).max(axis=1, keepdims=True)
    return [int(place) for place in (evidence > best).sum(axis=1)]


def measure(chats: Sequence[tuple[str, Chat]], users: Sequence[Affine], folds: int) -> dict[str, dict[str, float]]:
    """hit@1 and hit@5 by file, kind and language, without the projection and with one fitted to other users."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for fold in track(range(folds), "fitting"):
        projection = fit([user for number, user in enumerate(users) if number % folds != fold])
        for (name, chat), user in list(zip(chats, users, strict=True))[fold::folds]:
            for column, queries in (
                ("without projection", user.queries),
                ("projected", project(user.queries, projection)),
            ):
                for asked, place in zip(chat.asked, places(user, queries), strict=True):
                    kind = {"cross": "across languages", "message": "messages"}.get(asked.kind, "own language")
                    for group in (f"{name}: {kind}", f"{name}: {chat.language}"):
                        found[group][column].append(place)
    return {
        f"{group} ({len(columns['projected'])}) @{k}": {
            column: mean([float(place < k) for place in at]) for column, at in columns.items()
        }
        for group, columns in sorted(found.items())
        for k in (1, 5)
    }


def main() -> None:
    """Measure and print; write the projection if `--write` is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[BILINGUAL, SEEN],
        help="files in the format of tests/data/bilingual.json",
    )
    parser.add_argument("--folds", type=int, default=6, help="groups of users")
    parser.add_argument("--write", action="store_true", help="fit to all and write the projection")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    with scratch_database() as url:
        ltm = open_long_term_memory(load_settings(database_url=url), 1)
        chats = [(path.stem, chat) for path in given.data for chat in read_chats(ltm, path)]
        ltm.close()
    users = [Affine.of(chat) for _, chat in chats]
    figures = measure(chats, users, given.folds)
    show("leave-users-out cross-validation", figures)
    if given.write:
        np.save(PROJECTION, fit(users).astype(np.float16))  # half the size, equal to four digits
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
