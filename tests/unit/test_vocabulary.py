"""The code and its docs use the field's terms: the names of docs/glossary.md, and no private language."""

from __future__ import annotations

import ast
import re
import subprocess
import tokenize
from collections.abc import Iterable, Iterator
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Where former names may stand: the changelog says what was renamed, and the data is other people's words.
EXEMPT = ("CHANGELOG.md", "LICENSE", "tests/data/", "tests/unit/test_vocabulary.py")

#: Names that were replaced, each by the term beside it.
FORMER = {
    r"\bRoll\b|\broll\b(?! )|\bbury\b|\bunbur|\bROLL\b": "membership, evict",
    r"\bKeeper\b|\bkeep_house\b|keeps? house": "maintenance",
    r"\bHandOver\b|\bhand_over\b|\bread_ahead\b": "dispatch, prefetch",
    r"\bUpdateLog\b|\bupdates_log\b": "UpdateStream",
    r"\bPace\b|\bHEADROOM\b": "LatencyEstimate, SAFETY_FACTOR",
    r"\bTogether\b|\b_Wish\b|\bkeep_together\b": "Batcher, pending item",
    r"\bwait_and_open\b|long_term_memory[./]opening": "open_when_ready, factory",
    r"long_term_memory[./](reading|recall|speech|words|conversation|pace|together|embedders|database|migrations)\b": (
        "candidates, query, utterances, tokenizer, columns, deadlines, batching, providers, pool, schema"
    ),
    r"\basks_of_now\b|\bof_now\b": "asks_current_state",
    r"\btestify\b|\bcrowd\b|\bcertainty\b|\bnats\b": (
        "contribute, corpus-size correction, calibration intercept, log-odds"
    ),
    r"\btold\(|\bWORDY\b|\bsaid_by_a_library\b": "redact, VERBOSE_LOGGERS, library_log",
    r"\b[Ll]anes?\b|\b(lasting|temporary)_home\b|\btend\b|\b_?greet\b|\b_?obituary\b": (
        "per-user executor, persistent_dir, poll, report_ready, format_crash"
    ),
    r"\b(connection|redis|server)_(lost|back|found)\b": "dependency_down, dependency_up",
    r"\bCAN_HEAL\b|\bFOR_A_DAY\b|\bWHILE_ASKED\b": "TRANSIENT_ERRORS, INDEX_RETRY, WRITE_RETRY",
    r"stands? back|wants? the processors|kinds? of hurry|signs? of life": (
        "lower CPU priority, CPU-bound, urgency, heartbeat"
    ),
    r"\b(MOST|LONGEST)_[A-Z]|\b[A-Z]+_SECONDS\b": "MAX_*, *_S",
}
#: Words that leave open who acts, or speak of programs as of people.
VAGUE = r"\b([Ww]hoever|[Nn]obody|[Ss]omebody|[Aa]nybody|[Ee]verybody|[Hh]is|[Hh]imself)\b"


def _files(*suffixes: str) -> list[Path]:
    """The files that git tracks, with one of these endings."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.splitlines() if not name.startswith(EXEMPT) and name.endswith(suffixes)]
    return [ROOT / name for name in names if (ROOT / name).exists()]


def _found(pattern: str, path: Path, lines: Iterable[tuple[int, str]]) -> list[str]:
    """Where the pattern occurs in numbered lines, as `file:number: line`."""
    shown = path.relative_to(ROOT)
    return [f"{shown}:{number}: {line.strip()[:90]}" for number, line in lines if re.search(pattern, line)]


def _prose(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a text, or of the comments and docstrings of a module: data may speak as people do."""
    text = path.read_text()
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), start=1)
        return
    for token in tokenize.generate_tokens(StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            docstring := ast.get_docstring(node, clean=False)
        ):
            yield from enumerate(docstring.splitlines(), start=node.body[0].lineno)


@pytest.mark.parametrize("pattern", FORMER, ids=FORMER.values())
def test_no_former_name_is_left(pattern: str) -> None:
    """Given the names that the glossary's terms replaced, I expect none in code, docs or configuration."""
    found = [
        place
        for path in _files(".py", ".md", ".yml", ".toml", ".conf", "Dockerfile", "Makefile")
        if re.search(pattern, text := path.read_text())  # a search of each line takes far longer
        for place in _found(pattern, path, enumerate(text.splitlines(), start=1))
    ]

    assert found == []


def test_prose_names_who_acts() -> None:
    """Given docstrings, comments and docs, I expect the acting service or person by name."""
    found = [
        place
        for path in _files(".py", ".md", ".yml", ".toml")
        if re.search(VAGUE, path.read_text())  # few have one at all; to tell prose from data takes far longer
        for place in _found(VAGUE, path, _prose(path))
    ]

    assert found == []
