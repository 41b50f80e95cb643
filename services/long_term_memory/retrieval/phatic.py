"""Phatic expressions by language: regular expressions of words that keep a talk going, and tell and ask nothing.

Greetings, farewells, thanks, assent and refusal, fillers and laughter, as chats have them. Written for this: no list of
interjections was found that is kept, and lists of stop words hold much that a query is about (home, work, own).
"""

from typing import Final

SPACED: Final = """
en: w+|8{2,}6?|6{3,}|2?33{2,}|5{3,}
    |ok(?:ay|ey|ie)?|k{1,2}|kk+|yes|yes please|yea+h?|ye+p|yup|ya|no|no+pe|nah|sure|sure thing|of course|alright
    |all right|right
    |fine|good|great|nice|cool|perfect|awesome|sounds good|got it|i see|i know|makes sense|agreed|exactly|indeed
    |true|done
    |thanks?|thank you|thankyou|thx|tha?nx|tysm|cheers|much appreciated|(?:so|very) much|a lot|you'?re welcome
    |no problem|np|my pleasure|welcome|please|pls|sorry|hello+|hi+|hiya|hey+|yo|howdy|greetings|hi there
    |hello there|hey there
    |good (?:morning|afternoon|evening|night|day)|morning|evening|night night|gm|gn|sleep well|sweet dreams
    |bye+|bye bye|goodbye|see (?:you|ya)(?: later| soon| tomorrow)?|cya|later|take care|ttyl|brb
    |have a (?:nice|good|great) (?:day|one|evening|weekend)
    |h+m+|h+u+h|u+m+|u+h+|e+r+m*|a+h+|o+h+|o+o+h+|wow+|whoa|yay+|oops|ugh+|meh|mhm+|uh huh|well|anyway|lo+l+
    |maybe|perhaps|probably|dunno|not sure|we'?ll see
    |lmf?ao+|rofl|xd+|omg|wtf|idk|tbh
    |(?:ba|mua)?(?:ha|he|hi|ho|ja|je|ji|hue|hah|heh){2,}[hj]?|how are you(?: doing)?|what'?s up|wass?up|sup
    |how'?s it going|you there|are you there
    |never ?mind|nvm
es: vale|sí|si|claro|de acuerdo|bueno|bien|genial|perfecto|gracias|muchas gracias|mil gracias|de nada|por favor
    |perdón|lo siento|hola|buenas
    |buen(?:os)? d[ií]as?|buenas tardes|buenas noches|adi[oó]s|chao|hasta (?:luego|mañana|pronto)|(?:qué|que) tal
    |c[oó]mo est[aá]s
ca: d'acord|gr[aà]cies|moltes gr[aà]cies|bon dia|bona tarda|bona nit|ad[eé]u
pt: sim|não|nao|claro|certo|t[aá] bom|t[aá]|beleza|blz|obrigad[oa]|muito obrigad[oa]|valeu|vlw|de nada|ol[aá]|oi+
    |bom dia|boa tarde|boa noite
    |tchau|at[eé] (?:logo|amanh[aã])|tudo bem|k{3,}|rs(?:rs)+
fr: oui|ouais|non|d'accord|daccord|dac|bien sûr|bien|super|g[eé]nial|parfait|merci|merci beaucoup|mci|de rien
    |s'il (?:te|vous) pla[iî]t|stp|svp
    |d[eé]sol[eé]e?|pardon|bonjour|bjr|bonsoir|salut|coucou|bonne nuit|bonne journ[eé]e|au revoir|[aà] bient[oô]t
    |[aà] demain|[cç]a va|mdr+|ptdr|euh+
it: s[iì]|no|va bene|certo|bene|perfetto|ottimo|grazie|grazie mille|prego|per favore|scusa|ciao+|salve|buongiorno
    |buon giorno|buonasera|buona sera
    |buonanotte|buona notte|arrivederci|a (?:dopo|domani|presto)|come (?:stai|va)
de: ja+|nein|n[eö]+|genau|klar|alles klar|gut|super|prima|passt|danke|danke sch[oö]n|dankeschön|vielen dank
    |danke dir|bitte|bitte sch[oö]n|gern(?:e| geschehen)?
    |entschuldigung|sorry|hallo|hi|moin|servus|gr[uü][sß]+ gott|guten (?:morgen|tag|abend)|gute nacht|morgen
    |tsch[uü]s+|bis (?:dann|morgen|bald|sp[aä]ter)
    |wie geht'?s(?: dir)?|hm+|[aä]h+m*|ach so|achso
nl: ja|nee|oké|oke|goed|prima|dank je(?: wel)?|dank u(?: wel)?|dankjewel|bedankt|graag gedaan|alsjeblieft|hallo
    |hoi|hey|goede(?:morgen|middag|avond|nacht)
    |goede (?:morgen|middag|avond|nacht)|welterusten|doei+|tot (?:ziens|morgen|straks)|hoe gaat het
sv: ja|nej|okej|tack|tack så mycket|tackar|varsågod|hej|hejsan|god ?(?:morgon|kväll|natt)|hej då|vi ses
da: ja|nej|okay|godt|tak|mange tak|tusind tak|selv tak|hej|god ?(?:morgen|aften|nat)|farvel|vi ses
no: takk|tusen takk|mange takk|bare hyggelig|hei|god ?(?:morgen|kveld|natt)|ha det
fi: joo|kyllä|ei|hyvä|selvä|kiitos|kiitti|paljon kiitoksia|ole hyvä|hei|moi|moikka|terve|huomenta
    |hyvää (?:huomenta|päivää|iltaa|yötä)|näkemiin|hei hei
is: takk fyrir|góðan daginn|góða nótt
pl: tak|nie|dobrze|dobra|jasne|super|dzi[eę]kuj[eę]|dzi[eę]ki|dziękuję bardzo|prosz[eę]|przepraszam|cze[sś][cć]
    |hej|witaj|dzie[nń] dobry|dobry wieczór|dobranoc
    |do widzenia|na razie|co słychać
cs: ano|ne|dobře|jasně|díky|děkuji|děkuju|prosím|ahoj|čau|dobrý den|dobré ráno|dobrý večer|dobrou noc|na shledanou
sk: áno|nie|dobre|ďakujem|vďaka|prosím|ahoj|dobrý deň|dobré ráno|dobrú noc|dovidenia
hu: igen|nem|jó|rendben|köszönöm|köszi|kösz|szívesen|szia|sziasztok|helló|jó (?:reggelt|napot|estét|éjszakát|éjt)
    |viszlát
ro: da|nu|bine|sigur|mulțumesc|multumesc|mersi|cu plăcere|salut|bună|bună (?:dimineața|ziua|seara)|noapte bună
    |la revedere
hr, sr, bs: da|ne|dobro|u redu|hvala|hvala lijepo|molim|zdravo|ćao|dobro jutro|dobar dan|dobra večer|laku noć
    |doviđenja|хвала|здраво|добро јутро|добар дан|лаку ноћ
sl: hvala lepa|živjo|dobro jutro|dober dan|lahko noč
tr: evet|hayır|tamam|tamamdır|olur|peki|güzel|süper|teşekkürler|teşekkür ederim|sağ ?ol|eyvallah|rica ederim
    |lütfen|merhaba|selam|günaydın|iyi (?:günler|akşamlar|geceler)
    |hoşça ?kal|görüşürüz|nasılsın
az: bəli|sağ ol|təşəkkürlər|salam|sabahınız xeyir
id, ms: ya|iya|tidak|nggak|oke|baik|baiklah|siap|terima ?kasih|terima kasih banyak|makasih|mksh|sama[ -]sama
    |tolong|maaf|halo|hai|apa kabar|selamat (?:pagi|siang|sore|malam|petang|tidur|tinggal|jalan)
    |sampai jumpa|dadah|wk(?:wk)+
tl: oo|opo|hindi|sige|salamat|maraming salamat|walang anuman|kumusta(?: ka)?|magandang (?:umaga|hapon|gabi|araw)
    |paalam
vi: vâng|dạ|ừ+|ừm+|không|được|được rồi|tốt|cảm ơn|cám ơn|cảm ơn (?:bạn|nhiều|em|anh|chị)|cảm ơn nhiều|không có gì
    |xin lỗi|xin chào|chào(?: bạn| em| anh| chị)?
    |chào buổi (?:sáng|chiều|tối)|chúc ngủ ngon|tạm biệt
sw: ndiyo|ndio|hapana|sawa|asante|asante sana|karibu|tafadhali|habari|jambo|mambo|habari za asubuhi|usiku mwema
    |kwaheri
ru, uk, be, bg: да+|нет|не|ок|окей|ладно|хорошо|понятно|ясно|конечно|отлично|класс|супер|спасибо|спс
    |большое спасибо|спасибо большое|благодарю|пожалуйста|не за что|извини(?:те)?
    |привет(?:ик)?|здравствуй(?:те)?|хай|доброе утро|добрый (?:день|вечер)|доброй ночи|спокойной ночи|пока
    |до свидания|до завтра|как дела|хм+|ага|угу|а+х+а*|(?:ха|хе){2,}х?|ой|э+
    |так|ні|добре|дякую|дуже дякую|будь ласка|привіт|доброго ранку|добрий (?:ранок|день|вечір)|на добраніч|бувай
    |до побачення
    |дзякуй|вітаю|благодаря|мерси|здравей|здрасти|добро утро|добър ден|лека нощ|чао|добре
el: ναι|όχι|οκ|εντάξει|καλά|ωραία|τέλεια|ευχαριστώ|ευχαριστώ πολύ|παρακαλώ|συγγνώμη|γεια|γεια σου|γεια σας
    |καλημέρα|καλησπέρα|καληνύχτα|αντίο|τι κάνεις|(?:χα){2,}
he: כן|לא|אוקיי|אוקי|בסדר|סבבה|טוב|תודה|תודה רבה|בבקשה|סליחה|שלום|היי|הי|בוקר טוב|ערב טוב|לילה טוב|צהריים טובים
    |להתראות|ביי|מה נשמע|מה שלומך|(?:חח)+ח*
ar: نعم|أجل|اي+|ايوه?|أيوه?|لا|حسنا|حسنًا|طيب|تمام|ماشي|أوك(?:ي)?|اوك(?:ي)?|شكرا|شكرًا|شكراً|شكرا جزيلا|شكرا لك
    |مشكور|عفوا|عفوًا|من فضلك|آسف|مرحبا|مرحبًا|أهلا|اهلا|أهلا وسهلا|السلام عليكم|وعليكم السلام
    |صباح (?:الخير|النور)|مساء (?:الخير|النور)|تصبح على خير|مع السلامة|إلى اللقاء|كيف حالك|كيفك|ه{3,}
fa: بله|آره|نه|باشه|خوبه?|خب|اوکی|مرسی|ممنون|ممنونم|خیلی ممنون|متشکرم|سپاس|خواهش می[‌ ]?کنم|لطفا|ببخشید|سلام|درود
    |صبح بخیر|ظهر بخیر|عصر بخیر|شب بخیر|روز بخیر|خداحافظ|خدافظ|چطوری|خوبی
ur: جی|جی ہاں|ہاں|نہیں|ٹھیک ہے|اچھا|شکریہ|بہت شکریہ|مہربانی|السلام علیکم|وعلیکم السلام|صبح بخیر|شب بخیر|خدا حافظ
    |اللہ حافظ|کیا حال ہے
hi, mr, ne: हाँ|हां|जी|जी हाँ|नहीं|ठीक|ठीक है|अच्छा|ओके|धन्यवाद|शुक्रिया|बहुत (?:धन्यवाद|शुक्रिया)|कृपया
    |माफ़? ?करना|नमस्ते|नमस्कार|हैलो|हेलो|सुप्रभात|शुभ (?:प्रभात|रात्रि|संध्या)|अलविदा|कैसे हो|(?:हा){2,}|हम्म+
    |हो|होय|नाही|आभारी आहे
bn: হ্যাঁ|হুম+|না|ঠিক আছে|আচ্ছা|ধন্যবাদ|অনেক ধন্যবাদ|নমস্কার|হ্যালো|আসসালামু আলাইকুম|সুপ্রভাত
    |শুভ (?:সকাল|রাত্রি|সন্ধ্যা)|বিদায়|কেমন আছো
pa: ਹਾਂ|ਧੰਨਵਾਦ|ਸਤ ਸ੍ਰੀ ਅਕਾਲ|ਸ਼ੁਭ ਸਵੇਰ
gu: હા|આભાર|નમસ્તે|સુપ્રભાત
ta: ஆம்|ஆமா|இல்லை|சரி|நன்றி|மிக்க நன்றி|வணக்கம்|ஹலோ|காலை வணக்கம்|இனிய காலை வணக்கம்|இரவு வணக்கம்
te: అవును|సరే|ధన్యవాదాలు|నమస్కారం|నమస్తే|శుభోదయం|శుభరాత్రి
kn: ಹೌದು|ಸರಿ|ಧನ್ಯವಾದ(?:ಗಳು)?|ನಮಸ್ಕಾರ|ಶುಭೋದಯ
ml: അതെ|ശരി|നന്ദി|നമസ്കാരം|സുപ്രഭാതം
si: ඔව්|හරි|ස්තූතියි|ආයුබෝවන්|සුභ උදෑසනක්
ka: კი|არა|კარგი|მადლობა|გმადლობთ|გამარჯობა|დილა მშვიდობისა
hy: այո|ոչ|լավ|շնորհակալություն|մերսի|բարև|բարի լույս|բարի գիշեր
am: አዎ|እሺ|አመሰግናለሁ|ሰላም|እንደምን አደርክ
ko: 네+|넵+|넹|예|응+|웅+|어+|그래+|좋아요?|오케이|알겠(?:어|어요|습니다)|알았어요?|아니요?|고마워요?
    |고맙습니다|감사(?:합니다|해요|해)?|정말 고마워요?|괜찮아요?|천만에요
    |미안해?요?|죄송(?:합니다|해요)
    |안녕(?:하세요|하십니까)?|여보세요|좋은 (?:아침|하루|밤)(?:이에요|입니다)?|잘 ?자요?
    |안녕히 (?:가세요|계세요|주무세요)|잘 ?가|[\u1172\u116e\u110f\u1112\u110b]+|하{2,}|헐|음+|와+|오+
"""

#: The same of scripts without spaces between words.
UNSPACED: Final = """
zh: 好+的?|好[呀啊吧嘞哒滴呢哦]|好[滴噠喔]|行+|行吧|可以|没问题|沒問題|嗯+|嗯[呢哪啊]|恩+|哦+|噢+|喔+|啊+|呃+
    |额+|唔+|哎+|唉+|嗨|嘿+|哈+|呵+|嘻+|嘿嘿+|哇+
    |对+[的呀啊]?|對+[的呀啊]?|是+的?|是[呀啊]|没错|沒錯|不是|不用了?|不了|不|没事|沒事
    |收到|知道了|明白了?|了解了?|懂了|谢+|谢谢你?[们]?[啊呀啦哦]?|謝+|謝謝[你妳您]?|多谢|多謝|感谢|感謝|感恩
    |唔該晒?|多謝晒|辛苦了|不客气|不客氣|不用谢|不用謝|唔使客氣|麻烦了
    |麻煩了|抱歉|对不起|對不起|不好意思|唔好意思
    |你好[呀啊吗嗎]?|您好|妳好|大家好|哈[喽囉罗]|哈嘍|嗨|在[吗嗎么嘛]|在不在|喂|早+[安呀啊晨]?|早上好|上午好
    |中午好|午安|下午好|晚上好|晚安|安安|早点睡|好梦|拜+|拜拜|掰掰|再见|再見
    |回头见|回見|明天见|明天見
    |真的[吗嗎]?|原来如此|原來如此|这样啊?|這樣啊?|厉害|厲害|不错|不錯|太好了|太棒了|棒|赞|讚|牛+|加油
    |得|得啦|係+|係呀|冇問題|冇事|得閒
ja: はい|うん+|ううん|いいえ|いや|ええ|おけ|オッケー?|おっけー?|了解(?:です|しました)?|りょ(?:うかい)?
    |承知(?:しました)?|わかった|分かった|わかりました|分かりました|なるほど
    |そう(?:です)?(?:か|ね|だね)?|そっか|いいね|すごい|へえ+|ふーん
    |ありがとう(?:ございます|ございました|ね)?|有難うございます|あざ[すっ]+|サンキュー?|どうも|どういたしまして
    |お願いします|よろしく(?:お願いします)?|すみません|ごめん(?:なさい|ね)?
    |こんにちは|こんばんは|おはよう?(?:ございます)?|おやすみ(?:なさい)?|やあ|もしもし
    |さようなら|じゃあ?(?:ね|また)?|またね|また明日|バイバイ|お疲れ(?:様|さま)?(?:です|でした)?|元気(?:ですか)?
    |笑+|草+|あは+|はは+|えへへ+|うーん+|えっと|えー+
    |あー+|おー+
th: ครับ|ค่ะ|คะ|จ้า+|จ้ะ|ใช่|ไม่|ไม่ใช่|ได้|โอเค|ตกลง|ดี|ดีมาก|เยี่ยม|อืม+|อ๋อ+|เออ+|ขอบคุณ|ขอบคุณมาก|ขอบใจ
    |ไม่เป็นไร|ขอโทษ|สวัสดี|หวัดดี|ฮัลโหล|อรุณสวัสดิ์|ราตรีสวัสดิ์|ฝันดี|ลาก่อน|บาย|สวัสดีตอนเช้า|สบายดีไหม
    |นะ|มาก
lo: ເຈົ້າ|ບໍ່|ຕົກລົງ|ໂອເຄ|ຂອບໃຈ|ຂອບໃຈຫຼາຍໆ|ຂໍໂທດ|ສະບາຍດີ|ສະບາຍດີຕອນເຊົ້າ|ລາກ່ອນ
km: បាទ|ចាស|ទេ|អូខេ|យល់ព្រម|អរគុណ|អរគុណច្រើន|សូមទោស|សួស្តី|ជំរាបសួរ|អរុណសួស្តី|រាត្រីសួស្តី|លាហើយ
my: ဟုတ်ကဲ့|ဟုတ်|ဟင့်အင်း|အိုကေ|ကောင်းပြီ|ကျေးဇူး(?:တင်ပါတယ်|ပါပဲ|ပါ)?|တောင်းပန်ပါတယ်|မင်္ဂလာပါ
    |မင်္ဂလာ(?:နံနက်ခင်း|မနက်ခင်း)ပါ|ဟယ်လို|နေကောင်းလား
"""
