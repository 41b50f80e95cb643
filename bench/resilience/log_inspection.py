"""Inspection of a stack's logs: restarts, tracebacks, and responses by request_id."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from bench.harness.stack import Stack

MAX_SHOWN_CHARS = 300
_RESTARTED = re.compile(r'"name": "([\w-]+)"[^\n]*"event": "process_died_and_is_restarted"')
_RESPONDED = ('"responded"', '"response_not_published"')


def log_lines(stack: Stack) -> Iterator[tuple[str, str]]:
    """Each line of each process's log, with the process's name."""
    for path in sorted(path for one in stack.ltm_ups for path in one.directory.logs.iterdir()):
        with path.open(errors="replace") as file:
            for line in file:
                yield path.name.partition(".log")[0], line


def restarts(stack: Stack) -> Counter[str]:
    """How often each process ended and was started again by the supervisor."""
    printed = (one.output.read_text(errors="replace") for one in stack.ltm_ups)
    return Counter(name for text in printed for name in _RESTARTED.findall(text))


def response_lines(stack: Stack) -> Iterator[str]:
    """The log lines that report a response, published or not."""
    return (line for _, line in log_lines(stack) if any(event in line for event in _RESPONDED))


def tracebacks(stack: Stack) -> dict[str, Counter[str]]:
    """By process: the last lines of the tracebacks in its log, and how often each occurs."""
    found: dict[str, Counter[str]] = {}
    in_traceback: dict[str, bool] = {}
    for name, line in log_lines(stack):
        if line.startswith("{") and '"exception": "' in line:
            entry = _json(line)
            event = str(entry.get("event"))[:MAX_SHOWN_CHARS]
            last = str(entry.get("exception")).strip().rpartition("\n")[2][:MAX_SHOWN_CHARS]
            found.setdefault(name, Counter())[f"{event} | {last}"] += 1
        elif "Traceback (most recent call last)" in line:
            in_traceback[name] = True
        elif in_traceback.get(name) and line[:1].strip():
            in_traceback[name] = False
            found.setdefault(name, Counter())[line.strip()[:MAX_SHOWN_CHARS]] += 1
    return found


def show_tracebacks(by_process: dict[str, Counter[str]], limit: int = 12) -> None:
    """Print the last lines of the tracebacks, the most frequent first."""
    for name, last_lines in by_process.items():
        for last_line, number in last_lines.most_common(limit):
            print(f"  {number:>5} x {name}: {last_line}")


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
