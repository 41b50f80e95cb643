"""Refusals by language: regular expressions of what an AI says that knows no answer.

Of the AI's words alone: a user who says "I don't know how to swim" states a fact. Verbs of knowing and remembering,
what was not told, and apologies without more, as assistants have them. Written for this.
"""

from typing import Final

from services.long_term_memory.retrieval.wordings import Wordings

#: What a sentence must contain, for speed; and the expression. By language or group of languages.
_WORDINGS: Final = Wordings(
    (
        "n't|n’t|not|no |cannot|unable|any |enough |as an ai|model|assist|remind me|let me",
        r"\b(?:do|did|have|has|could|ca|can|was|am|are|is|would)(?:n't|n’t|not| not) (?:\w+ ){0,2}(?:know|remember"
        r"|recall|sure|certain|aware|told|tell|mention(?:ed)?|shared?|said|say|able|find|access|help)\b|\b(?:i'm"
        r"|i’m|im|we're) (?:not|unable)\b|\bcannot (?:recall|remember|help|find|say)\b|\b(?:no|any"
        r"|enough) (?:\w+ ){0,2}(?:memor(?:y|ies)|records?|information|info|idea|recollection|details?|data"
        r"|knowledge)\b|\bas an ai\b|\b(?:language model|ai assistant)\b|\bremind me\b|\blet me know\b"
        r"|\bhow can i (?:help|assist)\b",
    ),
    (
        "不|没|沒|无|無|未|唔|歉|对不起|對不起|记|記|找",
        r"(?:不|没|沒)(?:太|有|能|是很|大|再)?(?:知道|晓得|曉得|记得|記得|记住|記住|清楚|确定|確定|了解|瞭解)"
        r"|(?:没有|沒有|无|無|查不到|找不到)(?:\w{0,6})?(?:记忆|記憶|记录|記錄|纪录|紀錄|信息|訊息|资料|資料|印象)"
        r"|想不起来|想不起來|记不[得清起住]|記不[得清起住]|(?:没|沒|未)有?(?:跟我|和我|对我|對我|同我)?(?:告诉"
        r"|告訴|提到|提及|提过|提過|说过|說過|讲过|講過|说起|說起|聊过|聊過)|无法(?:回答|得知|知道|记住)"
        r"|無法(?:回答|得知|知道|記住)|唔(?:知道?|記得|清楚|肯定)|^(?:很|真的?|非常)?(?:抱歉|对不起|對不起"
        r"|不好意思)$",
    ),
    (
        "ません|ない|知|存じ|申し|ごめん|すみ",
        r"(?:わか|分か|判)(?:り(?:ません|かねます)|らない|んない)|知り(?:ません)|知らない|覚えて(?:い)?(?:ません"
        r"|ない)|思い出せ(?:ません|ない)|存じ(?:ません|上げません)|(?:記憶|記録|情報"
        r"|データ)[がにはも]*(?:ありません|ない|ございません)|(?:聞いて|伺って|教えて)(?:い)?(?:ません|ない)"
        r"|^(?:申し訳(?:ありません|ございません)|すみません|ごめんなさい)$",
    ),
    (
        "모르|모릅|몰라|기억|정보|기록|말|얘기|알|죄송",
        r"모르(?:겠|는|아|네)|모릅니다|몰라|기억(?:이|은|을|나지|하지)?\s?(?:나지\s?)?(?:않|안|없|못)|(?:정보"
        r"|기록)[가이은는]?\s?없|(?:말씀|말|얘기|알려)\w*\s?(?:적이? 없|않으셨|안 했)|알 수 없|^죄송(?:합니다"
        r"|해요)$",
    ),
    (
        "no ",
        r"\bno (?:lo |me )?(?:sé|se|recuerdo|acuerdo|conozco|tengo (?:\w+ )?(?:información|datos?|recuerdos?"
        r"|registros?)|puedo (?:recordar|decir\w*|ayudar\w*)|estoy segur[oa])\b|\bno me (?:lo )?(?:has"
        r"|había?s) (?:dicho|contado|mencionado)\b",
    ),
    (
        "não ",
        r"\bnão (?:me |te )?(?:sei|lembro|recordo|tenho (?:\w+ )?(?:informaç\w+|registros?|memórias?|dados?"
        r"|certeza)|consigo (?:lembrar|dizer)|estou certo)\b|\b(?:você|tu) (?:ainda )?não me (?:disse|contou"
        r"|disseste|contaste)\b",
    ),
    (
        "non ",
        r"\bnon (?:lo |mi |me lo )?(?:so|ricordo|conosco|ho (?:\w+ )?(?:informazioni|ricordi|dati)|sono sicur[oa]"
        r"|posso (?:dirlo|aiutarti)|hai (?:detto|raccontato))\b",
    ),
    (
        "n'|n’|ne |aucun",
        r"\b(?:ne|n'|n’) ?(?:le |m'en |me |m’en )?(?:sais|souviens|rappelle|connais|suis|peux|ai) (?:plus |pas"
        r"|aucun)|\baucune? (?:information|souvenir|idée|trace)|\btu ne m[e'’]",
    ),
    (
        "nu ",
        r"\bnu (?:știu|stiu|îmi amintesc|am (?:informații|date)|sunt sigur)",
    ),
    (
        "nich|wei|kein",
        r"\b(?:weiß|weiss|erinnere?|kenne) (?:ich |es |das |mich |leider |daran ){0,3}nicht\b|\bnicht (?:erinnern"
        r"|sicher|bekannt|sagen)\b|\bkeine? (?:\w+ )?(?:informationen?|erinnerung|ahnung|aufzeichnung)"
        r"|\bnicht (?:erzählt|gesagt|erwähnt)\b",
    ),
    (
        "niet|geen",
        r"\bweet (?:ik )?(?:het |dat )?(?:helaas )?niet\b|\bherinner (?:ik )?me .{0,20}niet\b|\bgeen (?:informatie"
        r"|idee|herinnering)|\bniet (?:zeker|verteld|genoemd)\b",
    ),
    (
        "inte|ikke",
        r"\bvet (?:jag )?(?:tyvärr )?inte\b|\bminns (?:jag )?(?:tyvärr )?inte\b|\bkommer inte ihåg\b"
        r"|\binte säker\b|\bved (?:jeg )?(?:desværre )?ikke\b|\bvet (?:jeg )?(?:dessverre )?ikke\b"
        r"|\bhusker (?:jeg )?ikke\b",
    ),
    (
        "en ",
        r"\ben (?:valitettavasti )?(?:tiedä|muista|osaa|ole varma)\b",
    ),
    (
        "не|нет|нем",
        r"\bне (?:знаю|помню|уверен\w*|припомню|запомнил\w*|могу (?:вспомнить|помочь|ответить|сказать))"
        r"|\bнет (?:\w+ )?(?:информации|данных|воспоминаний|сведений)|\b(?:вы|ты) (?:\w+ ){0,3}не (?:говорил"
        r"|рассказывал|упоминал)|\bне (?:пам'ятаю|пам’ятаю|впевнен\w*)|\bнемає (?:інформації|даних)",
    ),
    (
        "nie ",
        r"\bnie (?:wiem|pamiętam|mam (?:\w+ )?(?:informacji|danych|wspomnień)|jestem pew|powiedział|mówił)",
    ),
    (
        "nev|nem|nej",
        r"\b(?:nevím|nevim|nepamatuji|nepamatuju|nemám (?:informace|údaje)|nejsem si jist)",
    ),
    (
        "δεν ",
        r"\bδεν (?:το )?(?:ξέρω|θυμάμαι|γνωρίζω|έχω (?:πληροφορίες|στοιχεία)|είμαι σίγουρ)",
    ),
    (
        "nem |nincs ",
        r"\bnem (?:tudom|emlékszem|vagyok biztos)|\bnincs (?:információm|adatom)",
    ),
    (
        "mıyor|miyor|değil|bilgi|kay|söyle",
        r"\b(?:bilmiyorum|hatırlamıyorum|bilemiyorum|emin değilim)\b|\b(?:bilgim|bilgi|kaydım) yok|\bsöylemedin",
    ),
    (
        "tidak|nggak|belum|tak ",
        r"\b(?:tidak|nggak|belum|tak) (?:tahu|ingat|yakin|pasti|punya (?:informasi|catatan)|memiliki (?:informasi"
        r"|catatan)|ada (?:informasi|catatan)|pernah (?:memberi|bilang|cerita))",
    ),
    (
        "không|chưa",
        r"\b(?:không|chưa) (?:được )?(?:biết|nhớ|chắc|rõ|có (?:thông tin|dữ liệu|ký ức)|nói|kể)\b",
    ),
    (
        "ไม่",
        r"ไม่(?:ค่อย)?(?:รู้|ทราบ|แน่ใจ|มีข้อมูล)|จำไม่(?:ได้|ออก)|ยังไม่(?:ได้บอก|เคยบอก|ทราบ|รู้)",
    ),
    (
        "hindi|wala",
        r"\bhindi ko (?:alam|matandaan|maalala)|\bwala akong (?:impormasyon|alam)",
    ),
    (
        "لا |لم |ما |لست|ليس",
        r"(?:لا|لم|ما) (?:أعرف|اعرف|أعلم|اعلم|أتذكر|اتذكر|أذكر|اذكر|تخبرني|تذكر لي)|لست (?:متأكد|متاكد)|(?:ليس"
        r"|ليست) (?:لدي|عندي)",
    ),
    (
        "نمی|نیست|ندارم|نگفت",
        r"نمی[‌ ]?(?:دانم|دونم|توانم)|یادم (?:نیست|نمی)|مطمئن نیستم|(?:اطلاعاتی|خاطره‌ای) ندارم|به من نگفت",
    ),
    (
        "نہیں",
        r"(?:معلوم|یاد|پتا|پتہ) نہیں|نہیں (?:معلوم|جانت|پتہ)",
    ),
    (
        "नहीं",
        r"(?:पता|मालूम|याद|जानकारी|यकीन) नहीं|नहीं (?:पता|मालूम|जानत|बताया)",
    ),
    (
        "না|নেই",
        r"(?:জানি|মনে|জানা) (?:না|নেই)|মনে পড়ছে না|তথ্য নেই",
    ),
    (
        "לא |אין ",
        r"לא (?:יודע|יודעת|זוכר|זוכרת|בטוח|בטוחה|סיפרת|אמרת)|אין לי (?:מידע|זיכרון|מושג)",
    ),
)


def refuses(sentence: str) -> bool:
    """Whether a sentence of an AI says that it has no answer.

    Args:
        sentence: folded by NFKC and case, without final punctuation.
    """
    return _WORDINGS.occur_in(sentence)
