"""The gateway's keys: made once, kept as hashes, looked up, and read again when their file changes."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from services.gateway.access import Right, Unauthorized
from services.gateway.key_file import KeyFile, KeyRefused
from services.gateway.keys import KeyFileInvalid, KeyStore, parse_keys

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
MAY = (Right.SEARCH, Right.TELL)


class Clock:
    """The time, to be set by a test."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def file(path: Path, clock: Clock) -> KeyFile:
    return KeyFile(path, clock)


@pytest.fixture
def failures() -> list[str]:
    """One entry for each time that the store counted a file that it cannot use."""
    return []


@pytest.fixture
def store(path: Path, clock: Clock, failures: list[str]) -> KeyStore:
    return KeyStore(path, lambda: failures.append("unusable"), clock)


def refusal(store: KeyStore, key: str) -> str:
    """Why the store refuses a key."""
    with pytest.raises(Unauthorized) as refused:
        store.find(key)
    return str(refused.value)


def test_a_key_is_found_by_what_was_shown_once(file: KeyFile, store: KeyStore, path: Path) -> None:
    """Given a key, I expect it found with its rights, no part of its secret in the file, and the file for its owner
    alone."""
    key = file.create("bot", MAY, user="anna", agent="luna", rate=5)
    store.refresh()

    found = store.find(key)
    assert (found.name, found.may, found.user, found.agent, found.rate) == ("bot", MAY, "anna", "luna", 5)
    assert len(key[21:]) == 43  # 256 bits in base64
    assert key[21:] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_two_keys_are_alike(file: KeyFile) -> None:
    """Given two keys of the same rights, I expect neither id nor secret in common."""
    one, two = file.create("one", MAY), file.create("two", MAY)

    assert one[:20] != two[:20]
    assert one[21:] != two[21:]


@pytest.mark.parametrize(
    "key", ["", "ltm_", "nonsense", "ltm_0123456789abcdef_" + "x" * 43, "ltm_0123456789ABCDEF_" + "x" * 43, "ü" * 64]
)
def test_an_unknown_key_is_refused(file: KeyFile, store: KeyStore, key: str) -> None:
    """Given what is no key of the file, I expect one answer that tells nothing."""
    file.create("bot", MAY)
    store.refresh()

    assert refusal(store, key) == "this key is not known"


def test_another_secret_with_a_known_id_is_unknown(file: KeyFile, store: KeyStore) -> None:
    """Given the id of a revoked key and another secret, I expect the answer of an unknown one: only its bearer is told
    what became of it."""
    key = file.create("bot", MAY)
    file.revoke("bot")
    store.refresh()

    assert refusal(store, key[:-1] + ("A" if key[-1] != "A" else "B")) == "this key is not known"
    assert refusal(store, key) == "this key is revoked: ask for another one"


def test_a_key_expires_while_the_file_stays(file: KeyFile, store: KeyStore, clock: Clock) -> None:
    """Given a key for an hour, I expect it valid until then, without the file being read again."""
    key = file.create("bot", MAY, expires=NOW + HOUR)
    store.refresh()
    assert store.find(key).name == "bot"

    clock.now += HOUR
    assert refusal(store, key) == "this key is expired: ask for another one"
    assert store.valid() == []


def test_a_rotated_key_stays_valid_for_a_while(file: KeyFile, store: KeyStore, clock: Clock) -> None:
    """Given a rotation that keeps the old key for an hour, I expect both valid for an hour, and the new one after."""
    old = file.create("bot", MAY, user="anna")
    new = file.rotate("bot", HOUR)
    store.refresh()
    assert store.find(old) == store.find(new)

    clock.now += HOUR
    assert refusal(store, old) == "this key was rotated, and its time is over: use the new one"
    assert store.find(new).user == "anna"


def test_a_second_rotation_does_not_prolong_the_first(file: KeyFile, store: KeyStore, clock: Clock) -> None:
    """Given two rotations, the second one keeping the old key for longer, I expect the first key to end in its time;
    and given one that keeps nothing, only the last key."""
    first = file.create("bot", MAY)
    file.rotate("bot", HOUR)
    file.rotate("bot", 5 * HOUR)
    clock.now += HOUR
    store.refresh()
    assert "its time is over" in refusal(store, first)

    last = file.rotate("bot", timedelta())
    store.refresh()
    assert refusal(store, first) == "this key is not known"
    assert [len(key.secrets) for key in file.read()] == [1]
    assert store.find(last).name == "bot"


def test_names_are_unique_among_valid_keys(file: KeyFile, clock: Clock) -> None:
    """Given a valid key, I expect its name refused; and given up once it is revoked or expired."""
    file.create("bot", MAY, expires=NOW + HOUR)
    with pytest.raises(KeyRefused, match="there is a key 'bot'"):
        file.create("bot", MAY)

    clock.now += HOUR
    file.create("bot", (Right.READ,))
    file.revoke("bot")
    file.create("bot", MAY)
    assert [(key.name, key.may) for key in file.read()] == [("bot", MAY)]


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("", {}, "name: "),
        ("a b", {}, "name: "),
        ("a\nb", {}, "name: "),
        ("bot\n", {}, "name: "),
        ("../x", {}, "name: "),
        ("-rf", {}, "name: "),
        ("ключ", {}, "name: "),
        ("x" * 65, {}, "name: "),
        ("bot", {"may": ()}, "may: "),
        ("bot", {"user": " "}, "user: must not be blank"),
        ("bot", {"user": "x" * 5_000}, "user: is longer than 2600 bytes"),
        ("bot", {"agent": ""}, "agent: must not be blank"),
        ("bot", {"rate": -1}, "rate: "),
        ("bot", {"rate": float("nan")}, "rate: "),
        ("bot", {"expires": NOW}, "expires: must be in the future"),
    ],
)
def test_a_key_that_is_not_sane_is_refused(
    file: KeyFile, path: Path, name: str, arguments: dict[str, Any], reason: str
) -> None:
    """Given a name or value that is not valid, I expect one line that names it, and no file."""
    with pytest.raises(KeyRefused) as refused:
        file.create(name, arguments.pop("may", MAY), **arguments)

    assert str(refused.value).startswith(reason)
    assert "\n" not in str(refused.value)
    assert not path.exists()


def test_what_is_not_there_cannot_be_revoked_or_rotated(file: KeyFile) -> None:
    """Given no key of a name, or a revoked one, I expect a refusal that says what to do."""
    with pytest.raises(KeyRefused, match="has no key 'bot': see `ltm key list`"):
        file.revoke("bot")
    file.create("bot", MAY)
    file.revoke("bot")
    with pytest.raises(KeyRefused, match="is revoked: make another one with `ltm key create bot`"):
        file.rotate("bot", HOUR)


def _create_some(path: Path, number: int) -> None:
    for count in range(10):
        KeyFile(path).create(f"key-{number}-{count}", MAY)


def test_commands_at_once_lose_no_key(path: Path) -> None:
    """Given four processes that make ten keys each at the same time, I expect all forty."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_create_some, args=(path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert len(KeyFile(path).read()) == 40
    assert sorted(os.listdir(path.parent)) == ["keys.json", "keys.json.lock"]


def test_a_file_that_is_no_key_file_is_not_overwritten(file: KeyFile, path: Path) -> None:
    """Given a file of another kind, I expect a refusal, and the file as it was."""
    path.write_text("[1, 2]")
    with pytest.raises(KeyRefused, match="is not what `ltm key` writes"):
        file.create("bot", MAY)

    assert path.read_text() == "[1, 2]"


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """Given a path below a file, I expect the reason in one line."""
    (tmp_path / "file").touch()
    with pytest.raises(KeyRefused, match=r"cannot be written: (Not a directory|File exists)$"):
        KeyFile(tmp_path / "file" / "keys.json").create("bot", MAY)


def test_a_symbolic_link_stays_one(tmp_path: Path, file: KeyFile, path: Path) -> None:
    """Given a link to the key file, I expect the file behind it changed."""
    link = tmp_path / "link.json"
    link.symlink_to(path)
    KeyFile(link).create("bot", MAY)

    assert link.is_symlink()
    assert [key.name for key in file.read()] == ["bot"]


def test_a_revocation_takes_effect_at_the_next_look(file: KeyFile, store: KeyStore) -> None:
    """Given a file that is replaced, I expect the store to follow: a new key, then its revocation."""
    store.refresh()
    assert not store.seen
    key = file.create("bot", MAY)
    store.refresh()
    assert store.seen
    assert store.find(key).name == "bot"

    file.revoke("bot")
    store.refresh()
    assert refusal(store, key) == "this key is revoked: ask for another one"


def test_a_secret_of_kubernetes_is_followed(tmp_path: Path, clock: Clock) -> None:
    """Given a file behind a link to a directory, which is swapped for another one, I expect the new keys."""
    made = []
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        made.append(KeyFile(tmp_path / version / "keys.json", clock).create(version, MAY))
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "keys.json").symlink_to("..data/keys.json")
    store = KeyStore(tmp_path / "keys.json", lambda: None, clock)
    store.refresh()
    assert store.find(made[0]).name == "v1"

    (tmp_path / "..data_tmp").symlink_to("v2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    store.refresh()
    assert store.find(made[1]).name == "v2"
    assert refusal(store, made[0]) == "this key is not known"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"keys": [{"name": "bot", "evil": 1}]}'])
def test_a_broken_file_leaves_the_keys_of_before(
    file: KeyFile, store: KeyStore, path: Path, failures: list[str], content: bytes
) -> None:
    """Given a file that becomes unreadable, I expect the last good keys, one log line and one count however often it is
    looked at, and the new keys once it is mended."""
    key = file.create("bot", MAY)
    store.refresh()
    path.write_bytes(content)
    with capture_logs() as lines:
        store.refresh()
        store.refresh()

    assert store.find(key).name == "bot"
    assert [(line["event"], line["log_level"]) for line in lines] == [("keys_unusable", "warning")]
    assert failures == ["unusable"]

    path.unlink()
    other = file.create("other", MAY)
    store.refresh()
    assert store.find(other).name == "other"
    assert refusal(store, key) == "this key is not known"


def test_a_pipe_in_the_place_of_the_file_is_not_waited_for(store: KeyStore, path: Path, failures: list[str]) -> None:
    """Given a pipe that no one writes to, I expect it refused at once: the gateway has requests to answer."""
    os.mkfifo(path)
    store.refresh()

    assert failures == ["unusable"]


def test_a_file_that_disappears_leaves_no_key(file: KeyFile, store: KeyStore, path: Path) -> None:
    """Given a file that is deleted, I expect no key valid, and the store to remember that there was one."""
    key = file.create("bot", MAY)
    store.refresh()
    path.unlink()
    with capture_logs() as lines:
        store.refresh()
        store.refresh()

    assert refusal(store, key) == "this key is not known"
    assert store.seen
    assert [line["event"] for line in lines] == ["keys_gone"]


def test_a_file_that_appears_broken_closes_the_gateway(store: KeyStore, path: Path, failures: list[str]) -> None:
    """Given a first file that is broken, I expect it seen: there are keys to be, and none is known."""
    path.write_text("{")
    store.refresh()

    assert store.seen
    assert failures == ["unusable"]


def test_an_unknown_field_is_an_error(file: KeyFile, path: Path) -> None:
    """Given a field of a later release, which may restrict a key, I expect an error that names it."""
    file.create("bot", MAY)
    stored = json.loads(path.read_text())
    stored["keys"][0]["only_on_sundays"] = True

    with pytest.raises(KeyFileInvalid, match=r"keys\.0\.only_on_sundays: Extra inputs are not permitted"):
        parse_keys(json.dumps(stored).encode())


@pytest.mark.parametrize("doubled", ["name", "id"])
def test_a_name_or_id_that_occurs_twice_is_an_error(file: KeyFile, path: Path, doubled: str) -> None:
    """Given two keys of one name, or of one id, as after an edit by hand, I expect an error."""
    file.create("one", MAY)
    file.create("two", MAY)
    stored = json.loads(path.read_text())
    one, two = stored["keys"]
    if doubled == "name":
        two["name"] = one["name"]
    else:
        two["secrets"] = one["secrets"]

    with pytest.raises(KeyFileInvalid, match="a name or id occurs twice"):
        parse_keys(json.dumps(stored).encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["keys", "name", "may", "secrets"]) | st.text(), inner)
    ),
    max_leaves=20,
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")))
def test_garbage_is_an_error_in_one_line(raw: bytes) -> None:
    """Given any bytes, or any JSON, I expect keys or one error of one line, and nothing else raised."""
    problem = ""
    try:
        parse_keys(raw)
    except KeyFileInvalid as error:
        problem = str(error)

    assert "\n" not in problem
    assert len(problem) < 1_000


def test_a_path_that_leads_nowhere_closes_the_gateway(path: Path, store: KeyStore) -> None:
    """Given a path that turns out to lead round in a circle, I expect keys to be needed: nothing says that none are."""
    path.symlink_to(path)

    store.refresh()

    assert store.seen


def test_a_file_without_an_end_is_not_read(tmp_path: Path) -> None:
    """Given a device or a pipe as the key file, I expect `ltm key` to say so, and not to read it."""
    os.mkfifo(tmp_path / "pipe")
    for place in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(KeyRefused, match="it is no regular file"):
            KeyFile(place).read()


def test_a_key_file_stays_readable_for_the_gateway(file: KeyFile, path: Path) -> None:
    """Given a key file that others were let read, as the gateway's own user, I expect them to read the changed one."""
    file.create("bot", MAY)
    path.chmod(0o640)
    file.revoke("bot")

    assert stat.S_IMODE(path.stat().st_mode) == 0o640
