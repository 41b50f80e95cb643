"""Token counts of texts and prompts, estimated from their characters: no tokenizer is installed for every model."""

from __future__ import annotations

import re

#: Of Chinese, Japanese and Korean, o200k_base and Qwen's tokenizer make about one token a character at most.
_ONE_TOKEN_EACH = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")
#: Of other text about one token for four characters (OpenAI's rule of thumb for English).
_CHARS_A_TOKEN = 4


def estimate_text(text: str) -> int:
    """An estimate of the tokens of a text, at least one."""
    alone = len(_ONE_TOKEN_EACH.findall(text))
    return alone + (len(text) - alone) // _CHARS_A_TOKEN + 1
