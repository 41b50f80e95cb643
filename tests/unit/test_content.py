"""What a text has to look for: words, an address or an id, or nothing."""

from __future__ import annotations

import pytest

from services.long_term_memory.retrieval.content import Content, content

NOTHING = [
    *(
        "ok",
        "Okay!",
        "hmm",
        "hmmmm",
        "thanks!",
        "Thank you so much",
        "good morning",
        "Good night",
        "yes",
        "nope",
        "lol",
    ),
    *("hahaha", "how are you?", "ok so", "oh wow, thanks", "...", "?!", "see you tomorrow", "no problem, bye"),
    *("好的", "嗯嗯。", "谢谢你", "早上好", "晚安", "哈哈哈哈", "在吗？", "收到", "唔該", "早晨", "不客气", "好嘞"),
    *("はい", "ありがとうございます", "おはよう", "了解です", "なるほど", "おやすみ", "www"),
    *("네", "감사합니다", "안녕하세요", "ㅋㅋㅋ", "좋은 아침", "알겠습니다"),
    *("gracias", "buenos días", "hola", "jajaja", "muchas gracias", "bom dia", "obrigada", "kkkk", "merci beaucoup"),
    *("bonjour", "bonne nuit", "ça va", "grazie", "buongiorno", "danke schön", "guten Morgen", "dank je wel", "tack"),
    *("tusen takk", "kiitos", "dzień dobry", "dziękuję", "dobrý den", "köszönöm", "bună dimineața", "hvala"),
    *("спасибо", "доброе утро", "привет", "хаха", "дякую", "добрий ранок", "καλημέρα", "ευχαριστώ", "teşekkürler"),
    *("günaydın", "selamat pagi", "terima kasih", "wkwkwk", "cảm ơn", "chào buổi sáng", "asante sana", "salamat"),
    *("שלום", "תודה רבה", "شكرا", "صباح الخير", "ههههه", "سلام", "مرسی", "صبح بخیر", "شکریہ", "धन्यवाद", "नमस्ते"),
    *("ধন্যবাদ", "நன்றி", "ధన్యవాదాలు", "ขอบคุณครับ", "สวัสดีค่ะ", "555", "ຂອບໃຈ", "អរគុណ", "ကျေးဇူးပါပဲ", "მადლობა"),
    *(
        "[图片]",
        "[sticker]",
        "<Media omitted>",
        "【表情】",
        "[動画]",
        "(voice message)",
        "[Photo] [Photo]",
        "[图片] 哈哈",
    ),
]

LITERAL = [
    *("https://example.org/watch?v=dQw4w9WgXcQ", "www.example.org", "example.com/a"),
    *("om_x91aa0000f", "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "wxid_9x8f7a6s5d", "msg_1729384756", "dQw4w9WgXcQ"),
    *("👍", "😂😂", "❤️", "thanks 👍", "[图片] 👍"),
]

WORDS = [
    *("my cat", "test", "who are you", "where do I live", "good restaurants", "no smoking", "bye bye birdie musical"),
    *("Ok Computer album", "iphone15pro", "covid19", "18578472151", "2024-05-06", "A1B2", "C++", "Jo", "x", "42"),
    *(
        "猫",
        "早餐吃什么",
        "哈尔滨",
        "谢霆锋",
        "可以养猫吗",
        "我的密码",
        "不用药",
        "得了流感",
        "我是谁",
        "早稲田",
        "草津温泉",
    ),
    *(
        "うどん",
        "わさび",
        "네이버",
        "นมสด",
        "ไม่สบาย",
        "मिठाई",
        "[photo: a cat]",
        "[a photo of my red car]",
        "(I moved to Lisbon)",
    ),
    *("thanks Anna", "good morning, I moved to Lisbon", "谢谢，我搬家了", "look at this: https://example.org"),
]


@pytest.mark.parametrize("text", NOTHING)
def test_it_has_nothing_to_look_for(text: str) -> None:
    assert content(text) is Content.NOTHING


@pytest.mark.parametrize("text", LITERAL)
def test_it_is_an_address_or_an_id_or_an_emoji(text: str) -> None:
    assert content(text) is Content.LITERAL


@pytest.mark.parametrize("text", WORDS)
def test_it_has_words(text: str) -> None:
    assert content(text) is Content.WORDS


@pytest.mark.parametrize(
    "text", ["哈" * 20_000, "ha" * 20_000 + "x", "[" * 20_000, "a1" * 20_000, "ok " * 10_000, "http" * 5_000]
)
def test_a_long_text_takes_no_time(text: str) -> None:
    """Given a text that would have a backtracking expression try everything, I expect a result."""
    assert content(text) in Content
