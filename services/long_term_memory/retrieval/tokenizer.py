"""Tokenizer: the terms of a text, as keyword search counts them.

The same for memories and queries. The language is determined by script, never by statistics: a chat line is too short
for that, and one line often mixes several languages.

* Alphabets: Snowball stems (snowballstem.org), English for the Latin script, whose accents are folded.
* Chinese and Japanese: character unigrams and bigrams, after Traditional became Simplified (han.py). A
  word segmenter was measured and finds less: in a short line the word that is asked for is often another one with the
  same character, and one that is segmented differently is not found at all.
* Hangul, Thai, Lao, Khmer, Burmese: overlapping character bigrams, as Lucene's CJK analyzer does, because there words
  carry particles or stand without spaces.
* Numbers and emoji are terms themselves: "3rd" is 3, "07" is 7, and an emoji is the same in every skin tone.

Function words are left out, unless a text has no others.
"""

import re
import threading
import unicodedata
from functools import lru_cache

import Stemmer  # type: ignore[import-not-found, unused-ignore]  # a C extension without stubs

from services.long_term_memory.retrieval import han

#: A longer term, a pasted key for example, is cut: an index row has a limit.
MAX_TERM_CHARS = 64

_HAN = r"\u3005-\u3007\u3041-\u3096\u309d-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\uac00-\ud7ff"
_MARKS = r"\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0963\u0981-\u0dff"
_LETTER = rf"(?:[{_MARKS}]|(?![{_HAN}{_UNSPACED}])[^\W\d_])"

_PIECE = re.compile(
    rf"(?P<han>[{_HAN}]+)"
    rf"|(?P<unspaced>[{_UNSPACED}]+)"
    rf"|(?P<word>{_LETTER}+(?:['’]{_LETTER}+)*)"
    rf"|(?P<number>\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+\.\d+(?!\.?\d)|\d+)(?:(?:st|nd|rd|th)(?!{_LETTER}))?"
    r"|(?P<emoji>[\U0001f1e6-\U0001f1ff]{2}|[\u2190-\u2bff\U0001f000-\U0001f3fa\U0001f400-\U0001faff])"
)

_OVERLAPPING = re.compile(rf"[{_HAN}{_UNSPACED}]")

_ALPHABETS = tuple(
    (re.compile(rf"[{letters}]"), Stemmer.Stemmer(language))
    for letters, language in (
        (r"a-z\u00df-\u024f\u1e00-\u1eff", "english"),
        (r"\u0400-\u052f", "russian"),
        (r"\u0370-\u03ff\u1f00-\u1fff", "greek"),
        (r"\u0600-\u06ff", "arabic"),
        (r"\u0900-\u097f", "hindi"),
        (r"\u0b80-\u0bff", "tamil"),
        (r"\u0530-\u058f", "armenian"),
    )
)
_stemmer_lock = threading.Lock()  # Snowball stemmers are not thread-safe

#: Of English, Chinese and Japanese.
FUNCTION_WORDS = frozenset(
    """
    a about also am an and any are aren as at be been being but by can cannot could couldn did didn do does doesn doing
    don for from had hadn has hasn have haven having he her here hers him his how i if in into is isn it its itself just
    let ll m me my myself of on or our ours re s she so some t than that the their theirs them then there these they
    this those to too us ve was wasn we were weren what when where which while who whom whose why will with won would
    wouldn you your yours yourself

    的 地 得 了 着 过 吗 呢 吧 啊 呀 嘛 哦 哈 啦 呐 哎 嗯 噢 喔 哇 嘿 是 在 和 跟 与 及 而 但 或 把 被 给 对 向 从 到 于
    以 为 就 都 也 还 又 再 才 很 太 挺 更 最 真 好 会 能 要 想 有 个 些 一 点 这 那 我 你 您 他 她 它 咱 啥 咋 谁 哪 几
    多 说 来 去 上 下 里 们 之 其 该 当 让 可以 应该 这样 那样 这么 那么 这儿 那儿 自己 什么 怎么 怎样 多少 因为 所以
    如果 不过 然后 还是 而且 虽然 其实 之前 之后 时候 现在 一直 已经 记得 知道

    の は を に が と も で へ か な た て だ し ま い る れ さ ん ね よ です ます から まで
    """.split()  # noqa: SIM905 - four languages read better as text
)


def terms(text: str) -> list[str]:
    """The terms of a text in their order, repeated as often as they occur; total: it raises for no text."""
    content: list[str] = []
    function_words: list[str] = []
    for piece in _PIECE.finditer(unicodedata.normalize("NFKC", text).casefold()):
        kind, value = piece.lastgroup, piece[0]
        if kind == "word":
            for part in value.replace("’", "'").split("'"):
                (function_words if part in FUNCTION_WORDS else content).append(_stem(part))
        elif kind == "han":
            value = han.fold(value)
            for term in (*value, *_pairs(value)):
                (function_words if term in FUNCTION_WORDS or FUNCTION_WORDS.issuperset(term) else content).append(term)
        elif kind == "unspaced":
            content += _pairs(value) or [value]
        elif kind == "number":
            content.append(piece["number"].replace(",", "").lstrip("0") or "0")
        else:
            content.append(value)
    return [term[:MAX_TERM_CHARS] for term in content or function_words]


def term_weight(term: str) -> float:
    """The factor of a term's idf: a half where terms overlap, as in Chinese, since one word makes several of them."""
    return 0.5 if _OVERLAPPING.match(term) else 1.0


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    for letters, stemmer in _ALPHABETS:
        if letters.match(word):
            with _stemmer_lock:
                return str(stemmer.stemWord(_unaccented(word) if stemmer is _ALPHABETS[0][1] else word))
    return word


def _unaccented(word: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))


def _pairs(text: str) -> list[str]:
    return [text[i : i + 2] for i in range(len(text) - 1)]
