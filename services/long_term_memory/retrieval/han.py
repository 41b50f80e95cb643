"""Han characters: one for each set of variants, so that what is written in one form is found in the other.

Character by character, unlike a conversion for readers: OpenCC's phrases leave 乾 in 乾安縣, but not in 乾安县; and 著
in Taiwan is 着 elsewhere, where it is not the one of 著名. For a search both are one.
"""

from typing import Final

import opencc

#: Forms of Taiwan and Hong Kong to OpenCC's standard, then Traditional to Simplified.
_CONVERSIONS: Final = ("tw2t", "hk2t", "t2s")
_BLOCKS: Final = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
#: What OpenCC takes for words of their own: pronouns by gender and kind, and variants in Unicode's Unihan database
#: (kSemanticVariant and kSpecializedSemanticVariant).
_OTHERS: Final = {"妳": "你", "牠": "它", "祂": "他", "甚": "什", "麽": "么", "幺": "么", "姊": "姐", "姪": "侄"}


def _variants() -> dict[int, str]:
    characters = [chr(code) for first, last in _BLOCKS for code in range(first, last + 1)]
    text = "\n".join(characters)
    for conversion in _CONVERSIONS:
        text = opencc.OpenCC(conversion).convert(text)
    folded = [_OTHERS.get(character, character) for character in text.split("\n")]
    table = dict(zip(characters, folded, strict=True))
    # 麼 becomes 麽, which becomes 么: what a character becomes is itself folded.
    return {ord(character): table.get(form, form) for character, form in table.items() if form != character}


_VARIANTS: Final = _variants()


def fold(text: str) -> str:
    """The text with one character for each set of variants; as long as it was."""
    return text.translate(_VARIANTS)
