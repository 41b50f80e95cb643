"""Memory and speed of reading exports: `python -m bench.resilience.imports [--megabytes 500] [--json PATH]`.

Writes a file of each form and size, and reads it with `ltm import --dry-run` in a process of its own, which does all
but send the pages. The time is that of its CPU; the memory is the most that it held
(its maximum resident set size).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.harness.tables import show, track, write_json

SINCE = 1_500_000_000
#: Messages of a conversation of ChatGPT: a long one has a few thousand.
TURNS = 400
MAX_MB = 200
_WORDS = (
    "the",
    "a",
    "sea",
    "stone",
    "letter",
    "garden",
    "我们",
    "明天",
    "brother",
    "Évora",
    "train",
    "winter",
    "music",
    "question",
    "answer",
    "because",
    "🎻",
    "maybe",
)


#: Texts that are written again and again: making each would take longer than reading it.
_TEXTS = [" ".join(random.Random(n).choices(_WORDS, k=3 + n % 57)) for n in range(1_000)]


def _text(rng: random.Random) -> str:
    return _TEXTS[int(rng.random() * len(_TEXTS))]


def _discord(rng: random.Random) -> Iterator[str]:
    yield '{"guild":{"id":"1","name":"G"},"channel":{"id":"2","type":"GuildTextChat","name":"general"},"messages":[\n'
    people = [
        {"id": str(n), "name": f"p{n}", "nickname": f"Person {n}", "isBot": n == 0, "roles": []} for n in range(9)
    ]
    for number in range(10**9):
        message = {"id": str(number), "type": "Default", "timestamp": _iso(number), "content": _text(rng)}
        rest = {"author": rng.choice(people), "attachments": [], "embeds": [], "reactions": [], "mentions": []}
        yield ("," if number else "") + json.dumps({**message, **rest}, indent=2)
    yield "]}"


def _chatgpt(rng: random.Random) -> Iterator[str]:
    yield "["
    for number in range(10**9):
        mapping: dict[str, Any] = {}
        for turn in range(TURNS):
            key = f"{number}-{turn}"
            author: dict[str, Any] = {"role": "assistant" if turn % 2 else "user", "name": None, "metadata": {}}
            content = {"content_type": "text", "parts": [_text(rng)]}
            message = {"id": key, "author": author, "create_time": SINCE + number * TURNS + turn, "content": content}
            extra = {
                "status": "finished_successfully",
                "weight": 1.0,
                "recipient": "all",
                "metadata": {"citations": []},
            }
            parent = f"{number}-{turn - 1}" if turn else None
            mapping[key] = {"id": key, "parent": parent, "children": [], "message": {**message, **extra}}
        fields = {"title": _text(rng), "conversation_id": str(number), "current_node": f"{number}-{TURNS - 1}"}
        yield ("," if number else "") + json.dumps({**fields, "mapping": mapping})
    yield "]"


def _telegram(rng: random.Random) -> Iterator[str]:
    yield '{"name":"Group","type":"private_group","id":7,"messages":[\n'
    for number in range(10**9):
        who = rng.randint(1, 8)
        message = {"id": number, "type": "message", "date_unixtime": str(SINCE + number), "from": f"Person {who}"}
        text = [_text(rng), {"type": "bold", "text": "bold"}]
        yield ("," if number else "") + json.dumps({**message, "from_id": f"user{who}", "text": text}, indent=1)
    yield "]}"


def _whatsapp(rng: random.Random) -> Iterator[str]:
    for number in range(10**9):
        moment = time.strftime("%d/%m/%Y, %H:%M", time.gmtime(SINCE + 60 * number))
        yield f"{moment} - Person {rng.randint(1, 8)}: {_text(rng)}\n"


def _jsonl(rng: random.Random) -> Iterator[str]:
    for number in range(10**9):
        fields = {"role": rng.choice(["user", "assistant"]), "content": _text(rng), "timestamp": SINCE + number}
        yield json.dumps({**fields, "session_id": str(number // 100), "id": str(number)}) + "\n"


def _csv(rng: random.Random) -> Iterator[str]:
    yield "role,content,timestamp\n"
    for number in range(10**9):
        yield f'{rng.choice(["user", "assistant"])},"{_text(rng)}\n{_text(rng)}",{SINCE + number}\n'


FORMS: dict[str, tuple[str, Callable[[random.Random], Iterator[str]], str]] = {
    "ChatGPT": ("conversations.json", _chatgpt, "]"),
    "Discord": ("discord.json", _discord, "]}"),
    "Telegram": ("result.json", _telegram, "]}"),
    "WhatsApp": ("chat.txt", _whatsapp, ""),
    "JSON Lines": ("rows.jsonl", _jsonl, ""),
    "CSV": ("rows.csv", _csv, ""),
}


def _iso(number: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(SINCE + number))


def _write(path: Path, pieces: Iterator[str], closing: str, size: int) -> None:
    with path.open("w") as file:
        for piece in pieces:
            file.write(piece)
            if file.tell() >= size:
                break
        file.write(closing)


def _read(path: Path, size: int) -> dict[str, float]:
    """Read a file of that many bytes with the command: its records, CPU time and most megabytes of memory."""
    argv = [str(Path(sys.executable).with_name("ltm")), "import", "bench", str(path), "--dry-run", "--room"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"ltm import {path.name} ended with {process.returncode}: {output}")
    seconds = usage.ru_utime + usage.ru_stime
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    records = int(output.split(" has ")[1].split()[0].replace(",", ""))
    return {
        "records": records,
        "CPU s": seconds,
        "MB/CPU s": size / 1e6 / seconds,
        "memory MB": kilobytes / 1e3,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=FORMS)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    for form in track(given.forms, "reading"):
        name, pieces, closing = FORMS[form]
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / name
            _write(path, pieces(random.Random(1)), closing, given.megabytes * 1_000_000)
            figures[form] = _read(path, path.stat().st_size)
            if form == "ChatGPT":
                archive = path.with_suffix(".zip")
                with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
                    file.write(path, name)
                figures["ChatGPT, .zip"] = _read(archive, path.stat().st_size)
    show(f"reading of {given.megabytes} MB", figures, 1)
    most = max(one["memory MB"] for one in figures.values())
    text = f"\nTargets\n{'yes' if most <= MAX_MB else 'NO ':<4} memory: {most:.0f} MB at most (target: <= {MAX_MB} MB)"
    Console(soft_wrap=True).print(text, markup=False, highlight=False)
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
