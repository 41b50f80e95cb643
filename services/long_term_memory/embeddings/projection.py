"""The projection of query vectors: an affine map from multilingual-e5-small's queries towards chat messages.

The model was trained on which web page answers a question; which line of a chat answers it differs from that. The map
is fitted by `python -m bench.retrieval.projection`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PROJECTION = Path(__file__).with_name("query_projection.npy")


def load_projection() -> NDArray[np.float32]:
    """The fitted map, (1 + d, d) float32, as `project` takes it."""
    projection: NDArray[np.float32] = np.load(PROJECTION).astype(np.float32)
    return projection


def project(vectors: NDArray[np.float32], projection: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map query vectors and scale them to unit length.

    Args:
        vectors: (q, d) float32.
        projection: (1 + d, d) float32: the offset in the first row, the matrix below it.

    Returns:
        (q, d) float32.
    """
    # Not BLAS's product: its threads, as OpenMP's, would wait for each other on loaded cores.
    moved = projection[0] + np.einsum("qi,io->qo", vectors, projection[1:])
    unit: NDArray[np.float32] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return unit
