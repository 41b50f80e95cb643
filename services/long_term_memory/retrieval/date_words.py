"""The words of time in English, Chinese, Japanese, Korean, Spanish, German, French, Portuguese and Russian, as symbols.

A symbol says the same in every language, so one grammar (`date_grammar`) serves them all: "last week's Friday", 上周五
and "vendredi de la semaine dernière" become `L-1 UW` and `W5` in some order.

* `D-1` a day, from today; `W5` a weekday, Monday is 1; `M5` a month; `T1` a third of a month; `S1` a season, spring is
  1; `F1` a part of a year; `J1` a quarter; `H...` a holiday; `Y2023` a year; `O8` a day of the month; `N3` a number,
  `N0` a few.
* `UD` a unit: day, `UW` week, `UK` weekend, `UM` month, `UY` year, `UH` hour, `UI` minute; `UN` night, `UP` another
  part of a day.
* `L-1` last, `L0` this, `L1` next; `Q` the past, which ends now; `AGO` after and `VOR` before what was so long ago.
* `P` a preposition of time; `SINCE`; `TO` between the ends of a range; `OFF` before a time that is not meant itself
  ("before", "every"), `END` after one.

Texts are compared as `dates` folds them: without case, width and accents of the Latin script, Chinese in simplified
characters. So the traditional forms and the accents are not here.
"""

from __future__ import annotations

from typing import Final


def _words(table: str) -> dict[str, str]:
    """Lines of a symbol, or several with commas, and the words that mean it."""
    found: dict[str, str] = {}
    for line in table.strip().splitlines():
        symbol, *words = line.split()
        found |= dict.fromkeys(words, symbol.replace(",", " "))
    return found


#: The words that name a time together with others, or alone. A query without one of them names none.
ANCHORS: Final = _words(
    """
    D-2 anteayer antier vorgestern anteontem позавчера
    D-1 yesterday ayer anoche gestern hier ontem вчера
    D0 today tonight hoy heute aujourd hoje сегодня
    D1 tomorrow demain amanha завтра
    D2 ubermorgen послезавтра
    W1 monday lunes montag lundi понедельник
    W2 tuesday tues martes dienstag mardi вторник
    W3 wednesday miercoles mittwoch mercredi среду
    W4 thursday thurs jueves donnerstag jeudi четверг
    W5 friday fri viernes freitag vendredi пятницу пятница
    W6 saturday sabado samstag sonnabend samedi субботу суббота
    W7 sunday domingo sonntag dimanche воскресенье
    M1 january jan enero januar janner janvier janeiro январе января январь
    M2 february feb febrero februar fevrier fevereiro феврале февраля февраль
    M3 march mar marzo marz mars marco марте марта март
    M4 april apr abril avril апреле апреля апрель
    M5 may mayo mai maio мае мая май
    M6 june jun junio juni juin junho июне июня июнь
    M7 july jul julio juli juillet julho июле июля июль
    M8 august aug agosto aout августе августа август
    M9 september sept sep septiembre septembre setembro сентябре сентября сентябрь
    M10 october oct octubre oktober octobre outubro октябре октября октябрь
    M11 november nov noviembre novembre novembro ноябре ноября ноябрь
    M12 december dec diciembre dezember decembre dezembro декабре декабря декабрь
    S1 spring primavera fruhling fruhjahr printemps весной весна весну
    S2 summer verano sommer ete verao летом лето
    S3 autumn fall otono herbst automne outono осенью осень
    S4 winter invierno hiver inverno зимой зима зиму
    HCHRISTMAS christmas xmas weihnachten noel navidad natal
    HHALLOWEEN halloween
    HVALENTINE valentine valentines valentinstag
    HNEWYEAR silvester neujahr
    UD day days dia dias tag tage tagen jour jours день дня дней
    UW week weeks semana semanas woche wochen semaine semaines неделя недели недель неделю неделе
    UK weekend wochenende выходные выходных
    UM month months mes meses monat monate monaten mois месяц месяца месяцев месяце
    UY year years ano anos jahr jahre jahren an ans annee annees год года лет году
    UH hour hours hora horas stunde stunden heure heures час часа часов
    UI minute minutes minuto minutos minuten минуту минуты минут
    UN night
    UP morning afternoon evening
    """
)

#: The words that only change what an anchor means.
OTHERS: Final = _words(
    """
    L-1 last previous pasado pasada passado passada letzte letzten letzter letztes letztem vorige voriges vorigen
    L-1 vergangene vergangenen vergangenes dernier derniere passe passee
    L-1 прошлый прошлой прошлую прошлом прошлого прошлым прошлое прошлые
    L0 this current este esta neste nesta diese diesen dieser dieses diesem ce cet cette этой эту этом этим эти
    L1 next coming upcoming proximo proxima nachste nachsten nachster nachstes kommende kommenden kommendes prochain
    L1 prochaine следующий следующей следующую следующем следующие
    Q past ultimo ultima ultimos ultimas derniers dernieres последние последних последнюю последний
    AGO ago atras назад
    VOR vor hace ha
    SINCE,P since seit depuis desde
    P in on at during over for im am um em no na en au pendant durante в во на из
    P early mid late beginning anfang mitte ende debut inicio comeco principios finales начале середине конце
    TO to through thru bis hasta ate
    OFF before after until till every each per avant apres antes despues depois nach jeden jede jedes jeder chaque cada
    OFF todos todas toda todo tous toutes каждый каждую каждое после до перед
    N1 a an one un une una uno um uma ein eine einen einem einer один одну
    N2 two couple dos zwei deux dois duas два две двух
    N3 three tres drei trois три трех
    N4 four cuatro vier quatre quatro четыре четырех
    N5 five cinco funf cinq пять
    N6 six seis sechs шесть
    N7 seven siete sieben sete семь
    N8 eight ocho acht huit oito восемь
    N9 nine nueve neun neuf nove девять
    N10 ten diez zehn dix dez десять
    N0 few several paar einigen quelques unos unas alguns algumas несколько
    """
)
#: These stand between the others and change nothing.
SKIPPED: Final = frozenset(
    "' , . ’ the of s le la les l el los las del o os as do da de des du d der die das の 的 의".split()  # noqa: SIM905
)

#: Words for a day, by how many days away it is. In Chinese, Japanese and Korean only those that are one term, a pair of
#: characters.
RELATIVE_DAYS: Final = {
    days: [word for word, symbol in ANCHORS.items() if symbol == f"D{days}"] + pairs.split()
    for days, pairs in {-2: "前天 그제", -1: "昨天 昨日 昨晚 어제", 1: "明天 明日 明晚 내일", 2: "后天 모레"}.items()
}
