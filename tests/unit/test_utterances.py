import pytest

from services.long_term_memory.retrieval.utterances import (
    Question,
    asks,
    asks_current_state,
    fingerprint,
    speaker,
    strip_speaker,
)


@pytest.mark.parametrize(
    "text",
    [
        "Where did I put the key?",
        "In May, what did Anna buy?",
        "what's my sister's name",
        "does the landlady allow pets",
        "Anna: What is it? Where is it? [photo: a box]",
        "我对什么过敏来着",
        "我家猫叫什么名字？",
        "お元気ですか？",
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
        "我不知道他什么时候来",
        "Why? Because. I left.",
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


def test_copies_share_a_fingerprint_and_other_texts_do_not() -> None:
    assert fingerprint("I love tea!!") == fingerprint("i love  TEA 😊")
    assert fingerprint("I paid 50") != fingerprint("I paid 60")
    assert fingerprint("👍") != fingerprint("😢")
