"""Phrases of time, replaced by symbols (`date_words`).

Dates in numbers, what several words of an alphabet mean together, and all of Chinese, Japanese and Korean, which have
no spaces between words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_NUMBER: Final = "(?P<n>[0-9]{1,2}|[一二两三四五六七八九十]{1,3}|[几数한두세네])"
_UNIT: Final = (
    "(?P<u>天|周|星期|礼拜|(?<=[个ヶケかカ])月|年|小时|时间|分钟|分(?=前)|일|주|개월|달|년|시간|분|日)间?"
    "(?![生龄纪代度])"
)
_SHIFT: Final = "(?P<s>上上|先々|지지난|上一|上|先|지난|저번|这一|这|本|今|이번|下下|下一|下|再来|来|다다음|다음)个? ?"
_WEEK: Final = "(?:周|星期|礼拜)"
_DAY_OF_MONTH: Final = (
    "(?P<d>[12]?[0-9]|3[01]|[二三]?十[一二三四五六七八九]?|[一二三四五六七八九])(?: ?[日号일])?(?![0-9个月])"
)

#: Symbols, and phrases that mean them, of which the first that matches counts. {x} is what the group x matched.
_LATIN: Final = (
    ("Y{y} M{m} O{d}", r"(?P<y>(?:19|20)\d\d)[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2})(?![\d.])"),
    ("Y{y} M{m} O{d}", r"(?<![\d.])(?P<d>\d{1,2})\.(?P<m>\d{1,2})\.(?P<y>(?:19|20)\d\d)(?!\d)"),
    ("Y{y} M{m} O{d}", r"(?<![\d/])(?P<m>\d{1,2})/(?P<d>\d{1,2})/(?P<y>(?:19|20)\d\d)(?!\d)"),
    ("L-2", r"\bbefore last\b"),
    ("J{n}", r"\bq(?P<n>[1-4])\b"),
    ("D-2", r"\bday before yesterday\b|\bavant[- ]hier\b|\bantes de ayer\b"),
    ("D2", r"\bday after tomorrow\b|\bapres[- ]demain\b|\bpasado manana\b|\bdepois de amanha\b"),
    ("D0", r"\besta manana\b|\bheute morgen\b"),
    ("D1", r"(?<!\bla )(?<!\bde )\bmanana\b|(?<!n )(?<!r )(?<!am )\bmorgen\b"),
    ("UK", r"\bfin de semana\b|\bfi(?:m|nal) de semana\b|\bweek-end\b"),
    ("L1", r"\bque vien?e\b|\bque vem\b"),
    ("VOR", r"\bil y a\b"),
    ("OFF", r"\b(?:this|i|you|he|she|it|we|they|that|there|who|what|which) (?:may|march)\b|\bmay (?:i|we|you|be)\b"),
    ("HLUNAR", r"\b(?:spring festival|(?:chinese|lunar) new year)\b"),
    ("HNEWYEAR", r"\bnew year(?:'?s)?(?: eve| day)?\b(?! resolution)|\bnouvel an\b|\bano n(?:uev|ov)o\b"),
    ("HAUTUMN", r"\bmid-?autumn(?: festival)?\b"),
    *(
        (f"W{number}", rf"\b{day}(?:[- ]feira\b|(?= passada))")
        for number, day in enumerate(("segunda", "terca", "quarta", "quinta", "sexta"), start=1)
    ),
)
_EASTERN: Final = (
    (
        "OFF",
        rf"[每毎隔](?:个|逢)?(?:{_WEEK}|月|年|天|日)?(?:末|[一二三四五六日天]|[月火水木金土日]曜日?)?|매[주달년일]|.요일마다",
    ),
    ("N0 UD AGO", "前(?:几|两|些)[天日]|先日"),
    ("N6 UM AGO", "半年前"),
    ("N2 UW AGO", "半个月前"),
    ("N2 UD AGO", "이틀 ?전"),
    ("N1 UW AGO", "일주일 ?전"),
    ("Q N{n} {u}", "前(?P<n>[几两])个?(?P<u>周|星期|礼拜|月)"),
    ("N{n} {u} AGO", rf"{_NUMBER} ?[个ヶケかカ]?{_UNIT} ?(?:以前|之前|前|전)"),
    ("Q N{n} {u}", rf"(?:最近|过去|近|这|この|ここ|최근|지난) ?{_NUMBER} ?[个ヶケかカ]?{_UNIT}"),
    ("D-3", "大前天"),
    ("D-2", "前天|一昨日|おととい|그저께|그제"),
    ("D-1", "昨[天日晚夜儿]|[寻琴]日|きのう|ゆうべ|어제|어젯밤"),
    ("D0", "今[天日早晚晨夜朝儿]|きょう(?![だかしみり])|오늘"),
    ("D3", "大后天"),
    ("D1", "明[天日早晚](?!香)|听日|あした|내일"),
    ("D2", "后天(?!性)|あさって|모레"),
    ("L-3 UY", "大前年"),
    ("L-2 UY", "前年|一昨年|おととし|재작년"),
    ("L-1 UY", "去年|昨年|旧年|上一年|작년|지난해"),
    ("L0 UY", "今年|올해"),
    ("L1 UY", "明年|来年|내년"),
    ("L2 UY", "后年"),
    ("L{s} UK", rf"{_SHIFT}(?:{_WEEK} ?末|주말)"),
    ("L{s} UW W{w}", rf"{_SHIFT}{_WEEK}(?:(?P<w>[一二三四五六日天])|(?:の ?)?(?P<v>[月火水木金土日])曜日?)"),
    ("L{s} UW", rf"{_SHIFT}(?:{_WEEK}|주(?![변문제인말]))"),
    ("L{s} UM", rf"{_SHIFT}(?:月|달)"),
    ("L-1", "지난 ?(?=[월화수목금토일]요일|봄|여름|가을|겨울)|この前の?(?=[月火水木金土日]曜)"),
    ("W{w}", rf"(?<![一二两三四五六七八九十几\d]){_WEEK}(?P<w>[一二三四五六日天])"),
    ("W{w}", "(?P<w>[月火水木金土日](?=曜)|[월화수목금토일](?=요일))(?:曜日?|요일)"),
    ("P Y{y}", r"(?P<y>(?:19|20)\d\d) ?[年년]"),
    ("S{x}", "(?<=年)[的の]?(?P<x>[春夏秋冬])(?!节)|(?P<z>봄|여름|가을|겨울)"),
    ("F{t}", "(?<=年)(?P<t>[上下])半年"),
    ("J{n}", "第?(?P<n>[1-4一二三四])季度"),
    ("O{d}", "(?<=[月到至~])(?P<d>[12]?[0-9]|3[01]|[二三]?十[一二三四五六七八九]?|[一二三四五六七八九])[号日]"),
    ("F0", "(?<=年)年?初"),
    ("F4", "(?<=年)年?[底末](?!奖)|연말"),
    ("P F0", "年初"),
    ("P F4", "年[底末](?!奖)"),
    (
        "P M{m} O{d} T{t} _",
        r"(?<![\d一二三四五六七八九十第])(?P<m>1[0-2]|0?[1-9]|十[一二]?|[一二三四五六七八九]) ?(?:月(?!天)份?|월)"
        rf"(?: ?{_DAY_OF_MONTH})?(?P<t>[上中下]旬|[初底末])?",
    ),
    ("HLUNAR", "春节|大年初一|(?<![超不通经])过年(?![龄纪代])|설날"),
    ("HEVE", "除夕"),
    ("HLANTERN", "元宵"),
    ("HDRAGON", "端午"),
    ("HAUTUMN", "中秋|추석"),
    ("HQINGMING", "清明节"),
    ("HMAYDAY", "五一(?=节|假|劳动|长假|期间|的)|劳动节"),
    ("HNATIONAL", "国庆"),
    ("HNEWDAY", "元旦"),
    ("HCHRISTMAS", "圣诞|クリスマス|크리스마스|성탄절"),
    ("HVALENTINE", "情人节"),
    ("HHALLOWEEN", "万圣|ハロウィン"),
    ("HNEWYEAR", "お正月"),
    ("SINCE", "以来|至今|이후"),
    ("END", "[之以]?[前后](?=[,，的我你他她它 ]|$)|よりも?前|まで|전까지"),
    ("TO", "到|至|から|부터|[~〜–—]"),
)

_VALUES: Final = {
    "u": {
        **{
            "天": "UD",
            "日": "UD",
            "일": "UD",
            "周": "UW",
            "星期": "UW",
            "礼拜": "UW",
            "주": "UW",
            "月": "UM",
            "달": "UM",
        },
        **{
            "개월": "UM",
            "年": "UY",
            "년": "UY",
            "小时": "UH",
            "时间": "UH",
            "시간": "UH",
            "分钟": "UI",
            "分": "UI",
            "분": "UI",
        },
    },
    "s": {
        **dict.fromkeys(("上上", "先々", "지지난"), "-2"),
        **dict.fromkeys(("上", "上一", "先", "지난", "저번"), "-1"),
        **dict.fromkeys(("这", "这一", "本", "今", "이번"), "0"),
        **dict.fromkeys(("下", "下一", "来", "다음"), "1"),
        **dict.fromkeys(("下下", "再来", "다다음"), "2"),
    },
    "w": {day: str(n % 7 + 1) for days in ("一二三四五六日月火水木金土日월화수목금토일",) for n, day in enumerate(days)}
    | {"天": "7"},
    "x": dict(zip("春夏秋冬", "1234", strict=True)) | dict(zip(("봄", "여름", "가을", "겨울"), "1234", strict=True)),
    "t": {"上": "1", "初": "1", "中": "2", "下": "3", "底": "3", "末": "3"},
}
_SAME: Final = {"v": "w", "z": "x"}  # two groups of one phrase need two names
_DIGITS: Final = {character: n for n, character in enumerate("十一二三四五六七八九")} | {
    "两": 2,
    "几": 0,
    "数": 0,
    "한": 1,
    "두": 2,
    "세": 3,
    "네": 4,
}


def _number(text: str) -> int:
    if text.isdecimal():
        return int(text)
    tens, ten, ones = text.rpartition("十")
    if not ten:
        return _DIGITS[text[-1]]
    return 10 * (_DIGITS[tens[-1]] if tens else 1) + (_DIGITS[ones[-1]] if ones else 0)


class _Phrases:
    """Phrases as one pattern, whose groups are numbered, because a name may occur only once in it."""

    def __init__(self, phrases: Sequence[tuple[str, str]]) -> None:
        self._symbols = [[_PLACE.fullmatch(symbol) or symbol for symbol in symbols.split()] for symbols, _ in phrases]
        self._groups = [_GROUP.findall(pattern) for _, pattern in phrases]
        numbered = (_GROUP.sub(rf"(?P<\g<1>{n}>", pattern) for n, (_, pattern) in enumerate(phrases))
        self._pattern = re.compile("|".join(f"(?P<p{n}>{pattern})" for n, pattern in enumerate(numbered)))

    def replace(self, text: str) -> str:
        """The text with symbols, in capitals, in place of the phrases."""
        return self._pattern.sub(self._replacement, text)

    def _replacement(self, found: re.Match[str]) -> str:
        number = int((found.lastgroup or "p0")[1:])
        matched = ((name, found[f"{name}{number}"]) for name in self._groups[number])
        values = {_SAME.get(name, name): text for name, text in matched if text}
        symbols = (
            part if isinstance(part, str) else f"{part[1]}{_value(part[2], values[part[2]])}"
            for part in self._symbols[number]
            if isinstance(part, str) or part[2] in values  # a date may lack the day, and so its symbol
        )
        return f" {' '.join(symbols)} "


_PLACE: Final = re.compile(r"(\w*)\{(\w)\}")
_GROUP: Final = re.compile(r"\(\?P<(\w)>")
_LATIN_PHRASES: Final = _Phrases(_LATIN)
_EASTERN_PHRASES: Final = _Phrases(_EASTERN)


def replace_phrases(folded: str) -> str:
    """The text with its phrases as symbols, which are in capitals."""
    latin = _LATIN_PHRASES.replace(folded)
    return latin if latin.isascii() else _EASTERN_PHRASES.replace(latin)


def _value(group: str, text: str) -> str:
    known = _VALUES.get(group)
    if known is None:
        return str(_number(text))
    return known[text[0] if group == "t" else text]
