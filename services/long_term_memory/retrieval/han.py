"""Han characters: one for each set of variants, so that what is written in one form is found in the other."""

from pathlib import Path
from typing import Final

#: Pairs of a character and the one that it is folded to; `python -m bench.retrieval.han` makes it of OpenCC's data.
VARIANTS: Final = Path(__file__).with_name("han_variants.txt")


def _table() -> dict[int, str]:
    pairs = VARIANTS.read_text("utf-8")
    return dict(zip(map(ord, pairs[0::2]), pairs[1::2], strict=True))


_TABLE: Final = _table()


def fold(text: str) -> str:
    """The text with one character for each set of variants; as long as it was."""
    return text.translate(_TABLE)
