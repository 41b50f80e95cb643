"""Secrets are told from what may be kept as a fact."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.long_term_memory.extraction.secrets import holds_secret

SECRETS = {
    "Visa": "The user's card is 4111 1111 1111 1111.",
    "Visa, with hyphens": "4111-1111-1111-1111",
    "Amex": "The user pays with 378282246310005.",
    "UnionPay, in Chinese": "用户的银行卡号是6222021234567890128。",
    "full-width digits": "４１１１１１１１１１１１１１１１",
    "Chinese identity number": "用户的身份证号是11010519491231002X。",
    "social security number": "The user's number is 123-45-6789.",
    "IBAN": "The user's account is DE89 3704 0044 0532 0130 00.",
    "OpenAI": "sk-proj-abcdefghijklmnop1234567890",
    "Anthropic": "sk-ant-api03-abcdefghijklmnop1234567890",
    "Stripe": "sk_live_abcdefghijklmnop123",
    "GitHub": "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "AWS": "AKIAIOSFODNN7EXAMPLE",
    "Google": "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "Slack": "xoxb-123456789012-abcdefghijkl",
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "private key": "-----BEGIN RSA PRIVATE KEY-----",
    "URL with a password": "postgresql://ada:hunter2@db.example/x",
    "password": "The user's password is hunter2.",
    "password of something": "The password for the wifi is Sunflower",
    "password with a colon": "password: Tr0ub4dor&3",
    "PIN": "The user's PIN is 4921.",
    "password in Chinese": "用户的密码是abc123。",
    "code in Chinese": "验证码：884213",
    "a password that changed": "The user's password changed to hunter3.",
    "password in Japanese": "パスワードはhunter2です",
    "code in Japanese": "暗証番号は4921",
    "password in Korean": "비밀번호는 hunter2",
    "password in Russian": "Пароль: hunter2",
}
KEPT = {
    "phone number": "The user's phone number is 13800138000.",
    "date": "The user was born on 1990-01-02.",
    "span": "2024-03-04/2024-03-10",
    "order number": "The order is ES2-0097-K.",
    "digits of no card": "The tracking number is 4111 1111 1111 1112.",
    "long number of no network": "Pi is 3.14159265358979.",
    "the password, without it": "The user's password is in the drawer.",
    "the password, that it fails": "The password is wrong.",
    "a forgotten PIN": "The user's PIN is not working.",
    "passwords in Chinese": "用户忘记了密码。",
    "passwords in Japanese": "ユーザーはパスワードを忘れた。",
    "a password that was reset": "The user's password was reset.",
    "a key of music": "The song is in the key of C.",
    "prices": "The flat costs 1 200 000 000 000 dong.",
    "home": "The user lives in Lisbon with 2 cats and 3 dogs.",
}


@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS)
def test_a_secret_is_told(text: str) -> None:
    """Given a text with a secret, I expect it told."""
    assert holds_secret(text)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_other_texts_are_no_secrets(text: str) -> None:
    """Given a fact that only looks like one, I expect it kept."""
    assert not holds_secret(text)


@given(st.text())
def test_any_text_has_an_answer(text: str) -> None:
    """Given any text, I expect an answer and no error."""
    assert holds_secret(text) in {True, False}
