import pytest

from services.long_term_memory.retrieval.utterances import (
    Question,
    Script,
    asks,
    asks_current_state,
    script,
    speaker,
    strip_speaker,
)


@pytest.mark.parametrize(
    "text",
    [
        "Where did I put the key?",
        "In May, what did Anna buy?",
        "what's my sister's name",
        "what’s my sister’s name",  # as phones type it
        "does the landlady allow pets",
        "Anna: What is it? Where is it? [photo: a box]",
        "我对什么过敏来着",
        "我家猫叫什么名字？",
        "お元気ですか？",
        "WHERE DO I LIVE",
        "在么,你好呀?",
        "你吃过饭了吗。",
        "你昨天去看电影?",  # one clause: no other one states anything
        "你昨天吃饭了没,小王?",
        "Where did Dr. Smith go?",  # an abbreviation ends no sentence
        "What's up?",
        "Isn't it cold?",
        "Any news?",
        "Anything new?",
        "which bus is the fastest",
        "do you have a garden",
        "how old is my sister",
        "how often do I swim",
        "أين تسكن؟",
    ],
)
def test_it_only_asks(text: str) -> None:
    assert asks(text) is Question.ONLY


@pytest.mark.parametrize(
    "text",
    [
        "I lost my job, what should I do?",
        "My sister comes on Friday. Can you suggest a restaurant?",
        "Did I tell you that my sister moved to Paris?",
        "我跟阿凯吵架了,怎么办?",
        "我搬家了,你呢?",  # four characters are enough to state something
        "I moved house\nwhere do I live",  # a line is a sentence
        "Do you remember that Anna moved?",
        "Can you remind me to call Anna?",
        "Did you know my sister moved?",
    ],
)
def test_it_states_before_it_asks(text: str) -> None:
    assert asks(text) is Question.AT_THE_END


@pytest.mark.parametrize(
    "text",
    [
        "",
        "When I was young I lived in Rome",
        "What a day!",
        "Which is nice",
        "do that again",
        "我不知道他什么时候来",
        "谁都喜欢他",  # everyone
        "Why? Because. I left.",
        "在么,你好呀",
        "did I tell you that my sister moved",
    ],
)
def test_it_only_states(text: str) -> None:
    assert asks(text) is Question.NOTHING


@pytest.mark.parametrize(
    "text",
    [
        "Where do I live now?",
        "what's my current address",
        "Anna: what are you reading these days?",
        "我现在房租一个月多少?",
        "如今谁在管这个店",
        "¿Dónde vivo ahora?",
        "Où est-ce que j'habite maintenant ?",
        "Wo wohne ich jetzt?",
        "Onde moro agora?",
        "Где я сейчас живу?",
        "今はどこに住んでいますか？",
        "지금 어디에 살아?",
    ],
)
def test_it_asks_for_the_current_state(text: str) -> None:
    assert asks_current_state(text)


@pytest.mark.parametrize(
    "text", ["I am leaving now", "Where did I live?", "Do you know Anna?", "我住在哪里?", "现在出门了"]
)
def test_it_does_not_ask_for_the_current_state(text: str) -> None:
    assert not asks_current_state(text)


def test_the_speaker_is_the_name_before_the_colon() -> None:
    assert speaker("Anna Lee: hello") == "anna lee"
    assert speaker("小王：在吗") == "小王"
    assert speaker("meet at 10:30") == speaker("https://example.org") == speaker("hello") == ""
    assert strip_speaker("Anna: hello [photo: a cat]") == "hello"
    assert strip_speaker("  hello ") == "hello"


def test_a_speaker_is_folded() -> None:
    assert speaker("Ａnna: hello") == "anna"


def test_more_than_a_fifth_of_han_is_han() -> None:
    assert script("我爱 and ten") is Script.ALPHABET  # two of ten
    assert script("我爱你 and te") is Script.HAN  # three of ten
    assert script("Anna: 我爱你") is Script.HAN  # the name does not count


def test_a_name_has_up_to_three_words() -> None:
    assert speaker("Anna Mary Lou: hello") == "anna mary lou"
    assert speaker("we meet at noon: bring tea") == ""
    assert strip_speaker("we meet at noon: bring tea") == "we meet at noon: bring tea"
