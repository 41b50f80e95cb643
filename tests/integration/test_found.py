"""What finds nothing, what is no answer, and who is meant, through the real search, in many languages."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from keepsake_client.protocol import MemoryUpdateMessage, SearchData

from services.long_term_memory.memory_service import MemoryService
from tests.integration.test_search import CHATTER, DAY, NOW, found, say

FACTS = (
    "My cat is called Mochi",
    "I live in Porto",
    "I am allergic to shrimp",
    "My sister Anna works at a bakery",
    "我下周二去看牙医",
    "The wifi password is tangerine42",
)

# What has nothing to look for

NOTHING_SOUGHT = [
    *(
        "[图片]",
        "https://example.org/watch?v=dQw4w9WgXcQ",
        "👍",
        "...",
        "ok",
        "hmm",
        "thanks!",
        "good morning",
        "om_x91aa0000f",
    ),
    *(
        "<Media omitted>",
        "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
        "😂😂",
        "how are you?",
        "哈哈哈哈",
        "好的",
        "早上好",
        "在吗",
        "唔該",
    ),
    *(
        "ありがとう",
        "おやすみ",
        "ㅋㅋㅋ",
        "감사합니다",
        "gracias",
        "bom dia",
        "merci",
        "guten Morgen",
        "grazie",
        "dank je",
        "tack",
    ),
    *("kiitos", "dziękuję", "спасибо", "доброе утро", "ευχαριστώ", "תודה", "شكرا", "صباح الخير", "धन्यवाद", "ขอบคุณครับ"),
    *("cảm ơn", "terima kasih", "günaydın", "asante sana"),
]


@pytest.mark.parametrize("query", NOTHING_SOUGHT)
def test_a_query_that_carries_nothing_to_look_for_finds_nothing(keepsake: MemoryService, query: str) -> None:
    """Given six facts and small talk, I expect a sticker, a link, a greeting or an id to find none of them."""
    say(keepsake, *FACTS, *CHATTER, timestamp=NOW - DAY)

    assert found(keepsake, query) == []


@pytest.mark.parametrize(
    "line", ["thanks!", "哈哈哈", "[图片]", "👍", "おはよう", "buenos días", "https://example.org/cats"]
)
def test_a_line_that_carries_nothing_is_no_answer(keepsake: MemoryService, line: str) -> None:
    """Given such a line right behind a fact, I expect the fact, and the line below 0.2."""
    say(keepsake, "My cat is called Mochi", line, timestamp=NOW - DAY, meta={"session_id": "s"})

    memories = keepsake.search("u1", SearchData(query="what is my cat called?", min_score=0), now=NOW)

    scores = {memory.content: memory.score or 0.0 for memory in memories}
    assert (memories[0].content, scores.get(line, 0.0) < 0.2) == ("My cat is called Mochi", True)


@pytest.mark.parametrize(
    "content", ["the ticket is om_x91aa0000f", "see https://example.org/a/b1 for it", "all 🏓 with Wei"]
)
@pytest.mark.parametrize("query", ["om_x91aa0000f", "https://example.org/a/b1", "🏓"])
def test_an_id_a_link_or_an_emoji_is_found_where_it_was_said(keepsake: MemoryService, content: str, query: str) -> None:
    """Given a memory with an id, a link or an emoji, I expect it to be found by the very one."""
    say(keepsake, content, *CHATTER, timestamp=NOW - DAY)

    assert found(keepsake, query) == ([content] if query in content else [])


# What a user with a few memories sees

FOUR = ("My dog's name is Biscuit", "I work as a nurse in Leeds", "I hate coriander", "I have two kids, Leo and Zoe")
FOUR_IN_CHINESE = ("我家的狗叫豆豆", "我在杭州做护士", "我最讨厌吃香菜", "我有两个孩子，乐乐和朵朵")
FOUR_IN_JAPANESE = (
    "うちの犬の名前はモカです",
    "仕事は看護師です",
    "パクチーが苦手です",
    "子どもが二人います、蓮と葵です",
)


@pytest.mark.parametrize(
    ("facts", "query", "fact"),
    [
        (FOUR, "what's my dog called?", FOUR[0]),
        (FOUR, "which herb do I dislike?", FOUR[2]),
        (FOUR, "do I have kids?", FOUR[3]),
        (FOUR_IN_CHINESE, "我的狗叫什么？", FOUR_IN_CHINESE[0]),
        (FOUR_IN_CHINESE, "我有几个孩子？", FOUR_IN_CHINESE[3]),
        (FOUR_IN_JAPANESE, "犬の名前は？", FOUR_IN_JAPANESE[0]),
        (FOUR_IN_JAPANESE, "苦手な食べ物は？", FOUR_IN_JAPANESE[2]),
    ],
)
def test_the_scores_of_a_few_memories_tell_the_answer_from_the_rest(
    keepsake: MemoryService, facts: Sequence[str], query: str, fact: str
) -> None:
    """Given four facts and a question for one, I expect it first with 0.2 or more, and less than 0.2 for the others."""
    say(keepsake, *facts, timestamp=NOW - DAY)

    memories = keepsake.search("u1", SearchData(query=query, min_score=0), now=NOW)
    scores = [memory.score or 0.0 for memory in memories]
    assert (memories[0].content, scores[0] > 0.2 > scores[1]) == (fact, True), scores


@pytest.mark.parametrize("facts", [FOUR, FOUR_IN_CHINESE])
def test_what_the_user_said_is_found_by_its_own_words_before_what_is_unrelated(
    keepsake: MemoryService, facts: Sequence[str]
) -> None:
    """Given four facts, I expect each first for its own words."""
    say(keepsake, *facts, timestamp=NOW - DAY)

    assert [found(keepsake, fact)[0] for fact in facts] == list(facts)


# The words of the AI

EN = ("Sorry, I don't know that.", "I'm afraid I don't remember.", "I have no record of that.")
ZH = ("抱歉，我不记得了。", "嗯嗯。", "你还没告诉过我呢。")
NON_ANSWERS = [
    *(("My cat is called Mochi", "what's my cat's name?", "what is my cat called?", reply) for reply in EN),
    *(("I am allergic to shrimp", "what am I allergic to?", "is there any food I can't eat?", reply) for reply in EN),
    *(("我对虾过敏", "我对什么过敏？", "我不能吃什么", reply) for reply in ZH),
    *(("我妹妹住在苏州", "我妹妹住哪里？", "我妹在哪个城市", reply) for reply in ZH),
    ("mi gata se llama Luna", "¿cómo se llama mi gata?", "¿qué nombre tiene mi gata?", "Lo siento, no lo sé."),
    ("ma sœur habite à Lyon", "où habite ma sœur ?", "dans quelle ville est ma sœur ?", "Je ne m'en souviens pas."),
    ("мою кошку зовут Мурка", "как зовут мою кошку?", "какая кличка у моей кошки?", "Извините, я не помню."),
    ("うちの猫はみかんという名前です", "うちの猫の名前は？", "猫は何て呼ばれてる？", "すみません、わかりません。"),
]


@pytest.mark.parametrize(("fact", "asked", "query", "reply"), NON_ANSWERS)
def test_a_non_answer_of_the_ai_never_outranks_the_fact(
    keepsake: MemoryService, fact: str, asked: str, query: str, reply: str
) -> None:
    """Given a fact, and a question for it that the AI twice could not answer, I expect the fact first."""
    say(keepsake, fact, *CHATTER, timestamp=NOW - 10 * DAY)
    _talk(keepsake, (asked, reply) * 2)

    assert (found(keepsake, asked)[0], found(keepsake, query)[0]) == (fact, fact)


QUOTATIONS = [
    (
        "My cat is called Mochi",
        "what is my cat called?",
        'Here is what I remember:\n- 2023-11-05, you said: "My cat is called Mochi"',
    ),
    ("My cat is called Mochi", "what is my cat called?", "Your cat's called Mochi, as you told me!"),
    ("I am allergic to shrimp", "is there any food I can't eat?", "You are allergic to shrimp, right?"),
    ("我的猫叫豆豆", "你记得我家猫叫啥吗", "我记得：\n- 2023-11-05，你说过：“我的猫叫豆豆”"),
    ("我妹妹住在苏州", "我妹在哪个城市", "你说过你妹妹住在苏州"),
    ("mi gata se llama Luna", "¿qué nombre tiene mi gata?", "Tu gata se llama Luna, ¿verdad?"),
]


@pytest.mark.parametrize(("fact", "query", "reply"), QUOTATIONS)
def test_a_quotation_of_a_memory_never_outranks_it(keepsake: MemoryService, fact: str, query: str, reply: str) -> None:
    """Given a fact, and replies of the AI that repeat it, I expect the user's own words first."""
    say(keepsake, fact, *CHATTER, timestamp=NOW - 10 * DAY)
    _talk(keepsake, ("what do you know about me?", reply) * 2)

    assert found(keepsake, query)[0] == fact


def _talk(service: MemoryService, lines: Sequence[str]) -> None:
    """The user and the AI in turn."""
    for place, line in enumerate(lines):
        source = "ai" if place % 2 else "user"
        say(service, line, source=source, timestamp=NOW - 2 * DAY + place, meta={"session_id": "s"})


def test_a_fact_inside_a_request_is_a_fact(keepsake: MemoryService) -> None:
    """Given a request that tells when a flight leaves, I expect it first where that is asked."""
    request = "Can you book me a taxi for the early morning, as my flight leaves on the 6th at 7:40?"
    say(keepsake, request, *CHATTER, timestamp=NOW - DAY)

    assert found(keepsake, "when does my flight leave?")[0] == request


def test_what_is_not_to_be_remembered_becomes_no_memory(keepsake: MemoryService) -> None:
    """Given a reply that the built-in replier marks, I expect no memory of it, one by one or in a batch."""
    filler = {
        "user_id": "u1",
        "content": "I do not remember anything about that yet.",
        "source": "ai",
        "timestamp": NOW,
    }

    marked = MemoryUpdateMessage(**filler, meta={"remember": False})
    assert (keepsake.index(marked), keepsake.index_many([marked])) == ([], [])
    assert found(keepsake, "what do you remember?", min_score=0) == []


# Rooms

ROOMS = [
    (("Alice: hmm maybe", "Dave: Alice is moving to Porto next month"), "where is Alice moving", 1),
    (
        ("<alice> not again lol", "<dave> alice works at the bakery now", "<bob> nice weather"),
        "where does Alice work?",
        1,
    ),
    (("[小明] 再说吧", "[小红] 小明下个月搬去杭州", "[小刚] 今天好热"), "小明要搬去哪里？", 1),
    (("小明(10001)：哈哈真的假的", "小红(10002)：小明对花生过敏，别给他"), "小明对什么过敏？", 1),
    (("小红：我对花粉过敏很严重", "小明：我对虾过敏", "小刚：我不过敏"), "小明对什么过敏", 1),
    (
        ("Alice: I'm allergic to nuts", "Dave: I'm allergic to shrimp", "Bob: I love shrimp"),
        "what is Dave allergic to?",
        1,
    ),
    (("[Alice] my birthday is in May", "[Dave] my birthday is in June"), "when is Dave's birthday?", 1),
    (("Maria: quizás", "Juan: Maria se muda a Bilbao en marzo"), "¿a dónde se muda Maria?", 1),
    (("たけし：うーんどうかな", "ゆき：たけしは来月大阪に引っ越す"), "たけしはどこに引っ越すの？", 1),
    (("민수: 글쎄 생각 좀 해보고", "지은: 민수 다음 달에 부산으로 이사 가"), "민수 어디로 이사 가?", 1),
]


@pytest.mark.parametrize(("lines", "query", "place"), ROOMS)
def test_in_a_room_who_is_spoken_of_counts_where_a_speaker_is_not(
    keepsake: MemoryService, lines: tuple[str, ...], query: str, place: int
) -> None:
    """Given a room whose speakers are written in one of many forms, I expect the line about the one who is named."""
    say(keepsake, *lines, timestamp=NOW - DAY, meta={"session_id": "room"})

    assert found(keepsake, query)[0] == lines[place]


# Withdrawals

WITHDRAWN = [
    ("I live in Berlin", "where do I live?", "forget that I live in Berlin"),
    ("我住在柏林", "我住在哪里？", "忘掉我住在柏林这件事"),
    ("vivo en Berlín", "¿dónde vivo?", "olvida que vivo en Berlín"),
    ("ich wohne in Berlin", "wo wohne ich?", "vergiss bitte, dass ich in Berlin wohne"),
]


@pytest.mark.parametrize(("fact", "query", "withdrawal"), WITHDRAWN)
def test_a_request_to_forget_is_no_answer(keepsake: MemoryService, fact: str, query: str, withdrawal: str) -> None:
    """Given a fact of last week and a later request to forget another, I expect the fact before the request."""
    say(keepsake, fact, *CHATTER, timestamp=NOW - 7 * DAY)
    say(keepsake, withdrawal, timestamp=NOW - DAY)

    assert found(keepsake, query)[0] == fact
