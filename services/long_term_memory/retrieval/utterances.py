"""Features of an utterance that follow from its form alone: speaker, script, question or statement.

Those of a memory are computed once, when it is stored, and are columns of it; a search computes those of its query.
"""

import re
import unicodedata
from enum import IntEnum
from typing import Final

from services.long_term_memory.retrieval import tokenizer
from services.long_term_memory.retrieval.content import Content, content, greets
from services.long_term_memory.retrieval.refusals import refuses
from services.long_term_memory.retrieval.withdrawals import withdraws

_NAME: Final = r"[^\W\d_][^\n:：?!.,，。？！<>\[\]【】()（）#]{0,40}?"
#: "Anna: hi", "小明(10001)：在吗", "[06/05/24, 10:32] Anna#1234: hi"; "<anna> hi", "[小明] 在吗".
_SPEAKER: Final = re.compile(
    r"\s*(?:\[?\d[\d/.:, -]{3,20}(?:[AP]M)?\]?\s*(?:- )?)?(?:"
    rf"(?P<before>{_NAME})\s*(?:[(（][^()（）\n]{{1,20}}[)）]|#\d{{2,6}})?\s*(?::\s|：\s*)"
    rf"|[\[【<](?P<within>{_NAME})(?:[(（][^()（）\n]{{1,20}}[)）])?[\]】>]\s*[:：]?\s*)(?=\S)"
)
#: Without one of these `_SPEAKER` matches no text: 0.4 us show that of most, in place of 1 to 10.
_SPEAKER_MARKS: Final = ":：]】>"
#: What a client writes in brackets before a caption is no name.
_MEDIA: Final = re.compile(
    r"图片|圖片|表情|动画|動畫|语音|語音|视频|視頻|文件|檔案|链接|連結|位置|照片|写真|画像|スタンプ|사진|동영상|이모티콘"
    r"|\b(?:photo|image|picture|sticker|video|audio|voice|gif|file|document|media|link|location|omitted|foto|imagen|bild)s?\b"
)
#: Words of a speaker's name.
MAX_NAME_WORDS: Final = 3

_APPENDIX: Final = re.compile(r"\s*\[[^\]]*\]\s*$")  # "[photo: a cat]" and the like, appended by a client
_SENTENCE_END: Final = re.compile(r"(?<=[!?。！？؟…])\s*|(?<=\w{3}\.)\s+|\n+")  # "Dr. Who", "U.S. has" go on
_QUESTION_MARKS: Final = ("?", "？", "؟")
_LETTER: Final = re.compile(r"[^\W_]")
_LATIN: Final = re.compile(r"[a-z]")

_SUBJECT: Final = r"(?:i|you|he|she|it|we|they|my|your|his|her|our|their|the|this|that|these|those|there|anyone|any)"
_QUESTION_WORD: Final = r"(?:what|where|who|whom|whose|why|how|when|which)"
_AUXILIARY: Final = (
    r"(?:is|are|am|was|were|do|does|did|can|could|shall|should|would|will|may|might|must|has|have|had)(?:n't)?"
)
_LEAD_IN: Final = (  # "In May, what did ...", "Hey, do you ..."
    r"(?:in|on|at|for|to|of|by|from|with|about|after|before|during|around|since|until|under|according|based|besides|and|so|"
    r"but|or|hey|hi|ok|okay|oh|well|also|btw|hmm|um|wait|say|please|name|tell)"
)
_OPENS_AS_QUESTION: Final = re.compile(
    rf"\W*(?:{_QUESTION_WORD}|{_AUXILIARY}|any|anyone|anything)\b"
    rf"|\W*{_LEAD_IN}\b.*\b(?:{_QUESTION_WORD}|{_AUXILIARY})\b",
    re.DOTALL,
)
_UNMARKED: Final = re.compile(  # a question without a question mark; "When I was young" and "Which is nice" are not
    r"(?:what|where|who|whom|whose|why|how|when)"
    r"(?:'?s|'re|'d| (?:is|are|was|were|do|does|did|can|could|"
    r"should|would|will|has|have|had|many|much|often|long|old|far)) .+"
    rf"|which \w+ (?:is|are|was|were|do|does|did|has|have|had) .+"
    rf"|(?:is|are|was|were|does|did|can|could|should|would|will|has|had) {_SUBJECT} .+"
    r"|(?:do|have) (?:i|you|we|they) .+"
)
_STATES_BY_ASKING: Final = re.compile(  # "Did I tell you my sister moved?"
    r"\b(?:did|didn't|have|haven't) (?:i|we) (?:\w+ )?(?:tell|told|mention|mentioned|say|said)\b|\bremember that\b"
    r"|\bremind me (?:to|that|about)\b|\byou know (?:that|i|my|we)\b"
)

#: "And the default password?": what goes on asking has no subject of a statement.
_GOES_ON_ASKING: Final = re.compile(
    r"\W*(?:and|or|but|so|also|then)\b(?!.*\b(?:i|you|he|she|it|we|they|there|is|are|was|were|has|have|had)\b)"
    r"(?: [^\s,]+){1,5}"
)

#: "Please book a taxi, as my flight leaves on the 6th, can you": the reason of a request is told, not asked.
_REASON: Final = re.compile(
    r"\b(?:as|since|because|cause|cuz|considering|given|seeing|knowing|now that|and|but) (?:that )?"
    r"(?:i|i'm|i've|i'll|i'd|we|we're|we've|we'll"
    r"|(?:my|our) (?:\w+ ){1,3}(?:is|are|was|were|has|have|had|will|\w+s|\w+ed))\b"
)
#: "Can you suggest a gift for my mum, she turns 60": a clause of its own that states.
_ASIDE: Final = re.compile(
    r"[,;(–—] ?(?:and |but |so )?(?:(?:i|he|she|they|we)(?:'\w+)? \w+|(?:my|our|his|her|their) (?:\w+ ){1,2}"
    r"(?:is|are|was|were|has|have|had|will|\w+s|\w+ed)\b)"
)
REASONED_WORDS: Final = 10
#: A number, or a name within the sentence. Of LoCoMo's and REALTALK's questions, which are asked of a memory and tell
#: nothing, one in fifty is so long.
_SPECIFIC: Final = re.compile(r"\d|(?<=[a-z,'’] )[\"“]?[A-Z][a-z]+")
LONG_REQUEST_WORDS: Final = 20

_HAN_OR_KANA: Final = re.compile(r"[\u3041-\u30ff\u3400-\u9fff]")
_HAN: Final = re.compile(r"[\u3400-\u9fff]")
_KANA: Final = re.compile(r"[\u3041-\u30ff]")
_CHINESE_CLAUSE: Final = re.compile(r"[^,，、;；:：\s]+")
_CHINESE_ASKS: Final = re.compile(
    r"谁|誰|什么|什麼|啥|哪|怎么|怎麼|怎样|怎樣|咋|几|幾|多少|多久|多大|多远|多遠|多长|多高|是不是|有没有|有沒有|能不能|要不要|会不会|为何|吗|嗎|么$|麼$|呢$"
    r"|没$|来着|來著"
)
_CHINESE_UNMARKED: Final = re.compile(
    r"(?:.*(?:谁|誰|什么|什麼|啥|哪|怎么|怎麼|咋|多少|多久|多大|几[点點号號岁歲分]|为何).*|.*(?:吗|嗎|来着|來著))"
)
_CHINESE_REPORTS: Final = re.compile(r"知道|告诉|告訴|忘|问|問|[谁誰啥么麼哪].{0,3}[都也]|呗")
_MIN_STATEMENT_CHARS: Final = 4  # Chinese characters: "在么,你好呀" states nothing


#: A longer sentence has words that state something: the longest of phatic.py has half as many.
PHATIC_CHARS: Final = 60


class Question(IntEnum):
    """How much of an utterance is a question."""

    NOTHING = 0
    AT_THE_END = 1  # it states something, then asks
    ONLY = 2  # it states nothing: every sentence is a question, or it has no content at all ("thanks!", "[图片]")


class Script(IntEnum):
    """The script of an utterance, as far as the cosines of embeddings depend on it."""

    ALPHABET = 0
    HAN = 1  # and kana


def script(text: str) -> Script:
    """The script of an utterance without its speaker; a few borrowed words do not change it."""
    text = strip_speaker(text)
    return Script.HAN if len(_HAN_OR_KANA.findall(text)) > 0.2 * len(text) else Script.ALPHABET


def is_japanese(text: str) -> bool:
    """Whether a text of `Script.HAN` has kana, more than a few borrowed words have."""
    return len(_KANA.findall(text)) > 0.2 * len(text)


def speaker(text: str) -> str:
    """The name before the colon of a line such as "Anna: hello", case-folded; empty where there is none."""
    return _speaker(text)[0]


def fold_name(name: str) -> str:
    """A name as it is compared: without differences of width and case."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def strip_speaker(text: str) -> str:
    """The utterance without the speaker's name before it and a bracketed appendix after it."""
    return _APPENDIX.sub("", _without_speaker(text)).strip()


def _without_speaker(text: str) -> str:
    return text[_speaker(text)[1] :]


def _speaker(text: str) -> tuple[str, int]:
    """The speaker's name, and where the utterance begins."""
    if not any(mark in text for mark in _SPEAKER_MARKS):
        return "", 0
    found = _SPEAKER.match(text)
    if found is None:
        return "", 0
    name = fold_name(found["before"] or found["within"])
    if len(name.split()) > MAX_NAME_WORDS or (found["within"] and _MEDIA.search(name)):
        return "", 0
    return name, found.end()


def asks(text: str, *, from_ai: bool = False) -> Question:
    """How much of an utterance is a question, by its punctuation or, which is often omitted in a chat, its wording.

    In doubt it is a statement: a statement taken for a question is hidden, the reverse costs a place in the list.

    Args:
        from_ai: whether the AI said it. A sentence of the AI that refuses ("Sorry, I don't know that") states nothing;
            nor does one of either side that asks to forget something.
    """
    if text and content(_without_speaker(text)) is not Content.WORDS:
        return Question.ONLY
    parts = sentences(text)
    if len(parts) > 1:
        parts = [part for part in parts if len(part) > PHATIC_CHARS or content(part) is Content.WORDS]
    if from_ai and parts and parts[-1].rstrip().endswith(_QUESTION_MARKS):
        parts = [part for part in parts if len(part) > PHATIC_CHARS or not greets(part)]  # "你好王芳！教什么呢？"
    asked: list[Question] = []
    for part in parts:
        states_nothing = Question.NOTHING not in asked and _states_nothing(_bare(part), from_ai)
        asked.append(Question.ONLY if states_nothing else _asks(part))
    if asked and min(asked) is Question.ONLY:
        return Question.ONLY
    return Question.AT_THE_END if asked and asked[-1] else Question.NOTHING


def sentences(text: str) -> list[str]:
    """The sentences of an utterance, without its speaker."""
    return [sentence for sentence in _SENTENCE_END.split(strip_speaker(text)) if _LETTER.search(sentence)]


def _bare(sentence: str) -> str:
    return unicodedata.normalize("NFKC", sentence).casefold().replace("’", "'").rstrip(".!。…?؟ \n")


def _tells(sentence: str, bare: str) -> bool:
    """Whether a request tells something beside what it asks: a number or a name in a long one, a reason or an aside.

    Args:
        bare: the sentence folded.
    """
    words = bare.count(" ") + 1
    specific = _SPECIFIC.search(sentence) is not None
    tells = _REASON.search(bare) or _ASIDE.search(bare)
    return (words >= LONG_REQUEST_WORDS and specific) or (words >= REASONED_WORDS and tells is not None)


def _asks_in_another_language(bare: str) -> bool:
    """Whether a marked sentence in the Latin script is one clause in another language than English.

    Its words tell too little of it, and a clause with a question mark mostly asks. English has fewer of these.
    """
    words = bare.split()
    english = sum(word in tokenizer.FUNCTION_WORDS for word in words)
    return "," not in bare and len(words) < LONG_REQUEST_WORDS and 3 * english < len(words)


def _states_nothing(bare: str, from_ai: bool) -> bool:
    return withdraws(bare) or (from_ai and refuses(bare))


def _asks(sentence: str) -> Question:
    marked = any(mark in sentence for mark in _QUESTION_MARKS)
    bare = _bare(sentence)
    if _HAN.search(sentence):
        clauses = _CHINESE_CLAUSE.findall(bare)
        if not marked and not (_CHINESE_UNMARKED.fullmatch(clauses[-1]) and not _CHINESE_REPORTS.search(bare)):
            return Question.NOTHING
        states = any(len(_HAN.findall(c)) >= _MIN_STATEMENT_CHARS and not _CHINESE_ASKS.search(c) for c in clauses)
        return Question.AT_THE_END if states and len(clauses) > 1 else Question.ONLY
    if marked:
        opens = (_OPENS_AS_QUESTION.match(bare) or _GOES_ON_ASKING.fullmatch(bare)) and not _STATES_BY_ASKING.search(
            bare
        )
        only = (opens and not _tells(sentence, bare)) or not _LATIN.search(bare) or _asks_in_another_language(bare)
        return Question.ONLY if only else Question.AT_THE_END
    return Question.ONLY if _UNMARKED.fullmatch(bare) and not _STATES_BY_ASKING.search(bare) else Question.NOTHING
