"""Control characters of text that people have given, escaped where a terminal or a page would act upon them."""

from __future__ import annotations

import re
from typing import Final

#: Controls (C0 but for tab and line breaks, DEL, C1), line separators, overrides and isolates of the writing direction;
#: and lone surrogates, which no encoding has. Joiners and marks, as in emoji and Persian words, are text.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str) -> str:
    """Text with its control characters as `\\u001b` and the like; tabs and line feeds stay."""
    return _CONTROL.sub(lambda control: f"\\u{ord(control[0]):04x}", text)
