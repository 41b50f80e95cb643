import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.long_term_memory.retrieval.utterances import (
    _SPEAKER,
    _SPEAKER_MARKS,
    Question,
    Script,
    asks,
    is_japanese,
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
        "在么,你好呀",  # a greeting states nothing
        "¿cómo se llama mi gata?",
        "où habite ma sœur ?",
        "wo wohnt meine Schwester?",
        "Anna: thanks!",
        "[图片]",
        "小王：[图片]",
        "https://example.org/a?b=1",
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


#: Requests of the user that tell a fact beside what they ask.
TELLING_REQUESTS = [
    "Can you book me a taxi for the morning, as my flight leaves on the 6th at 7:40?",
    "What movies would be suitable for my family weekend, considering Amy and Kyle are arriving at 2 PM on April 6?",
    "How can I save money on rentals like I did with Paddington 2, where I saved $3.99 by renting it without a plan?",
    "Could you suggest a restaurant for Friday night, because my sister Anna is visiting from Lisbon?",
    "Please find me a dentist near the office since I moved to Porto last week, can you?",
    "Can you suggest a gift for my mum, she turns 60 on March 3rd and loves gardening?",
    "What should we cook on Saturday (his parents are vegetarians) that is quick to make?",
    "Could you write a polite note to our landlord; we have had no hot water since Monday?",
]


@pytest.mark.parametrize("text", TELLING_REQUESTS)
def test_a_request_that_tells_a_fact_is_no_mere_question(text: str) -> None:
    assert asks(text) is Question.AT_THE_END


@pytest.mark.parametrize(
    "text",
    [
        "what was the name of the hall for my sister Anna's wedding on May 5?",
        "When did Melanie go to the museum with her kids in 2023?",
        "whats my cats name again",
        "Hi! Where do I live?",
        "Thanks! And what was the wifi password?",
    ],
)
def test_a_question_of_some_length_or_with_a_greeting_only_asks(text: str) -> None:
    assert asks(text) is Question.ONLY


REFUSALS = [
    *("Sorry, I don't know that.", "I'm afraid I don't remember.", "I do not remember anything about that yet."),
    *(
        "I'm not sure, could you remind me?",
        "I don't have any information about your cat's name.",
        "I have no record of that.",
    ),
    *(
        "As an AI, I have no memory of previous conversations.",
        "Hmm, you haven't told me that yet.",
        "I'm not sure, sorry!",
    ),
    *(
        "抱歉，我不记得了。",
        "不好意思，我不太清楚。",
        "关于这件事，我还没有任何记忆。",
        "你还没告诉过我呢。",
        "對不起，我想不起來了。",
    ),
    *(
        "すみません、わかりません。",
        "覚えていません。",
        "죄송해요, 잘 모르겠어요.",
        "기억나지 않아요.",
        "Lo siento, no lo sé.",
    ),
    *("Je ne m'en souviens pas.", "Das weiß ich leider nicht.", "Desculpe, não me lembro.", "Mi dispiace, non lo so."),
    *(
        "Извините, я не помню.",
        "Przepraszam, nie pamiętam.",
        "Dat weet ik niet.",
        "Üzgünüm, bilmiyorum.",
        "Maaf, saya tidak tahu.",
    ),
    *("Xin lỗi, mình không nhớ.", "ขอโทษค่ะ จำไม่ได้", "آسف، لا أعرف.", "माफ़ कीजिए, मुझे याद नहीं।", "מצטער, אני לא זוכר."),
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_of_the_ai_states_nothing(text: str) -> None:
    assert asks(text, from_ai=True) is Question.ONLY


@pytest.mark.parametrize(
    "text",
    [
        "Your cat is called Mochi.",
        "I don't remember the year, but you told me that your sister lives in Lisbon. She works at a bakery.",
        "你的猫叫豆豆。",
        "Returns are free within 30 days.",
    ],
)
def test_an_answer_of_the_ai_states_something(text: str) -> None:
    assert asks(text, from_ai=True) is Question.NOTHING


def test_what_the_user_does_not_know_is_a_fact() -> None:
    assert asks("I don't know how to swim") is Question.NOTHING
    assert asks("我不记得密码了") is Question.NOTHING


WITHDRAWALS = [
    *(
        "forget that I live in Berlin",
        "Please forget what I said about my job.",
        "Ok, delete my address",
        "Anna: forget about Ben",
    ),
    *(
        "Don't remember that I live in Berlin",
        "忘记我住在柏林",
        "请忘掉我住在柏林这件事",
        "把我住在柏林的事忘了吧",
        "别记我住在柏林",
    ),
    *(
        "olvida que vivo en Berlín",
        "oublie que j'habite à Berlin",
        "vergiss, dass ich in Berlin wohne",
        "esquece que moro em Berlim",
    ),
    *(
        "dimentica che vivo a Berlino",
        "vergeet dat ik in Berlijn woon",
        "забудь, что я живу в Берлине",
        "zapomnij, że mieszkam tu",
    ),
    *(
        "ベルリンに住んでいることは忘れて",
        "내가 베를린에 사는 거 잊어줘",
        "Berlin'de yaşadığımı unut",
        "lupakan bahwa saya di Berlin",
    ),
    *("hãy quên việc tôi sống ở Berlin", "ลืมว่าฉันอยู่เบอร์ลินนะ", "انس أنني أعيش في برلين", "भूल जाओ कि मैं बर्लिन में रहता हूँ"),
]


@pytest.mark.parametrize("text", WITHDRAWALS)
def test_a_request_to_forget_states_nothing(text: str) -> None:
    assert asks(text) is Question.ONLY


@pytest.mark.parametrize(
    "text",
    [
        *("don't forget that I live in Berlin", "I forgot my keys", "I never forget a face", "I deleted my account"),
        *(
            "忘了告诉你我搬到柏林了",
            "别忘了我住在柏林",
            "我忘了带钥匙",
            "鍵を忘れてしまった",
            "no olvides que vivo en Berlín",
        ),
        *("n'oublie pas que j'habite à Berlin", "vergiss nicht, dass ich in Berlin wohne", "не забудь, что я живу тут"),
        "Forget that I live in Berlin. I moved to Porto.",
    ],
)
def test_what_was_forgotten_or_must_not_be_is_told(text: str) -> None:
    assert asks(text) is Question.NOTHING


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
        "在么,猫饿了",
        "did I tell you that my sister moved",
    ],
)
def test_it_only_states(text: str) -> None:
    assert asks(text) is Question.NOTHING


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("[小明] 在吗", "小明", "在吗"),
        ("【小红】明天见", "小红", "明天见"),
        ("<alice> hi all", "alice", "hi all"),
        ("小明(10001)：你好", "小明", "你好"),
        ("Alice (she/her): hi", "alice", "hi"),
        ("Anna#1234: hi", "anna", "hi"),
        ("[06/05/24, 10:32] Anna Lee: hi", "anna lee", "hi"),
        ("06/05/2024, 10:32 - Anna: hi", "anna", "hi"),
        ("[图片] 晚饭", "", "[图片] 晚饭"),
        ("<Media omitted> dinner", "", "<Media omitted> dinner"),
        ("[10:32] hi", "", "[10:32] hi"),
        ("I <3 you", "", "I <3 you"),
        ("2024-05-06: we met", "", "2024-05-06: we met"),
    ],
)
def test_a_speaker_is_written_in_many_forms(text: str, name: str, said: str) -> None:
    assert (speaker(text), strip_speaker(text)) == (name, said)


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


@pytest.mark.parametrize(
    "text",
    [
        "你好王芳！教什么科目呢？",
        "周老师好!您以前教什么的呢?",
        "Hi Maya! What do you do?",
        "Привет, Олег! Где ты живёшь?",
    ],
)
def test_a_greeting_by_name_before_a_question_of_the_ai_states_nothing(text: str) -> None:
    assert asks(text, from_ai=True) is Question.ONLY


@pytest.mark.parametrize("text", ["四点半!您开了多少年公交呀?", "Six hundred menus! Will you sneak me onto one?"])
def test_what_the_ai_repeats_before_a_question_is_stated(text: str) -> None:
    assert asks(text, from_ai=True) is Question.AT_THE_END


def test_a_greeting_by_name_of_the_user_may_tell_the_name() -> None:
    assert asks("Hi Maya! What do you do?") is Question.AT_THE_END


@pytest.mark.parametrize("text", ["and the default password?", "So your sister's birthday?", "and Tuesday?"])
def test_a_fragment_that_goes_on_asking_only_asks(text: str) -> None:
    assert asks(text) is Question.ONLY


@pytest.mark.parametrize("text", ["And I live in Porto?", "So she moved to Lyon?", "my cat is called Mochi?"])
def test_a_fact_that_is_asked_back_states_it(text: str) -> None:
    assert asks(text) is Question.AT_THE_END


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("猫の名前は？", True),
        ("うちの猫", True),
        ("モカ", True),
        ("我的猫叫什么", False),
        ("优の良品的猫粮", False),
        ("cat", False),
    ],
)
def test_kana_tells_japanese(text: str, expected: bool) -> None:
    assert is_japanese(text) is expected


def test_a_name_has_up_to_three_words() -> None:
    assert speaker("Anna Mary Lou: hello") == "anna mary lou"
    assert speaker("we meet at noon: bring tea") == ""
    assert strip_speaker("we meet at noon: bring tea") == "we meet at noon: bring tea"


@given(st.text(st.characters(exclude_characters=_SPEAKER_MARKS)))
def test_no_text_without_a_mark_names_a_speaker(text: str) -> None:
    """The quick look for a mark decides nothing that the expression would decide otherwise."""
    assert _SPEAKER.match(text) is None
