"""The table of variants of Han characters: `python -m bench.retrieval.han` writes han_variants.txt anew.

From OpenCC's data (package opencc, Apache-2.0), which is not needed at run time: its converters took 10 MB a process.
Character by character, unlike a conversion for readers: OpenCC's phrases leave 乾 in 乾安縣, but not in 乾安县; and 著
in Taiwan is 着 elsewhere, where it is not the one of 著名. For a search both are one.
"""

from __future__ import annotations

import argparse
from typing import Final

import opencc

from services.long_term_memory.retrieval.han import VARIANTS

#: Forms of Taiwan and Hong Kong to OpenCC's standard, then Traditional to Simplified.
_CONVERSIONS: Final = ("tw2t", "hk2t", "t2s")
_BLOCKS: Final = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
#: What OpenCC takes for words of their own: pronouns by gender and kind, and variants in Unicode's Unihan database
#: (kSemanticVariant and kSpecializedSemanticVariant).
_OTHERS: Final = {"妳": "你", "牠": "它", "祂": "他", "甚": "什", "麽": "么", "幺": "么", "姊": "姐", "姪": "侄"}


def variants() -> str:
    """The content of the file: each character that is folded, followed by the one that it becomes."""
    characters = [chr(code) for first, last in _BLOCKS for code in range(first, last + 1)]
    text = "\n".join(characters)
    for conversion in _CONVERSIONS:
        text = opencc.OpenCC(conversion).convert(text)
    folded = [_OTHERS.get(character, character) for character in text.split("\n")]
    table = dict(zip(characters, folded, strict=True))
    # 麼 becomes 麽, which becomes 么: what a character becomes is itself folded.
    return "".join(character + table.get(form, form) for character, form in table.items() if form != character)


def main() -> None:
    """Write the file."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    VARIANTS.write_text(variants(), "utf-8")


if __name__ == "__main__":
    main()
