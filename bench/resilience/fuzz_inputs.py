"""Malformed, hostile and huge messages for the fuzz run, from a random generator."""

from __future__ import annotations

import json
import math
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Ids: valid, invalid, and of other types.
IDS: tuple[Any, ...] = (
    *("", " ", "\t\n", "0", "*", "%", "%20", "?", "../../etc/passwd", "a" * 2_600, "b" * 2_601, "c" * 100_000),
    *("\0", "\ud800", "\udfff\ud800", "\u202eresu\u202c", "用户一", "\U0001f469\u200d\U0001f467", "e\u0301", "é"),
    *("\ufeffu1", "u1 ", " u1", "U1", "'; DROP TABLE memories; --", '" OR 1=1 --', "$1", "%(user)s", "{0.__class__}"),
    *("${jndi:ldap://x}", "\r\nFLUSHALL\r\n", "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n", "ltm:rejected", "null"),
    *("memory:conversation:u1", "NaN", "__proto__", "SENTINEL", "sentinel ", " sentinel", "sentinel\0", "%73entinel"),
    *(0, -1, 7, 2**63, 10**400, 1.5, -0.0, True, False, None, [], ["u1"], {}, {"$gt": ""}),
)
TEXTS: tuple[Any, ...] = (
    *("", " ", "\0", "\0hello\0", "\ud800", "\u202egnp.exe", "\0' OR '1'='1", "a" * 32_768, "a" * 32_769, "\x1b[2J"),
    *("'; DELETE FROM memories; --", "SELECT pg_sleep(10)", "%s%s%s%n", "FLUSHALL", "*1\r\n$8\r\nFLUSHALL\r\n"),
    *(
        "<script>alert(1)</script>",
        "{{7*7}}",
        "Z\u0351\u036b\u0343\u032a" * 500,
        "한" * 1_000,
        "\U0001f3f3\ufe0f" * 500,
    ),
    *("\ufdfa" * 1_000, "\u2028\u2029\ufeff\uffff", "no end: \\", 0, 1e308, True, None, [], {}, ["a"], {"a": "b"}),
)
NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 5, 100, 101, 2**31, 2**63, 10**30, 0.5, 5.0, 1e300, "5", "٥", " 5", "0x5", "1e3", True, None, [], {}),
)
TIMES: tuple[Any, ...] = (
    *(0, -1, 1712345678, 1712345678000, 1e18, 10**400, -1e300, "2024-04-05T12:00:00Z", "yesterday", "", "0001-01-01"),
    *("9999-12-31T23:59:59+23:59", "1712345678", True, None, [], {}, 1061.277, 1712345678123456789, "x" * 100_000),
    *(
        "2023-4-21 @20h 02m 47s 124ms",
        "2023年4月21日 下午8:02",
        "June 19, 2023 2:20pm",
        "4/5/2023",
        "1e999",
        "\0",
        "٢٠٢٣",
    ),
)
TYPES: tuple[Any, ...] = (
    *("find", "SEARCH", "search ", "", "add\0", "profile.get", "__init__", "\ud800", "memory.index"),
    *(0, True, None, [], {}, ["search"]),
)
FILTERS: tuple[Any, ...] = (
    *({"user_id": "*"}, {"user_id": "sentinel"}, {"session_id": "' OR 1=1 --"}, {"source": "system"}, {"since": "x"}),
    *({"$or": [{}]}, {"AND": [{"user_id": "sentinel"}]}, {"session_id": {"ne": ""}}, {"until": 10**400}, [], "x", 1),
    *(None, {"session_id": "s1", "source": "user", "since": 0}),
)
RESP = (b"*1\r\n$8\r\nFLUSHALL\r\n", b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n", b"QUIT\r\n", b"+OK\r\n", b"$-1\r\n")
DEPTHS = (1, 63, 64, 65, 100, 500, 900, 1_100, 5_000, 100_000)


@dataclass(frozen=True)
class Target:
    """A list or channel that messages are sent to.

    Args:
        model: makes a good message, as a JSON object, with the mark given.
        pools: values to put into a field, by its path with dots.
    """

    name: str
    model: Callable[[random.Random, str], dict[str, Any]]
    pools: dict[str, tuple[Any, ...]]


def _request(rng: random.Random, mark: str) -> dict[str, Any]:
    data: dict[str, dict[str, Any]] = {
        "search": {"query": "What is my cat called?", "limit": 5},
        "add": {"content": f"My cat is called Mochi. [{mark}]", "metadata": {"session_id": "s1"}},
        "profile_get": {},
        "profile_update": {"updates": {"name": "Anna", "pets": {"cat": "Mochi"}}},
    }
    kind = rng.choice(list(data))
    return {"request_id": mark, "type": kind, "user_id": f"fuzz-{rng.randrange(50)}", "data": data[kind]}


def _update(rng: random.Random, mark: str) -> dict[str, Any]:
    content = f"My cat is called Mochi. [{mark}]"
    message = {"user_id": f"fuzz-{rng.randrange(50)}", "content": content, "source": "user", "timestamp": 1712345678}
    return {**message, "meta": {"session_id": "s1"}, "message_id": mark, "task_id": "t1"}


def _input(rng: random.Random, mark: str) -> dict[str, Any]:
    message = {"user_id": f"fuzz-{rng.randrange(50)}", "content": f"My cat is called Mochi. [{mark}]", "task_id": "t1"}
    return {**message, "type": "text", "source": "mic", "meta": {"session_id": "s1"}, "timestamp": 1712345678}


REQUESTS = Target(
    "requests",
    _request,
    {
        "user_id": IDS,
        "type": TYPES,
        "data": (None, [], "x", 1, {}, {"updates": []}),
        "data.query": TEXTS,
        "data.content": TEXTS,
        "data.limit": NUMBERS,
        "data.deadline_ms": NUMBERS,
        "data.min_score": NUMBERS,
        "data.filters": FILTERS,
        "data.exclude_session": IDS,
        "data.recency_half_life_days": NUMBERS,
        "data.metadata": (None, [], "x", {"user_id": "sentinel", "data": "x", "id": 1}, {"a": "\0"}, {"\ud800": 1}),
        "data.updates": (None, [], "x", {"\0": "\0"}, {"a": 1e308}, {"big": "x" * 70_000}, {"": None}, {"k": "\ud800"}),
        "data.expected_version": NUMBERS,
    },
)
UPDATES = Target(
    "updates",
    _update,
    {
        "user_id": IDS,
        "content": TEXTS,
        "source": ("system", "USER", "", 0, None, [], {}, "\0user", "assistant", "\ud800", 1e300, ["x" * 9_999]),
        "timestamp": TIMES,
        "meta": (None, [], "x", {"user_id": "sentinel", "source": "ai", "id": "1"}, {"session_id": ["x"]}, {"a": "\0"}),
        "message_id": IDS,
        "task_id": IDS,
        "logged": (True, False, "true", 1, None),
    },
)
INPUTS = Target(
    "inputs",
    _input,
    {
        "user_id": IDS,
        "content": TEXTS,
        "type": (*TYPES, "audio"),
        "timestamp": TIMES,
        "source": (*IDS, *TEXTS),
        "meta": (None, [], "x", {"user_id": "sentinel"}, {"session_id": {"x": 1}}, {"a": "\0", "b": "\ud800"}),
        "task_id": IDS,
    },
)
TARGETS = (REQUESTS, UPDATES, INPUTS)


def draw(rng: random.Random, target: Target, mark: str) -> bytes:
    """A message that is probably invalid; its mark is its request_id, where it still has one."""
    good = target.model(rng, mark)
    [mutate] = rng.choices([mutation for mutation, _ in MUTATIONS], [weight for _, weight in MUTATIONS])
    return mutate(rng, target, good)


def huge(rng: random.Random, target: Target, mark: str, size: int) -> bytes:
    """A message of about so many bytes."""
    message = target.model(rng, mark)
    filler = "x" * size
    match rng.randrange(4):
        case 0:
            return _dump({**message, "content": filler, "data": {"content": filler[: size // 2]}})
        case 1:
            return _dump({"filler": filler, **message})
        case 2:
            return _dump(
                {**message, "data": {"updates": {str(n): n for n in range(size // 12)}}, "meta": {"a": filler[:9]}}
            )
    return rng.randbytes(size)


def _dump(message: Any) -> bytes:
    return json.dumps(message, ensure_ascii=True).encode()


def _put(message: dict[str, Any], path: str, value: Any) -> None:
    first, _, rest = path.partition(".")
    if not rest:
        message[first] = value
    elif isinstance(message.get(first), dict):
        message[first] = {**message[first], rest: value}


def _wrong_value(rng: random.Random, target: Target, good: dict[str, Any]) -> bytes:
    path = rng.choice(list(target.pools))
    _put(good, path, rng.choice(target.pools[path]))
    raw = _dump(good)
    # Unescaped UTF-8, unless a lone surrogate cannot be encoded.
    if rng.random() < 0.3 and b"\\ud" not in raw:
        return json.dumps(good, ensure_ascii=False).encode()
    return raw


def _two_wrong_values(rng: random.Random, target: Target, good: dict[str, Any]) -> bytes:
    for path in rng.sample(list(target.pools), 2):
        _put(good, path, rng.choice(target.pools[path]))
    if "request_id" in good and rng.random() < 0.5:
        good["request_id"] = rng.choice(IDS)
    return _dump(good)


def _missing(rng: random.Random, _: Target, good: dict[str, Any]) -> bytes:
    for name in rng.sample(list(good), rng.randint(1, len(good))):
        del good[name]
    return _dump(good)


def _renamed(rng: random.Random, _: Target, good: dict[str, Any]) -> bytes:
    name = rng.choice(list(good))
    good[rng.choice((name.upper(), name + " ", "\ufeff" + name, name.replace("_", "-")))] = good.pop(name)
    return _dump(good)


def _deep(rng: random.Random, _: Target, good: dict[str, Any]) -> bytes:
    depth = rng.choice(DEPTHS)
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    text = opening * depth + ("1" if opening != "[" else "") + closing * depth
    path = rng.choice(("data", "meta", "content", "x"))
    if "data" in good and rng.random() < 0.5:
        good["data"] = {**good["data"], "metadata": "@@"}
    else:
        good[path] = "@@"
    return _dump(good).replace(b'"@@"', text.encode())


def _odd_numbers(rng: random.Random, target: Target, good: dict[str, Any]) -> bytes:
    path = rng.choice([*target.pools, "x"])
    _put(good, path, rng.choice((math.nan, math.inf, -math.inf, "@@")))
    number = rng.choice((b"1e400", b"-1e400", b"9" * 5_000, b"-0", b"0x10", b"01", b"1e", b".5", b"+1", b"1_000"))
    return _dump(good).replace(b'"@@"', number)


def _broken(rng: random.Random, __: Target, good: dict[str, Any]) -> bytes:
    raw = bytearray(_dump(good))
    match rng.randrange(5):
        case 0:
            del raw[rng.randrange(len(raw)) :]
        case 1:
            for _ in range(rng.randint(1, 8)):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
        case 2:
            raw += rng.choice((b"}", b"\0", b"\xff", bytes(raw), b",", b" garbage"))
        case 3:
            raw = bytearray(b"\xef\xbb\xbf") + raw if rng.random() < 0.5 else bytearray(raw.decode().encode("utf-16"))
        case _:
            raw = bytearray(raw.replace(b'"', rng.choice((b"'", b'\\"', b"`"))))
    return bytes(raw)


def _bytes(rng: random.Random, _: Target, __: dict[str, Any]) -> bytes:
    match rng.randrange(3):
        case 0:
            return rng.randbytes(rng.randrange(2_000))
        case 1:
            return rng.choice(RESP)
    return "".join(rng.choices(string.printable, k=rng.randrange(2_000))).encode()


def _other_json(rng: random.Random, target: Target, good: dict[str, Any]) -> bytes:
    other = rng.choice([one for one in TARGETS if one is not target])
    value: Any = rng.choice(([], [good], "text", 1, None, True, {}, {"a": good}, [[[]]], other.model(rng, "other")))
    return _dump(value)


def _larger(rng: random.Random, _: Target, good: dict[str, Any]) -> bytes:
    match rng.randrange(4):
        case 0:
            good |= {f"unknown {n}": [n] * 5 for n in range(2_000)}
        case 1:
            good["meta" if "meta" in good else "x"] = {"k" * 30_000: "v" * 30_000}
        case 2:
            good["content"] = "word " * rng.choice((1_000, 6_553, 6_554, 20_000))
        case _:
            raw = _dump(good)[:-1]
            name = json.dumps(rng.choice(list(good))).encode()
            return raw + b"," + name + b":" + rng.choice((b"null", b'"again"', b"{}", b"7")) + b"}"
    return _dump(good)


def _letters(rng: random.Random, target: Target, good: dict[str, Any]) -> bytes:
    """Text in the characters of one block of Unicode: a tokenizer may not know them."""
    begin = rng.choice((0, 0x300, 0x600, 0xFB50, 0xFDF0, 0x1F000, 0xE0000, rng.randrange(0x110000 - 0x100)))
    letters = [chr(rng.randrange(begin, begin + 0x100)) for _ in range(rng.choice((1, 5, 50)))]
    text = "".join(rng.choices(letters, k=rng.choice((10, 200, 2_000))))
    path = rng.choice([path for path in target.pools if path.endswith(("content", "query", "user_id"))])
    _put(good, path, text)
    return _dump(good)


#: Mutations of a good message, and their weights.
MUTATIONS = (
    (_wrong_value, 30),
    (_two_wrong_values, 10),
    (_missing, 8),
    (_renamed, 4),
    (_deep, 6),
    (_odd_numbers, 6),
    (_broken, 16),
    (_bytes, 6),
    (_other_json, 6),
    (_larger, 8),
    (_letters, 8),
)
