"""Detection of secrets in what an LLM found: card and identity numbers, keys and passwords are not kept as facts."""

from __future__ import annotations

import re
import unicodedata
from datetime import date

_DIGITS = re.compile(r"(?<![\d.])\d(?:[ .\-]?\d){11,18}(?![\d.]*\d)")
#: ISO/IEC 7812: a card number has 12 to 19 digits; the networks' begin with 2 to 6, UnionPay's with 62 and 81.
_CARD = re.compile(r"[2-6]\d{11,18}|81\d{14,17}")
#: GB 11643: six digits of the place, a date of birth, a serial number and a check character.
_CHINESE_ID = re.compile(r"(?<!\d)[1-9]\d{5}((?:19|20)\d{6})\d{3}[\dX](?!\d)", re.IGNORECASE)
_CHINESE_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHINESE_ID_CHECKS = "10X98765432"
_KNOWN_FORMS = re.compile(
    r"\b(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b"  # a US social security number
    r"|\b(?:sk|pk|rk)[-_](?:[a-z]{2,8}[-_])*[A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic, Stripe
    r"|\b(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{30,}|\bxox[abeoprs]-[\w-]{10,}|\bhf_[A-Za-z0-9]{20,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # a JSON web token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/@]+@"  # a password in a URL
    r"|\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"  # an IBAN
)
_NAMED = re.compile(
    r"\b(?:pass(?:word|code|phrase)|passwd|pwd|pin(?: (?:code|number))?|cvv2?|cvc|api[ _-]?key|secret[ _-]?key"
    r"|access[ _-]?token|private[ _-]?key|social security number|ssn|passport number"
    r"|contraseña|passwort|mot de passe)\b"
    r"(?:\s+(?:for|of|to)\s+[^,.;:]{1,40}?)?(?:\s+(?:changed|set|reset))?\s*(?:is|was|are|=|:|to|est|ist|es)\s*[\"'`“‘]?(?P<latin>[^\s\"'`”’,.;]{3,})"
    r"|(?:密码|密碼|口令|验证码|驗證碼|支付码|密钥|密鑰|身份证号码?|护照号码?|パスワード|暗証番号|비밀번호|пароль)[^，。,.;；]{0,12}?"
    r"(?:是|为|為|改成了?|设成了?|は|는|은|[:：=])\s*[\"'“「]?(?P<han>[A-Za-z0-9!-/_@#$%^&*+~.]{3,})",
    re.IGNORECASE,
)
#: What follows "the password is" without being one.
_NO_SECRET = re.compile(
    r"(?:not|in|on|at|the|an?|his|her|their|my|your|our|there|here|this|that|same|too|very|still|now|always|never"
    r"|wrong|incorrect|correct|invalid|broken|lost|expired|stored|saved|written|kept|working|reset|changed|required"
    r"|needed|safe|secret|strong|weak|long|short|known|unknown|hard|easy|locked|blocked|forgotten|due|different)",
    re.IGNORECASE,
)


def holds_secret(text: str) -> bool:
    """Whether a text quotes a card number, an identity number, an API key or a password."""
    folded = unicodedata.normalize("NFKC", text)
    if _KNOWN_FORMS.search(folded) or any(_is_chinese_id(found) for found in _CHINESE_ID.finditer(folded)):
        return True
    if any(_is_card(re.sub(r"\D", "", found[0])) for found in _DIGITS.finditer(folded)):
        return True
    return any(found["han"] or not _NO_SECRET.fullmatch(found["latin"]) for found in _NAMED.finditer(folded))


def _is_card(digits: str) -> bool:
    """Whether the digits are those of a payment card: their form, and the check digit of Luhn's formula."""
    if not _CARD.fullmatch(digits):
        return False
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(digit - 9 if digit > 9 else digit for digit in doubled) % 10 == 0


def _is_chinese_id(found: re.Match[str]) -> bool:
    try:
        date.fromisoformat(f"{found[1][:4]}-{found[1][4:6]}-{found[1][6:]}")
    except ValueError:
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_CHINESE_ID_WEIGHTS, found[0], strict=False))
    return _CHINESE_ID_CHECKS[total % 11] == found[0][-1].upper()
