"""Lists of users, on a real PostgreSQL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import AddData, MemoryUpdateMessage, UserListData, UserSummary, encode_user_id
from psycopg_pool import ConnectionPool

from services.long_term_memory.forgetting import Forgetting
from services.long_term_memory.memory_management import MemoryManagement
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres import user_listing
from services.long_term_memory.profile_service import ProfileService

#: Any text: other scripts, combining characters, NUL and lone surrogates.
IDS = st.text(st.characters(), max_size=8)
STRANGE = [
    "an",
    "Anna",
    "anna",
    "anna lee",
    "an%",
    "an%20",
    "an*",
    "安娜",
    "安",
    "😀😀",
    "a\0n",
    "\ud800",
    "ä",
    "a\u0308",
]


@pytest.fixture
def management(pool: ConnectionPool, memories: MemoryService) -> MemoryManagement:
    return MemoryManagement(pool, memories.writer)


def listed(management: MemoryManagement, prefix: str = "", limit: int = 3) -> list[str]:
    """The ids of all pages."""
    found: list[str] = []
    cursor = None
    while True:
        page, cursor = management.users(UserListData(prefix=prefix, limit=limit, cursor=cursor))
        found += [user.user_id for user in page]
        if cursor is None:
            return found


@given(prefix=IDS, other=IDS)
def test_a_prefix_of_an_id_is_one_of_its_encoded_form(prefix: str, other: str) -> None:
    """Given any texts, I expect the encoded one to begin with the encoded other exactly where the text does, and the
    end of the range of a prefix behind all that begin with it."""
    begin = encode_user_id(prefix)

    assert encode_user_id(prefix + other).startswith(begin)
    assert encode_user_id(other).startswith(begin) == other.startswith(prefix)
    assert begin <= encode_user_id(prefix + other) < begin + "\U0010ffff"


def test_users_are_found_by_a_prefix_as_it_was_given(pool: ConnectionPool, management: MemoryManagement) -> None:
    """Given ids of any characters, I expect for each beginning of one exactly those that begin so, over pages, each
    once, in the order of the code points."""
    with pool.connection() as connection, connection.cursor() as cursor:
        rows = [(encode_user_id(user), agent) for user in STRANGE for agent in ("", "mira")]
        cursor.executemany("INSERT INTO users (user_id, agent_id) VALUES (%s, %s)", rows)

    prefixes = {user[:length] for user in STRANGE for length in range(3)}
    for prefix in prefixes:
        expected = sorted((user for user in STRANGE if user.startswith(prefix)), key=encode_user_id)
        assert listed(management, prefix) == expected, prefix
    assert listed(management, "annab") == []


def test_a_user_is_listed_with_what_there_is(
    pool: ConnectionPool, memories: MemoryService, management: MemoryManagement
) -> None:
    """Given messages with two characters and a shared memory, I expect their number, the last time and the characters;
    a user with a profile alone is there too, and one who was forgotten is not."""
    for agent, at in (("mira", 1_712_345_678), ("luna", 1_712_345_600)):
        said = {"user_id": "anna", "content": f"tea with {agent}", "source": "user", "timestamp": at, "agent_id": agent}
        memories.index(MemoryUpdateMessage.model_validate(said), at)
    memories.add("anna", AddData(content="likes tea"), "r1", 1_712_345_000)
    memories.add("ben", AddData(content="likes milk"), "r2", 1_712_345_000)
    ProfileService(pool).update("cora", {"name": "Cora"})
    Forgetting(pool).forget("ben", 1_712_345_900)

    users, _ = management.users(UserListData())

    assert users == [
        UserSummary(user_id="anna", memories=3, last_at=1_712_345_678, agents=["luna", "mira"]),
        UserSummary(user_id="cora"),
    ]


def test_numbers_end(memories: MemoryService, management: MemoryManagement, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given more memories than are counted, I expect the number to say that there are more."""
    monkeypatch.setattr(user_listing, "MAX_COUNTED", 2)
    for number in range(3):
        memories.add("anna", AddData(content=f"tea {number}"), f"r{number}", 1_712_345_000)
    for number in range(2):
        memories.add("ben", AddData(content=f"tea {number}"), f"b{number}", 1_712_345_000)

    users, _ = management.users(UserListData())

    assert [(user.user_id, user.memories, user.at_least) for user in users] == [("anna", 2, True), ("ben", 2, False)]


@pytest.mark.parametrize("cursor", ["ben", "an na", "an%2", "%zz", "%ff"])
def test_a_cursor_is_of_its_prefix(management: MemoryManagement, cursor: str) -> None:
    """Given what is no cursor, or one of another prefix, I expect an error that names the field."""
    with pytest.raises(InvalidMessage, match=r"data\.cursor"):
        management.users(UserListData(prefix="an", cursor=cursor))
