"""Withdrawals by language: regular expressions of a request to forget what it names, which is told as no fact.

The imperative alone: "I forgot that", "don't forget that" and 忘了告诉你 tell what follows.
"""

from typing import Final

from services.long_term_memory.retrieval.wordings import Wordings

#: What a sentence must contain, for speed; and the expression. By language or group of languages.
_WORDINGS: Final = Wordings(
    (
        "forget|unlearn|disregard|ignore|erase|delete|remove|wipe|scrub",
        r"^(?:(?:ok|okay|hey|hi|so|and|now|actually|sorry|no|oh|well|please|pls|just|can you|could you|will you"
        r"|would you|you can|you should|i want you to|i'd like you to|i need you to|let's)[ ,]+)*(?:forget|unlearn"
        r"|disregard|ignore|erase|delete|remove|wipe|scrub)(?: everything| anything| all| the (?:fact|memory"
        r"|memories|part))?(?: about| of| where| when)? (?:that|what|my|i|we|our|the fact|the memory|this memory"
        r"|about|everything|when|where)\b",
    ),
    (
        "remember|stor|sav|keep|memori",
        r"^(?:please |pls )?(?:do not|don't|stop) (?:remember|remembering|store|storing|save|saving|keep"
        r"|memori[sz]e)\b",
    ),
    (
        "忘|删|刪|清除",
        r"^(?:请|請|麻烦|麻煩|拜托|你|您|帮我|幫我|给我|給我|就|快|可以|能不能|那|好|把.{1,30})*(?:忘记|忘記|忘掉"
        r"|忘了|忘却|删除|刪除|删掉|刪掉|清除)(?!告诉|告訴|说|說|带|帶|拿|跟|和你|提|问|問|关|關|锁|鎖|买|買|吃|做"
        r"|写|寫|回|发|發)",
    ),
    (
        "记|記",
        r"^(?:请|請)?(?:别|別|不要|不用)(?:再)?(?:记|記)(?:住|得|着|著|下)?我",
    ),
    (
        "忘れて",
        r"忘れて(?:ください|下さい|くれ|ほしい|欲しい|[ねよ]?$)",
    ),
    (
        "잊어|기억",
        r"잊어\s?(?:줘|주세요|줄래|버려|라)|기억(?:하지\s?마|에서 지워)",
    ),
    (
        "olvid|borra|elimina",
        r"^(?:por favor,? )?(?:olvida|olvídate|olvidate|olvide|olvidad|borra|elimina)\b",
    ),
    (
        "esque|apag",
        r"^(?:por favor,? )?(?:esquece|esqueça|esqueca|apaga|apague) (?:que|o que|de|a|isso)",
    ),
    (
        "oubli|effac",
        r"^(?:s'il te plaît,? |s'il vous plaît,? )?(?:oublie|oubliez|efface|effacez) (?!pas)",
    ),
    (
        "vergiss|vergessen|lösch",
        r"^(?:bitte )?(?:vergiss|vergessen sie|lösch[e]?)\b(?! nicht)",
    ),
    (
        "dimentica|scorda|cancella",
        r"^(?:per favore,? )?(?:dimentica|dimenticati|scorda|scordati|cancella)\b",
    ),
    (
        "vergeet|wis|glöm|glem",
        r"^(?:alsjeblieft )?(?:vergeet|wis)\b(?! niet)|^(?:snälla )?glöm (?:att|bort)|^(?:vennligst )?glem (?:at"
        r"|det)",
    ),
    (
        "забуд|удали|сотри|zapom|uit",
        r"^(?:пожалуйста,? )?(?:забудь(?:те)?|удали(?:те)?|сотри(?:те)?)\b|^(?:proszę,? )?zapomnij"
        r"|^(?:prosím,? )?zapome[nň]|^(?:te rog,? )?uit[aă] (?:că|ca|de)",
    ),
    (
        "felejtsd|unut|unohda|ξέχ",
        r"^(?:kérlek,? )?felejtsd|\bunut(?:un|ur musun)?$|^(?:lütfen )?unut\b|^unohda\b"
        r"|^(?:σε παρακαλώ,? )?ξέχ(?:να|ασε)",
    ),
    (
        "lupakan|hapus|quên|xo|xó|ลืม",
        r"^(?:tolong )?(?:lupakan|hapus)\b|^(?:hãy |làm ơn |xin )*(?:quên|xoá|xóa)\b|^(?:ช่วย|โปรด|กรุณา)?ลืม(?:ว่า"
        r"|เรื่อง|ที่)",
    ),
    (
        "انس|احذف|فراموش|یاد|שכח|מחק|भूल|ভুলে",
        r"^(?:من فضلك |رجاء )?(?:انس|انسَ|انسى|احذف)\b|(?:فراموش کن|از یاد ببر)|^(?:בבקשה )?(?:תשכח|תשכחי|שכח"
        r"|מחק)\b|भूल (?:जा|जाओ|जाइए|जाना)|ভুলে যাও",
    ),
)


def withdraws(sentence: str) -> bool:
    """Whether a sentence asks to forget what it names.

    Args:
        sentence: folded by NFKC and case, without final punctuation.
    """
    return _WORDINGS.occur_in(sentence)
