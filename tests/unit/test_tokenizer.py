import string

import pytest

from services.long_term_memory.retrieval.tokenizer import _stem, terms


@pytest.fixture(autouse=True)
def _no_stems() -> None:
    """Each test stems its words itself: the cache of stems outlives a test, and a fork of its process."""
    _stem.cache_clear()


def test_forms_of_a_word_are_one_term() -> None:
    assert terms("She paints, he painted, we like painting") == ["paint", "paint", "like", "paint"]


def test_function_words_are_left_out_unless_there_are_no_others() -> None:
    assert terms("What is the name of my cat?") == ["name", "cat"]
    assert terms("who are you") == ["who", "are", "you"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Café", "cafe"),
        ("Ｈｅｌｌｏ", "hello"),
        ("STRASSE", "straße"),
        ("Caroline's", "caroline"),
        ("May 3rd", "may 03"),
        ("$1,000", "1000"),
        ("iPhone15", "iphone 15"),
        ("10things", "10 things"),  # no ordinal
        ("12,3456", "12 3456"),  # no thousands
        ("👍🏽", "👍"),
        ("我對花生過敏", "我对花生过敏"),
        ("穿著", "穿着"),  # Taiwan
        ("乾安縣", "乾安县"),  # OpenCC's phrases convert the first alone
        ("甚麼", "什么"),
        ("妳喜歡貓", "你喜欢猫"),
        ("牠的尾巴", "它的尾巴"),
        ("姊姊", "姐姐"),
        ("綫", "线"),  # Hong Kong
        ("книги", "книга"),
    ],
)
def test_two_spellings_are_one_term(one: str, other: str) -> None:
    assert terms(one) == terms(other)


@pytest.mark.parametrize("apostrophe", ["'", "’"])
def test_an_apostrophe_separates_words(apostrophe: str) -> None:
    """Given contractions and an elision, I expect the words on both sides, function words left out."""
    assert terms(f"I didn{apostrophe}t miss l{apostrophe}opéra") == ["miss", "l", "opera"]


def test_numbers_dates_names_and_emoji_are_terms() -> None:
    found = terms("Zoë paid 3.5 on 2023-05-08 🎂 🇨🇳")
    assert found == ["zoe", "paid", "3.5", "2023", "5", "8", "🎂", "🇨🇳"]


def test_a_date_does_not_begin_with_a_decimal() -> None:
    """Given a date with points, I expect the day as a term of its own."""
    assert terms("8.5.2023")[0] == "8"


def test_chinese_is_found_by_a_word_and_by_a_character_of_it() -> None:
    memory = terms("我的猫叫麻薯，捡的时候才巴掌大")
    assert {"猫", "麻薯", "巴掌"} <= set(memory)
    assert not {"我", "的", "我的"} & set(memory)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("麻薯", ["麻", "薯", "麻薯"]),
        ("猫", ["猫"]),
        ("강아지", ["강아", "아지"]),
        ("낮", ["낮"]),
        ("0 007", ["0", "7"]),
    ],
    ids=["Chinese", "one of Chinese", "Korean", "one of Korean", "numbers"],
)
def test_characters_become_unigrams_and_bigrams(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


def test_function_words_of_two_characters_are_left_out() -> None:
    assert "时候" not in terms("猫小的时候")
    assert {"时", "候"} <= set(terms("猫小的时候"))


def test_accents_are_folded_in_the_latin_script_alone() -> None:
    assert terms("йога") != terms("иога")
    assert terms("yogá") == terms("yoga")
    assert terms("йогa")[0].startswith("й")  # of a word in two scripts, the first letter decides


def test_an_accent_is_folded_whether_it_is_composed_or_combining() -> None:
    """Given both ways to write the accents of five vowels, I expect the vowels."""
    assert terms("ÀÉÎÕÜ") == terms("a\u0300e\u0301i\u0302o\u0303u\u0308") == ["aeiou"]


def test_a_long_term_is_cut() -> None:
    """Given a pasted key, I expect its first 64 characters: those are hashed and stored."""
    assert terms("q" * 100) == ["q" * 64]


def test_languages_mix_in_one_line() -> None:
    assert {"boss", "deadlin", "老板"} <= set(terms("我老板 my boss moved the deadlines"))
    assert terms("coffee 강아지 tea") == ["coffe", "강아", "아지", "tea"]


@pytest.mark.parametrize("text", ["안녕하세요", "สวัสดีครับ", "हिन्दी में लिखो", "مرحبا بكم", "日本語です"])
def test_every_script_has_terms(text: str) -> None:
    assert terms(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "\0", "\ud800", "\udfff猫\ud800", "a" * 100_000, "猫" * 10_000, "'", "’s", "\u0301", string.punctuation],
)
def test_nothing_makes_it_raise(text: str) -> None:
    assert all(0 < len(term) <= 64 for term in terms(text))
