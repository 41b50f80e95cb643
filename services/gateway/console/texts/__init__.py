"""The console's texts, in English and Chinese: a file for each page, each text in both languages side by side."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

Language = Literal["en", "zh"]
LANGUAGES: Final[tuple[Language, ...]] = get_args(Language)


class Texts:
    """The texts of one page in one language, and those that all pages share.

    Args:
        page: the name of the page's file.
    """

    def __init__(self, page: str, language: Language) -> None:
        self.language = language
        self._texts = {**read_texts("common"), **read_texts(page)}

    def __call__(self, name: str, /, **values: Any) -> str:
        """A text; `values` replace what stands in braces."""
        text = self._texts[name][self.language]
        return text.format(**values) if values else text

    def has(self, name: str) -> bool:
        """Whether there is such a text."""
        return name in self._texts


@cache
def read_texts(page: str) -> dict[str, dict[Language, str]]:
    """The texts of a file by name and language."""
    texts: dict[str, dict[Language, str]] = json.loads((Path(__file__).parent / f"{page}.json").read_text())
    return texts


def preferred(accepted: str) -> Language:
    """The language of a browser's Accept-Language: the one that is named first, English by default."""
    for part in accepted.lower().split(","):
        for language in LANGUAGES:
            if part.strip().startswith(language):
                return language
    return "en"
