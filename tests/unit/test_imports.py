"""Imports: each form of export becomes records with their own times, conversations and ids."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from keepsake_client.records import KINDS

from services.imports import plain, reading
from services.imports.files import ExportFile, open_export
from services.imports.people import AmbiguousPeople
from services.imports.records import Bad, Options, Parsed, Skipped, UnreadableFile

DATA = Path(__file__).parents[1] / "data" / "imports"
FORMS = {
    "character-ai-histories.json": "character-ai",
    "character-ai-turns.json": "character-ai",
    "chatgpt.json": "chatgpt",
    "discord.json": "discord",
    "keepsake.jsonl": "keepsake",
    "plain.csv": "csv",
    "plain.jsonl": "jsonl",
    "sillytavern.jsonl": "sillytavern",
    "telegram-chat.json": "telegram",
    "telegram-full.json": "telegram",
    "whatsapp-android-de.txt": "whatsapp",
    "whatsapp-android-zh.txt": "whatsapp",
    "whatsapp-ios-en.txt": "whatsapp",
}


def options(user: str = "u1", zone: tzinfo = UTC, **given: Any) -> Options:
    return Options(user, zone, **given)


def items_of(path: Path, how: Options, form: str | None = None) -> list[Parsed | Skipped | Bad]:
    """What a file holds, read as the command reads it."""
    items: list[Parsed | Skipped | Bad] = []
    files = open_export(path)
    forms = [form or reading.recognised_form(file, how) for file in files]
    counted = Counter(
        person
        for file, one in zip(files, forms, strict=True)
        for person in reading.people(file, one, how)
        if person is not None
    )
    roles = reading.roles_for(counted, how)
    for file, one in zip(files, forms, strict=True):
        items += reading.records(file, one, how, roles, time.time())
    return items


def read(name: str, how: Options | None = None) -> list[dict[str, Any]]:
    """The records of a file of tests/data/imports."""
    return records(items_of(DATA / name, how or options()))


def records(items: Iterable[object]) -> list[dict[str, Any]]:
    return [item.record for item in items if isinstance(item, Parsed)]


def skipped(items: Iterable[object]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for item in items:
        if isinstance(item, Skipped):
            counts[item.reason] += item.count
    return counts


def bad(items: Iterable[object]) -> list[str]:
    return [f"{item.place}: {item.problem}" for item in items if isinstance(item, Bad)]


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(("name", "form"), FORMS.items())
def test_a_form_is_recognised_by_its_content(name: str, form: str, tmp_path: Path) -> None:
    """Given a file under a name that says nothing, I expect its form all the same."""
    path = written(tmp_path / "download", (DATA / name).read_bytes())

    assert reading.recognised_form(ExportFile(path), options()) == form


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_export_is_recognised_by_whatever_record_is_first(kind: str, tmp_path: Path) -> None:
    """Given a part of Keepsake's own export that begins with any kind of record, I expect its form."""
    path = written(tmp_path / "part", json.dumps({"kind": kind}) + "\n")

    assert reading.recognised_form(ExportFile(path), options()) == "keepsake"


def test_every_file_of_the_tests_data_is_read_here() -> None:
    assert {path.name for path in DATA.iterdir()} == set(FORMS)


@pytest.mark.parametrize("name", [name for name in FORMS if name != "plain.csv"])
def test_reading_twice_gives_the_same_records(name: str) -> None:
    """Given the same file twice, I expect equal records, whose ids are all different."""
    how = options(room=True)
    first = read(name, how)

    assert first
    assert read(name, how) == first
    ids = [record["message_id"] for record in first if record["kind"] == "memory" and "message_id" in record]
    assert len(set(ids)) == len(ids)


def test_chatgpt() -> None:
    """Given a tree with a regenerated answer, I expect the current branch alone, and what was shown of it."""
    items = items_of(DATA / "chatgpt.json", options())
    wedding, greeting = "chatgpt:6640aaaa-1111-4222-8333-444455556666", "chatgpt:6553bbbb-1111-4222-8333-444455556666"

    assert [
        (one["source"], one["content"], one["timestamp"], one["session_id"], one["message_id"])
        for one in records(items)
    ] == [
        (
            "user",
            "My sister Anna gets married in Porto on 14 June. Can you help me with a speech?",
            1715500800.123,
            wedding,
            "chatgpt:u1",
        ),
        ("ai", "Of course! Tell me how you two grew up.", 1715500820.5, wedding, "chatgpt:a1"),
        ("user", "This is us at the sea in Nazaré, 1998.", 1715500900.75, wedding, "chatgpt:u2"),
        # It has no time of its own, and a citation that is left out.
        ("ai", "A lovely picture. Nazaré has waves of 30 metres.", 1715500900.75, wedding, "chatgpt:a2"),
        ("user", "你好，我叫小明，住在杭州。", 1700000000, greeting, "chatgpt:x1"),
        ("ai", "你好小明！", 1700000004.5, greeting, "chatgpt:x2"),  # a transcription; there is no current_node
    ]
    assert records(items)[0]["meta"] == {"imported_from": "chatgpt", "title": "Wedding speech"}
    assert skipped(items) == {"system and tool messages": 4, "of branches that were regenerated or edited": 1}


def test_a_tree_that_is_a_ring_ends(tmp_path: Path) -> None:
    message = {"id": "m", "author": {"role": "user"}, "create_time": 1e9, "content": {"parts": ["hello"]}}
    ring = {
        "a": {"id": "a", "parent": "b", "children": ["b"], "message": message},
        "b": {"id": "b", "parent": "a", "children": ["a"], "message": None},
    }
    path = written(tmp_path / "c.json", json.dumps([{"id": "c1", "mapping": ring, "current_node": "b"}]))

    assert [one["content"] for one in records(items_of(path, options()))] == ["hello"]


def test_one_conversation_of_chatgpt_alone(tmp_path: Path) -> None:
    conversation = json.loads((DATA / "chatgpt.json").read_text())[0]
    path = written(tmp_path / "c.json", json.dumps(conversation))

    assert len(records(items_of(path, options()))) == 4


def test_character_ai_histories() -> None:
    items = items_of(DATA / "character-ai-histories.json", options())

    assert [(one["source"], one["content"], one["timestamp"], one["session_id"]) for one in records(items)] == [
        ("ai", "Welcome to my laboratory.", at("2022-12-03 18:00:00.1"), "character-ai:h-0001"),
        (
            "user",
            "I built a radio with my grandfather when I was nine.",
            at("2022-12-03 18:02:11"),
            "character-ai:h-0001",
        ),
        ("ai", "Crystal or valve?", at("2022-12-03 18:02:21"), "character-ai:h-0001"),
        ("user", "I am back. I moved to Graz.", at("2023-01-05 09:00"), "character-ai:h-0002"),  # by its history
    ]
    assert [one.get("speaker") for one in records(items)] == [{"name": "Dr. Volta"}, None, {"name": "Dr. Volta"}, None]
    assert {one["meta"]["title"] for one in records(items)} == {"Dr. Volta"}
    assert skipped(items) == {"alternative replies that were not chosen": 1, "without text": 1}


def test_character_ai_turns() -> None:
    items = items_of(DATA / "character-ai-turns.json", options(agent="volta"))

    assert [(one["source"], one["content"], one["message_id"]) for one in records(items)] == [
        ("ai", "A brass one, I hope?", "character-ai:t3"),  # the candidate that was chosen
        ("user", "I bought a telescope yesterday.", "character-ai:t2"),
        ("ai", "Good evening.", "character-ai:t1"),
    ]
    assert {(one["session_id"], one["agent_id"]) for one in records(items)} == {("character-ai:chat-77", "volta")}
    assert skipped(items) == {"alternative replies that were not chosen": 1}


def test_sillytavern() -> None:
    """Given send_date in four forms, a hidden message and messages of the program, I expect what was said."""
    items = items_of(DATA / "sillytavern.jsonl", options(zone=ZoneInfo("Europe/Lisbon")))

    assert [(one["source"], one["content"], one["timestamp"]) for one in records(items)] == [
        ("ai", "*You wake in a glade.* Hello, traveller.", at("2024-03-09 20:15:30.12")),
        ("user", "I am allergic to walnuts, so no cake for me.", at("2024-03-09 20:16", "Europe/Lisbon")),
        ("ai", "Then honey it is.", 1710015420),
        ("user", "Remember the blue door.", at("2024-03-09 20:19:02.005", "Europe/Lisbon")),
    ]
    assert {one["session_id"] for one in records(items)} == {"sillytavern:1f3c0c5e-8f4e-4a52-9d0e-9a4d2a1c7b11"}
    assert [one.get("speaker") for one in records(items)] == [{"name": "Seraphina"}, None, {"name": "Seraphina"}, None]
    assert skipped(items) == {"swipes that were not chosen": 3, "system messages": 2}
    assert bad(items) == ["line 6: not JSON: Unterminated string starting at (column 37)"]


def test_a_chat_of_sillytavern_is_known_by_character_and_date_without_an_id(tmp_path: Path) -> None:
    """Given the same chat under two names, I expect the same ids."""
    header = {"user_name": "Mira", "character_name": "Sera", "create_date": "2023-6-17 @17h 51m 49s 340ms"}
    message = {"name": "Sera", "is_user": False, "mes": {"message": "Hi."}, "send_date": "June 17, 2023 5:51pm"}
    text = f"{json.dumps(header)}\n{json.dumps(message)}\n"
    first, second = (records(items_of(written(tmp_path / name, text), options())) for name in ("a.jsonl", "b.jsonl"))

    assert first == second
    assert first[0]["session_id"] == "sillytavern:Sera 2023-6-17 @17h 51m 49s 340ms"


def test_discord() -> None:
    items = items_of(DATA / "discord.json", options(me="lena.codes"))

    assert [(one["source"], one["content"], one.get("speaker")) for one in records(items)] == [
        ("user", "My birthday is on the 3rd of May.", None),
        ("user", "Mine is in October.", {"id": "2002", "name": "Tom"}),
        ("ai", "Noted: Lena, 3 May.", {"id": "2003", "name": "Butler"}),
    ]
    first = records(items)[0]
    assert first["timestamp"] == at("2025-01-10 18:01:02.345")
    assert (first["session_id"], first["message_id"]) == ("discord:1100", "discord:3002")
    assert first["meta"]["title"] == "Board games #general"
    assert skipped(items) == {"system messages": 2, "without text": 1}


def test_a_room_has_no_user_of_its_own() -> None:
    speakers = [one["speaker"]["name"] for one in read("discord.json", options(room=True))]

    assert speakers == ["Lena", "Tom", "Butler"]


@pytest.mark.parametrize("me", ["Lena", "@LENA.codes ", "2001", None])
def test_the_user_is_found_by_name_nickname_or_id(me: str | None) -> None:
    """Given no `--me`, I expect the person who is called like the user id."""
    how = options(user="u1" if me else "lena", me=me)

    assert [one.get("speaker") is None for one in read("discord.json", how)] == [True, False, False]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "several people speak here: Lena, Tom; say which is the user with --me NAME"),
        ({"me": "Bob"}, "--me Bob: no one of that name speaks here; those who do are Lena, Tom"),
        (
            {"me": "Lena", "ai": ("Hal",)},
            "--ai hal: no one of that name speaks here; those who do are Lena, Tom",
        ),
    ],
)
def test_it_is_said_who_could_be_meant(given: dict[str, Any], said: str) -> None:
    with pytest.raises(AmbiguousPeople, match="^" + said.replace(".", r"\.")):
        read("discord.json", options(**given))


def test_two_people_of_one_name_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    export = json.loads((DATA / "discord.json").read_text())
    export["messages"][2]["author"]["nickname"] = "Lena"
    path = written(tmp_path / "d.json", json.dumps(export))

    with pytest.raises(AmbiguousPeople, match=r"several people have that name; their ids are 2001, 2002$"):
        items_of(path, options(me="Lena"))
    assert records(items_of(path, options(me="2002")))[0]["speaker"] == {"id": "2001", "name": "Lena"}


def test_telegram_chat() -> None:
    """Given a chat of two, I expect the one who is not its namesake to be the user, and a text of parts in one."""
    items = items_of(DATA / "telegram-chat.json", options())

    assert [(one["content"], one["timestamp"], one.get("speaker")) for one in records(items)] == [
        ("Are you coming on Friday?", 1690873200, {"id": "user555001", "name": "Rafael"}),
        ("Yes, I take the 18:40 train, see https://cp.example.", 1690873290, None),
    ]
    assert records(items)[0]["message_id"] == "telegram:555001:2"
    assert skipped(items) == {"system messages": 1, "without text": 2}


def test_telegram_account() -> None:
    """Given all chats, I expect each with its own messages, the owner as user and a bot as AI."""
    found = read("telegram-full.json")

    assert [(one["session_id"], one["source"], (one.get("speaker") or {}).get("name")) for one in found] == [
        ("telegram:555001", "user", "Rafael"),
        ("telegram:555001", "user", None),
        ("telegram:555002", "user", None),
        ("telegram:777", "ai", "Helper"),
        ("telegram:888", "user", "Paulo"),
        ("telegram:889", "user", None),
    ]
    assert [one["meta"].get("title") for one in found] == ["Rafael", "Rafael", None, "Helper", "Choir", "Old choir"]


@pytest.mark.parametrize("chat", ["choir", "888", "telegram:888"])
def test_one_conversation_of_many(chat: str) -> None:
    items = items_of(DATA / "telegram-full.json", options(chats=(chat,)))

    assert [one["content"] for one in records(items)] == ["Rehearsal at eight."]
    assert skipped(items) == {"of other conversations": 5}


def test_whatsapp_of_android() -> None:
    """Given messages of several lines, media with a caption and equal messages of one minute, I expect each once."""
    items = items_of(DATA / "whatsapp-android-de.txt", options(me="Jana", zone=ZoneInfo("Europe/Berlin")))

    assert [(one["content"], one["timestamp"], one.get("speaker")) for one in records(items)] == [
        (
            "Ich habe ab September eine neue Stelle in Bremen.\nIch freue mich so!\n\nUnd du?",
            at("2023-05-13 18:02", "Europe/Berlin"),
            None,
        ),
        ("Glückwunsch: das wird gut", at("2023-05-13 18:04", "Europe/Berlin"), {"name": "Onkel Karl"}),
        ("ok", at("2023-05-14 07:16", "Europe/Berlin"), None),
        ("ok", at("2023-05-14 07:16", "Europe/Berlin"), None),
        ("Mein neuer Schreibtisch", at("2023-05-14 07:20", "Europe/Berlin"), {"name": "+49 170 1234567"}),
    ]
    assert skipped(items) == {"system messages": 1, "media and system messages": 2}


def test_whatsapp_of_ios() -> None:
    """Given brackets, marks of direction and a narrow space before PM, I expect texts without them."""
    items = items_of(DATA / "whatsapp-ios-en.txt", options(me="Priya", ai=("Meta AI",)))

    assert [(one["source"], one["content"], one["timestamp"]) for one in records(items)] == [
        ("user", "I finished Middlemarch, all 900 pages.", at("2020-12-31 21:45:30")),
        ("user", "Happy new year!\nIt is snowing here.", at("2021-01-01 00:05:09")),
        ("user", "The cover", at("2021-01-01 00:06")),
        ("ai", "Middlemarch was published in 1871.", at("2021-01-01 12:07")),
    ]
    assert skipped(items) == {"media and system messages": 2}


@pytest.mark.parametrize(
    ("line", "said_at"),
    [
        ("31/12/2020, 21:45 - A: x", "2020-12-31 21:45"),
        ("12/31/20, 9:45 PM - A: x", "2020-12-31 21:45"),
        ("12/31/20, 12:05\u202fAM - A: x", "2020-12-31 00:05"),
        ("31/12/20 9:45 p. m. - A: x", "2020-12-31 21:45"),
        ("31/12/2020, 9:45 p.\u00a0m. - A: x", "2020-12-31 21:45"),
        ("31.12.20, 21:45 - A: x", "2020-12-31 21:45"),
        ("1.2.20, 21:45 - A: x", "2020-02-01 21:45"),
        ("31-12-2020 21:45 - A: x", "2020-12-31 21:45"),
        ("2020-12-31, 21:45 - A: x", "2020-12-31 21:45"),
        ("2020/12/31 下午9:45 - A: x", "2020-12-31 21:45"),
        ("2020/12/31 21:45 - A: x", "2020-12-31 21:45"),
        ("[2020/12/31 晚上9:45:12] A: x", "2020-12-31 21:45:12"),
        ("2020년 12월 31일 오후 9:45 - A: x", "2020-12-31 21:45"),
        ("[2020. 12. 31. 오후 9:45:12] A: x", "2020-12-31 21:45:12"),
        ("31.12.2020 klo 21.45 - A: x", "2020-12-31 21:45"),
        ("[12.3.2022 klo 14.08.18] A: x", "2022-03-12 14:08:18"),
        ("31/12/20 21.45 - A: x", "2020-12-31 21:45"),
        ("31/12/2020 às 21:45 - A: x", "2020-12-31 21:45"),
        ("[31.12.20, 21:45:12] A: x", "2020-12-31 21:45:12"),
        ("\u200e[31/12/2020, 21:45:12] A: x", "2020-12-31 21:45:12"),
        ("\u200f٣١/١٢/٢٠٢٠، ٩:٤٥ م - A: x", "2020-12-31 21:45"),
    ],
)
def test_whatsapp_has_the_times_of_many_locales(line: str, said_at: str, tmp_path: Path) -> None:
    path = written(tmp_path / "chat.txt", f"{line}\n")

    assert [(one["content"], one["timestamp"]) for one in records(items_of(path, options()))] == [("x", at(said_at))]


@pytest.mark.parametrize(
    "dates",
    [
        ("3/4/2023, 10:00", "13/4/2023, 10:00"),  # a number above 12
        ("3/4/2023, 10:00", "10/4/2023, 10:00", "1/5/2023, 10:00"),  # in order this way alone
    ],
)
def test_the_day_comes_first_where_the_month_cannot(dates: tuple[str, ...], tmp_path: Path) -> None:
    path = written(tmp_path / "chat.txt", "".join(f"{date} - A: x\n" for date in dates))

    assert records(items_of(path, options()))[0]["timestamp"] == at("2023-04-03 10:00")


def test_dates_that_can_be_read_in_two_ways_must_be_said(tmp_path: Path) -> None:
    path = written(tmp_path / "chat.txt", "3/4/2023, 10:00 - A: x\n")

    with pytest.raises(UnreadableFile, match="say --dates dmy or --dates mdy"):
        items_of(path, options())
    assert records(items_of(path, options(dates="mdy")))[0]["timestamp"] == at("2023-03-04 10:00")
    assert records(items_of(path, options(dates="dmy")))[0]["timestamp"] == at("2023-04-03 10:00")


@pytest.mark.parametrize(
    "text",
    [
        "<Media omitted>",
        "<Arquivo de mídia oculto>",
        "<省略多媒体文件>",
        "image omitted",
        "\u200eBild weggelassen",
        "\u200e<attached: 00000074-PHOTO-2022-03-13.jpg>",
        "IMG-20230514-WA0001.jpg (file attached)",
        "<Medien ausgeschlossen>\n4Bit Addierer.mod",
        "You deleted this message",
        "Вы удалили данное сообщение.",
        "null",
    ],
)
def test_what_whatsapp_writes_itself_is_no_message(text: str, tmp_path: Path) -> None:
    path = written(tmp_path / "chat.txt", f"31/12/2020, 21:45 - A: {text}\n31/12/2020, 21:46 - A: real\n")

    assert [one["content"] for one in records(items_of(path, options()))] == ["real"]


def test_another_time_zone_does_not_double_a_chat() -> None:
    """Given a chat that is read with two zones, I expect other times under the same ids."""
    here, there = (
        read("whatsapp-android-zh.txt", options(zone=ZoneInfo(zone), room=True)) for zone in ("UTC", "Asia/Taipei")
    )

    assert [one["message_id"] for one in here] == [one["message_id"] for one in there]
    assert [one["timestamp"] - other["timestamp"] for one, other in zip(here, there, strict=True)] == [8 * 3600] * 2


def test_a_second_download_of_a_chat_is_the_same_conversation(tmp_path: Path) -> None:
    text = "31/12/2020, 21:45 - A: x\n"
    names = ("WhatsApp Chat with B.txt", "WhatsApp Chat with B (1).txt")
    first, second = (records(items_of(written(tmp_path / name, text), options())) for name in names)

    assert first == second


def test_csv_with_a_mapping() -> None:
    """Given semicolons, a field of two lines and a row without a time, I expect the mapped columns."""
    mapping = plain.parse_mapping("content=said, timestamp=date,source=who")
    items = items_of(DATA / "plain.csv", options(mapping=mapping, zone=ZoneInfo("Asia/Tokyo")))

    assert [(one["source"], one["content"], one["timestamp"]) for one in records(items)] == [
        ("user", "I play the cello; since I was six.", at("2021-03-04 10:00", "Asia/Tokyo")),
        ("ai", "A fine instrument.\nWho taught you?", at("2021-03-04 10:01", "Asia/Tokyo")),
        ("user", "My aunt did.", at("2021-03-04 10:01", "Asia/Tokyo")),
    ]
    assert skipped(items) == {"system and tool messages": 1}
    assert bad(items) == ["line 7: its time cannot be read: must be a time, such as 1712345678 or 2024-04-05T12:00:00Z"]


def test_csv_without_its_columns_names_those_it_has() -> None:
    with pytest.raises(UnreadableFile, match="has the columns date, who, said, note and not content; say which is"):
        read("plain.csv")
    with pytest.raises(UnreadableFile, match="and not text; say which is which"):
        read("plain.csv", options(mapping={"content": "text"}))


@pytest.mark.parametrize("mapping", ["content", "content=", "text=content", ""])
def test_a_mapping_is_of_fields_and_columns(mapping: str) -> None:
    with pytest.raises(ValueError, match="is not FIELD=COLUMN"):
        plain.parse_mapping(mapping)


def test_json_lines_without_a_mapping() -> None:
    """Given the names that events have, I expect the ids as they are: the same message may come live again."""
    items = items_of(DATA / "plain.jsonl", options())

    assert [(one["source"], one["content"], one["session_id"], one["message_id"]) for one in records(items)] == [
        ("user", "I keep bees.", "s1", "m1"),
        ("ai", "How many hives?", "s1", "m2"),
    ]
    assert skipped(items) == {"system and tool messages": 1}
    assert bad(items) == ["line 3: no content; see --map"]


def test_a_mapping_leads_into_objects_and_names_speakers(tmp_path: Path) -> None:
    rows = [
        {"m": {"body": f"said by {name}"}, "at": 1_600_000_000, "by": {"id": name[0], "name": name}}
        for name in ("Ann", "Bo")
    ]
    mapping = {"content": "m.body", "timestamp": "at", "speaker": "by"}
    for text in (json.dumps(rows), "\n".join(map(json.dumps, rows))):
        found = records(items_of(written(tmp_path / "rows", text), options(mapping=mapping, me="Ann")))

        assert [(one["content"], one.get("speaker")) for one in found] == [
            ("said by Ann", None),
            ("said by Bo", {"id": "B", "name": "Bo"}),
        ]


def test_many_users_of_a_room_are_told_apart_by_name(tmp_path: Path) -> None:
    """Given messages whose role is user and whose names differ, I expect the names as speakers."""
    rows = [{"role": "user", "name": name, "content": "hi", "timestamp": 1_600_000_000} for name in ("Ann", "Bo")]
    found = records(items_of(written(tmp_path / "r.jsonl", "\n".join(map(json.dumps, rows))), options(room=True)))

    assert [one["speaker"] for one in found] == [{"name": "Ann"}, {"name": "Bo"}]


def test_keepsakes_own_export_comes_back_as_it_is() -> None:
    items = items_of(DATA / "keepsake.jsonl", options())
    lines = [json.loads(line) for line in (DATA / "keepsake.jsonl").read_text().splitlines()]

    assert records(items) == lines[:4]
    assert bad(items) == [
        "line 5: a record: kind must be one of memory, fact, profile, profile_change",
        "line 6: timestamp: Field required",
    ]


def test_session_and_agent_are_given_to_all() -> None:
    for name in ("keepsake.jsonl", "chatgpt.json"):
        found = read(name, options(session="s", agent="a"))

        assert {one["agent_id"] for one in found} == {"a"}
        assert {one["session_id"] for one in found if one["kind"] == "memory"} == {"s"}


@pytest.mark.parametrize(
    ("timestamp", "problem"),
    [
        ("1999-12-31T00:00:00Z", "its time is before 2000 or ahead of now"),
        (8_000_000_000, "its time is before 2000 or ahead of now"),
        ("soon", "its time cannot be read"),
        ([1], "its time cannot be read"),
        (10**400, "its time cannot be read"),
        (None, "no time"),
    ],
)
def test_a_time_that_cannot_be_is_told(timestamp: Any, problem: str, tmp_path: Path) -> None:
    """Given a wrong time, I expect that record to be told by its line, and the next to be read."""
    rows = [
        {"content": "x", "timestamp": timestamp, "role": "user"},
        {"content": "y", "timestamp": 1e9, "role": "user"},
    ]
    items = items_of(written(tmp_path / "r.jsonl", "\n".join(map(json.dumps, rows))), options())

    assert [":".join(text.split(":")[:2]) for text in bad(items)] == [f"line 1: {problem}"]
    assert [one["content"] for one in records(items)] == ["y"]


def test_a_text_that_the_stack_refuses_is_told(tmp_path: Path) -> None:
    row = json.dumps({"content": "x" * 11, "timestamp": 1e9, "role": "user"})
    items = items_of(written(tmp_path / "r.jsonl", row), options(max_chars=10))

    assert bad(items) == ["line 1: 11 characters; LTM_MAX_CONTENT_CHARS is 10"]
