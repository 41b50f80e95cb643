"""Generated statements and queries of a companion's users, from patterns: every other user writes Chinese."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_STATEMENTS = {
    "en": (
        "I had {food} with {who} at {place} {when}, and we stayed much longer than planned.",
        "{who} told me that they are going to {doing} with their sister {when}.",
        "My {thing} broke again, so I have to take it to {place} {when}.",
        "I am so tired, I had to {doing} until late and forgot to eat anything but {food}.",
        "Remind me to give the {thing} back to {who} when we meet at {place}.",
        "I don't like {food} any more, ever since {who} made me eat it every day.",
        "We moved the {thing} to {place}, {who} helped me carry it.",
        "My goal for this year is to {doing} at least once a week, {who} wants to join.",
        "Guess what, {who} bought a {thing} for me {when}!",
        "I can't come {when}, I promised {who} to {doing}.",
    ),
    "zh": (
        "{when}我和{who}在{place}吃了{food}，聊到很晚才回家。",
        "{who}跟我说{when}要和姐姐一起去{doing}。",
        "我的{thing}又坏了，{when}得拿到{place}去修。",
        "今天太累了，一直忙着{doing}，除了{food}什么都没吃。",
        "下次在{place}见到{who}的时候，提醒我把{thing}还给她。",
        "自从{who}天天做{food}，我就再也不想吃了。",
        "我们把{thing}搬到了{place}，多亏{who}帮忙。",
        "今年的目标是每周{doing}一次，{who}也想参加。",
        "你猜怎么着，{who}{when}送了我一个{thing}！",
        "{when}我来不了，已经答应{who}去{doing}了。",
    ),
}
_QUERIES = {
    "en": (
        "What did I eat with {who} at {place} {when}?",
        "Who wanted to {doing} {when}?",
        "Where did I take the {thing} when it broke {when}?",
        "What was I supposed to give back to {who} at {place}?",
        "Do you remember why I don't eat {food} with {who} any more?",
        "Who helped me carry the {thing} to {place}?",
        "I'm at {place} with {who} and they have {food}, should I order it?",
        "Can I meet {who} {when} or did I promise to {doing}?",
    ),
    "zh": (
        "{when}我和{who}在{place}吃了什么？",
        "{when}是谁说要去{doing}来着？",
        "{when}我的{thing}坏了以后拿到哪里去了？",
        "下次在{place}见到{who}我要还她什么？",
        "你还记得我为什么不想和{who}吃{food}了吗？",
        "是谁帮我把{thing}搬到{place}的？",
        "我和{who}在{place}，这里有{food}，要不要点？",
        "{when}我能见{who}吗，还是已经答应去{doing}了？",
    ),
}
# Half of the queries name their topic first.
_TOPICS = {"en": "About the {thing}: ", "zh": "说到{thing}，"}
_SLOTS = {
    "en": {
        "who": "Anna,Ben,Clara,my brother,Deniz,Elif,Farid,my aunt,Grace,Hiro,Ines,my boss,Jonas,Kaya,"
        "Liu Wei,my flatmate,Mina,Noah,Olga,my neighbour",
        "food": "dumplings,peach cake,ramen,lentil soup,fried rice,pancakes,hot pot,tomato salad,curry,"
        "bubble tea,sushi,apple pie,noodles,grilled fish,cheese toast,kimchi",
        "place": "the market,the harbour,my grandmother's house,the new library,the night market,the station,"
        "the office,the repair shop,the mountains,the swimming pool,the university,"
        "the cafe on the corner,the museum,the garden",
        "thing": "bicycle,guitar,keyboard,camera,washing machine,old sofa,telescope,coffee grinder,winter coat,"
        "microphone,piano,drawing tablet,tent,record player,bookshelf,umbrella",
        "doing": "paint the kitchen,practise the violin,go climbing,learn Portuguese,stream a game,write songs,"
        "bake bread,visit the dentist,clean the balcony,repair the roof,play badminton,feed the cats,"
        "study for the exam",
        "when": "yesterday,last weekend,tomorrow evening,on Tuesday,in spring,after work,on my birthday,"
        "before the holidays,this morning,next month,at midnight,during the storm",
    },
    "zh": {
        "who": "小红,阿明,妈妈,李老师,我弟弟,室友,小美,王叔叔,同事小张,表姐,邻居,阿杰,奶奶,晓东,雅婷,教练,老板,佳佳",
        "food": "饺子,桃子蛋糕,拉面,火锅,炒饭,煎饼,番茄沙拉,咖喱,珍珠奶茶,寿司,苹果派,牛肉面,烤鱼,麻婆豆腐,小笼包,泡菜",
        "place": "菜市场,海边,外婆家,新图书馆,夜市,火车站,公司,修理店,山上,游泳馆,大学,街角的咖啡店,博物馆,花园",
        "thing": "自行车,吉他,键盘,相机,洗衣机,旧沙发,望远镜,咖啡机,大衣,麦克风,钢琴,数位板,帐篷,唱片机,书架,雨伞",
        "doing": "刷厨房的墙,练小提琴,爬山,学葡萄牙语,直播游戏,写歌,烤面包,看牙医,打扫阳台,修屋顶,打羽毛球,"
        "喂猫,复习考试",
        "when": "昨天,上周末,明天晚上,星期二,春天,下班以后,我生日那天,放假之前,今天早上,下个月,半夜,下大雨的时候",
    },
}
_CHOICES = {language: {name: words.split(",") for name, words in slots.items()} for language, slots in _SLOTS.items()}


def language_of(user: int) -> str:
    """The language that a made-up user writes: "en" or "zh"."""
    return "zh" if user % 2 else "en"


class TextGenerator:
    """A generator of statements and queries, the same for the same seed.

    Args:
        repeat: draw queries from a pool of so many for each language; without it, no query comes twice.
    """

    def __init__(self, seed: int, repeat: int | None = None) -> None:
        self._random = random.Random(seed)
        self._used: set[str] = set()
        self._pools: dict[str, list[str]] = {}
        if repeat:
            self._pools = {language: [self._new_query(language) for _ in range(repeat)] for language in _QUERIES}

    def statement(self, user: int) -> str:
        """A message of the user."""
        language = language_of(user)
        return self._filled(_STATEMENTS[language], language)

    def query(self, user: int) -> str:
        """A query about the user's messages; never the same text twice without `repeat`."""
        language = language_of(user)
        return self._random.choice(self._pools[language]) if self._pools else self._new_query(language)

    def _new_query(self, language: str) -> str:
        while True:
            topic = _TOPICS[language] if self._random.random() < 0.5 else ""
            text = self._filled([topic + pattern for pattern in _QUERIES[language]], language)
            if text not in self._used:
                self._used.add(text)
                return text

    def _filled(self, patterns: Sequence[str], language: str) -> str:
        choices = _CHOICES[language]
        pattern = self._random.choice(patterns)
        text = re.sub(r"\{(\w+)\}", lambda slot: self._random.choice(choices[slot[1]]), pattern)
        return text[0].upper() + text[1:]
