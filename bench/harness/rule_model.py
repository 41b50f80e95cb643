"""Rule-based model: reads the prompt of extraction and answers it by patterns, in English and Chinese.

It stands in for an LLM in tests and benchmarks. It finds where a user lives and works, names, birthdays, pets, tastes
and allergies, with what they replace and confirm; plans, by the date in the message; promises of the AI; and restates
other declarative sentences about the user, so that chats get about one fact for two or three messages of the user.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from bench.harness.rule_dates import date_in
from bench.harness.rule_restating import restated_in_chinese, restated_in_english

_HAN: Final = re.compile(r"[\u3400-\u9fff]")
_SENTENCE: Final = re.compile(r"[^.!?。！？\n；;]+[.!?。！？]?")
_WORD: Final = re.compile(r"[\u3400-\u9fff]|[a-z0-9']+")
#: What a value in English goes on to, and what one in Chinese ends with.
_EN: Final = (
    r"(?P<v>[^,.!?;:()\n]{1,50}?)(?=\s+(?:and|but|now|with|since|for|because|so|too|anymore|these|last|this|next|when"
    r"|yesterday|today|tomorrow|right|two|three|a (?:week|month|year))\b|\s*[,.!?;:()\n]|\s*$)"
)
_ZH: Final = r"(?P<v>[^，。！？；、,.!?;\s（(]{1,16}?)(?=了|啦|呢|哦|哈|的时候|[，。！？；、,.!?;\s（(]|$)"


@dataclass(frozen=True)
class _Rule:
    """What is stated by patterns.

    Args:
        said: patterns in what a user says, with a group `v`.
        english, chinese: the fact, of the subject and the value.
        known: a pattern of such facts, by which what is replaced is found.
        several: whether one can have several, such as pets.
    """

    slot: str
    said: tuple[str, ...]
    english: str
    chinese: str
    known: str
    several: bool = False


_RULES: Final = (
    _Rule(
        "home",
        (
            rf"\bi(?:'m| am)? (?:now )?(?:live|living) in (?!the (?:past|moment))(?:the )?{_EN}",
            rf"\bi(?:'ve| have)? (?:just )?moved (?:from [\w ]+? )?(?:over |back )?to {_EN}",
            rf"(?:我|咱)?(?:现在|目前)?(?:家)?住在{_ZH}",
            rf"(?:我|我们)?(?:从\S{{1,8}})?(?:已经|刚|刚刚)?搬(?:到|去|来)了?{_ZH}",
        ),
        "{who} lives in {v}.",
        "{who}住在{v}。",
        r"lives in (?P<v>.+)|住在(?P<w>.+)",
    ),
    _Rule(
        "name",
        (rf"\bmy name(?:'s| is) {_EN}", rf"\bi(?:'m| am) called {_EN}", rf"我(?:的名字)?(?:叫|名叫){_ZH}"),
        "{who}'s name is {v}.",
        "{who}的名字叫{v}。",
        r"'s name is (?P<v>.+)|的名字叫(?P<w>.+)",
    ),
    _Rule(
        "birthday",
        (rf"\bmy birthday(?:'s| is)(?: on)? {_EN}", rf"我(?:的)?生日是?(?:在)?{_ZH}"),
        "{who}'s birthday is {v}.",
        "{who}的生日是{v}。",
        r"'s birthday is (?P<v>.+)|的生日是(?P<w>.+)",
    ),
    _Rule(
        "work",
        (
            rf"\bi(?:'m| am)? (?:now )?(?:work|working) (?:as|at|for) (?:an? )?{_EN}",
            rf"\bi(?:'ve| have)? (?:just )?started (?:working |a (?:new )?job )(?:as|at|for) (?:an? )?{_EN}",
            r"我(?:现在)?在(?!家)(?P<v>[^，。！？；、,.!?;\s]{2,12}?)(?:上班|工作)",
            rf"我(?:现在)?的(?:工作|职业)是{_ZH}",
        ),
        "{who} works as or at {v}.",
        "{who}的工作是{v}。",
        r"works as or at (?P<v>.+)|的工作是(?P<w>.+)",
    ),
    _Rule(
        "pets",
        (
            rf"\bi(?:'ve)? (?:have|got|adopted)(?: got)? an? (?P<kind>cat|dog|rabbit|hamster|parrot|bird|fish|turtle)"
            rf"(?: (?:called|named)|, his name is|, her name is) {_EN}",
            rf"\bmy (?P<kind>cat|dog|rabbit|hamster|parrot|bird|fish|turtle)(?:'s name is| is called| is named) {_EN}",
            rf"(?:我)?(?:家)?(?:养|领养)了?一?(?:只|条|个)?(?P<kind>猫|狗|兔子|仓鼠|鹦鹉|鱼|乌龟)[，,]?(?:叫|名叫|名字叫){_ZH}",
        ),
        "{who} has a {kind} called {v}.",
        "{who}有一只{kind}叫{v}。",
        r"has a (?:\w+ )called (?P<v>.+)|有一只.+?叫(?P<w>.+)",
        several=True,
    ),
    _Rule(
        "allergies",
        (rf"\bi(?:'m| am) allergic to {_EN}", r"我对(?P<v>[^，。！？；、,.!?;\s]{1,12}?)(?:严重)?过敏"),
        "{who} is allergic to {v}.",
        "{who}对{v}过敏。",
        r"is allergic to (?P<v>.+)|对(?P<w>.+)过敏",
        several=True,
    ),
    _Rule(
        "dislikes",
        (
            rf"\bi (?:really )?(?:hate|can't stand|don't like|dislike) {_EN}",
            rf"我(?:很|最|真的)?(?:讨厌|不喜欢|恨){_ZH}",
        ),
        "{who} dislikes {v}.",
        "{who}不喜欢{v}。",
        r"dislikes (?P<v>.+)|不喜欢(?P<w>.+)",
        several=True,
    ),
    _Rule(
        "likes",
        (rf"\bi (?:really |just )?(?:like|love|adore|enjoy) {_EN}", rf"我(?:很|最|真的|特别|超)?(?:喜欢|爱){_ZH}"),
        "{who} likes {v}.",
        "{who}喜欢{v}。",
        r"(?<!dis)likes (?P<v>.+)|(?<!不)喜欢(?P<w>.+)",
        several=True,
    ),
)
_PROMISE: Final = (
    re.compile(
        r"\bi(?:'ll| will|'m going to) (?P<v>(?:remind|send|check|write|sing|tell|look|keep|make|help)\b[^.!?\n]*)",
        re.I,
    ),
    re.compile(r"我(?:会|到时候?|明天|来)(?P<v>(?:提醒|帮|给|记得|告诉|唱|写|陪|发)[^。！？!?\n]*)"),
)
_FIRST_PERSON: Final = re.compile(r"\b(?:i|i'm|i've|i'd|my|we|we're|our)\b|[我俺咱]", re.I)
_ASKS: Final = re.compile(
    r"[?？]|吗|呢$|^(?:what|when|where|who|why|how|do|does|did|is|are|can|could|will)\b|什么|怎么|谁|哪", re.I
)
#: Values that name nothing by themselves.
_NO_VALUE: Final = re.compile(r"it|you|that|this|them|him|her|me|us|so|to|[你您它他她这那](?:个|们)?", re.IGNORECASE)
#: Of several people in one chat, as data sets have them: "Caroline: I went there."
_QUOTED: Final = re.compile(r'"[^"\n]*"|“[^”]*”|「[^」]*」')
_NAMED: Final = re.compile(r"([A-Z][a-z]+(?: [A-Z][a-z]+)?): ")
#: A sentence to restate has this many words or, in Chinese, characters; shorter ones say little.
_MIN_WORDS: Final = 6
_MIN_HAN: Final = 10


def reply(messages: list[dict[str, str]]) -> str:
    """The text of an answer: to a prompt of extraction its JSON, to any other the line of it that answers."""
    try:
        batch = json.loads(messages[-1]["content"])
        found = find(batch)
    except (ValueError, KeyError, TypeError, IndexError):
        return _quoted(messages)
    return json.dumps(found, ensure_ascii=False)


def find(batch: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The answer to a batch, as the prompt describes it."""
    model = _Model(batch)
    for message in batch["new"]:
        model.read(message)
    return {"facts": model.facts, "profile": list(model.slots.values())}


class _Model:
    """The reading of one batch."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self._known: dict[int, str] = {fact["n"]: fact["text"] for fact in batch["facts"]}
        self._profile: dict[str, Any] = dict(batch["profile"])
        self.facts: list[dict[str, Any]] = []
        self.slots: dict[str, dict[str, Any]] = {}

    def read(self, message: dict[str, Any]) -> None:
        """Add what a message says."""
        at = date.fromisoformat(message["at"][:10])
        if message["by"] == "ai":
            self._read_promise(message, at)
            return
        if (named := _NAMED.match(message["text"])) and message["by"] == "user":
            message = {**message, "by": named[1], "text": message["text"][named.end() :]}
        sentences = [sentence.strip() for sentence in _SENTENCE.findall(message["text"].replace("’", "'"))]
        said = [sentence for sentence in sentences if sentence and not _ASKS.search(sentence)]
        if not [found for sentence in said for found in self._by_rules(sentence, message, at)]:
            self._restate(said, message, at)

    def _by_rules(self, sentence: str, message: dict[str, Any], at: date) -> Iterator[_Rule]:
        for rule in _RULES:
            found = next((found for said in rule.said if (found := re.search(said, sentence, re.IGNORECASE))), None)
            if found is None or not (value := found["v"].strip(" \"'“”")) or _NO_VALUE.fullmatch(value):
                continue
            chinese = bool(_HAN.search(sentence))
            form = rule.chinese if chinese else rule.english
            text = form.format(who=_subject(message, chinese), v=value, kind=found.groupdict().get("kind"))
            replaces = [*self._replaced(rule, value), *([] if rule.several else self._taken_back(rule, message["by"]))]
            self._add(text, message, kind="state", when=date_in(sentence, at), replaces=replaces)
            if message["by"] == "user":
                self._fill(rule, value, message["n"])
            yield rule

    def _replaced(self, rule: _Rule, value: str) -> list[int]:
        """The facts, of which there can be one only, that say another value; a value that one likes is not disliked."""
        other = {"likes": "dislikes", "dislikes": "likes"}.get(rule.slot)
        replaced = []
        for number, text in self._known.items():
            for one in _RULES:
                found = re.search(one.known, text)
                if found and one.slot in {rule.slot, other}:
                    same = (found["v"] or found["w"]).strip(" .。").casefold() == value.casefold()
                    if same if one.slot == other else not (same or rule.several):
                        replaced.append(number)
        return replaced

    def _taken_back(self, rule: _Rule, by: str) -> list[int]:
        """Take out what the batch said of the same before; the numbers of the facts that it replaced."""
        over = [fact for fact in self.facts if fact["about"] == by and re.search(rule.known, fact["text"])]
        self.facts = [fact for fact in self.facts if fact not in over]
        return [number for fact in over for number in fact["replaces"]]

    def _fill(self, rule: _Rule, value: str, number: int) -> None:
        if not rule.several:
            self.slots[rule.slot] = {"slot": rule.slot, "value": value, "from": [number]}
            return
        before = self.slots.get(rule.slot, {"value": self._profile.get(rule.slot) or [], "from": []})
        values = before["value"] if isinstance(before["value"], list) else [before["value"]]
        joined = list(dict.fromkeys([*values, value]))
        self.slots[rule.slot] = {"slot": rule.slot, "value": joined, "from": [*before["from"], number]}

    def _read_promise(self, message: dict[str, Any], at: date) -> None:
        own = _QUOTED.sub("", message["text"].replace("’", "'"))  # a promise that it quotes was made before
        for promise in _PROMISE:
            if found := promise.search(own):
                rest = found["v"].strip(" ,，~～")
                text = f"AI会{rest}。" if _HAN.search(rest) else f"The AI will {rest}."
                self._add(text, message, kind="promise", about="ai", when=date_in(rest, at))
                return

    def _restate(self, sentences: list[str], message: dict[str, Any], at: date) -> None:
        """Add the longest sentence that says something of the user, if it is long enough."""
        for sentence in sorted(sentences, key=len, reverse=True):
            han = len(_HAN.findall(sentence))
            enough = han >= _MIN_HAN if han else len(sentence.split()) >= _MIN_WORDS
            if enough and _FIRST_PERSON.search(sentence):
                who, when = _subject(message, han > 0), date_in(sentence, at)
                restated = restated_in_chinese if han else restated_in_english
                plan = when is not None and when[-10:] > at.isoformat()[: len(when[-10:])]
                self._add(restated(sentence, who)[:480], message, kind="plan" if plan else "event", when=when)
                return

    def _add(
        self,
        text: str,
        message: dict[str, Any],
        *,
        kind: str,
        when: str | None,
        about: str | None = None,
        replaces: list[int] | None = None,
    ) -> None:
        same = next((number for number, known in self._known.items() if known == text), None)
        self.facts.append(
            {
                "text": "" if same is not None else text,
                "about": about or message["by"],
                "from": [message["n"]],
                "when": when,
                "kind": kind,
                "replaces": [] if same is not None else replaces or [],
                "confirms": same,
            }
        )


def _subject(message: dict[str, Any], chinese: bool) -> str:
    if message["by"] != "user":
        return str(message["by"])
    return "用户" if chinese else "The user"


def _quoted(messages: list[dict[str, str]]) -> str:
    """A reply to a chat: the line before the last message that shares the most words with it."""
    if not messages:
        return "I do not know."
    asked = set(_WORD.findall(str(messages[-1]["content"]).lower()))
    lines = [line.strip() for message in messages[:-1] for line in str(message["content"]).splitlines() if line.strip()]
    best = max(lines, key=lambda line: len(asked & set(_WORD.findall(line.lower()))), default="")
    return best or "I do not know."
