"""`ltm key`: what it prints once, lists and refuses."""

from __future__ import annotations

import json
import re
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from typer.testing import CliRunner, Result

from services.cli.app import build_app
from services.gateway.access import ROLES, Right
from services.gateway.key_file import KeyFile, KeyRefused
from services.gateway.keys import KeyStore
from services.runtime.errors import InvalidSetting
from services.runtime.settings import Settings

KEY = re.compile(r"ltm_[0-9a-f]{16}_[A-Za-z0-9_-]{43}")


@pytest.fixture(autouse=True)
def _no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), ["key", *arguments])


def made(*arguments: str) -> str:
    """The key that `ltm key create` prints on stdout, alone."""
    result = run("create", *arguments)
    assert result.exit_code == 0, result.output
    assert KEY.fullmatch(result.stdout.removesuffix("\n"))
    return result.stdout.strip()


def test_a_key_is_shown_once() -> None:
    """Given `create`, I expect the key on stdout, where it went on stderr, and no command that shows it again."""
    result = run("create", "bot", "--may", "search, tell")
    key = result.stdout.strip()

    assert re.fullmatch(
        r"ltm: this is the key bot, shown this once; .*/\.ltm/keys\.json has its hash alone\n", result.stderr
    )
    for again in (run("list"), run("list", "--json"), run("create", "bot", "--may", "all")):
        assert key not in again.output + str(again.exception)
    assert stat.S_IMODE(Path(".ltm/keys.json").stat().st_mode) == 0o600


def test_the_file_is_that_of_the_option_the_setting_or_the_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given --file, LTM_GATEWAY_KEYS and --data-dir, I expect them to count in this order."""
    made("one", "--may", "all", "--data-dir", "elsewhere")
    monkeypatch.setenv("LTM_GATEWAY_KEYS", "set.json")
    made("two", "--may", "all", "--data-dir", "elsewhere")
    made("three", "--may", "all", "--file", "given.json")

    names = {
        path: [key.name for key in KeyFile(Path(path)).read()]
        for path in ("elsewhere/keys.json", "set.json", "given.json")
    }
    assert names == {"elsewhere/keys.json": ["one"], "set.json": ["two"], "given.json": ["three"]}


def test_the_list_says_what_each_key_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given keys of all kinds, I expect a line for each: its state, the id that tells it in a configuration, for whom,
    until when and what it may."""
    monkeypatch.setenv("LTM_TIMEZONE", "Asia/Shanghai")
    key = made("bot", "--may", "search,tell", "--users", "team-", "--expires", "2099-01-31", "--rate", "2.5")
    made("game", "--may", "all", "--user", "an\x1bna", "--agent", "luna")
    run("revoke", "game")

    first, second = run("list").stdout.splitlines()
    assert re.sub(" +", " ", first) == f"bot valid {key[:20]}_… users team-… until 2099-01-31 00:00 2.5/s search,tell"
    assert re.match(r"game +revoked +ltm_[0-9a-f]{16}_…  user an\\u001bna  agent luna  all$", second)


def test_the_list_as_json_holds_no_hash() -> None:
    """Given --json, I expect what is known of each key, and nothing of its secret."""
    key = made("bot", "--may", "read", "--user", "anna")

    (found,) = json.loads(run("list", "--json").stdout)
    assert (found["name"], found["state"], found["may"], found["user"]) == ("bot", "valid", ["read"], "anna")
    assert found["ids"] == [key[4:20]]
    assert "sha256" not in json.dumps(found)


def test_no_keys_is_said() -> None:
    """Given no file, I expect how to make a key, and no file made."""
    assert "`ltm key create` makes one" in run("list").stdout
    assert not Path(".ltm").exists()


def test_all_rights_are_those_of_today() -> None:
    """Given `--may all`, I expect every right by name, so that one of a later release is not given away."""
    made("bot", "--may", "all")

    assert KeyFile(Path(".ltm/keys.json")).read()[0].may == tuple(Right)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_names_rights(role: str) -> None:
    """Given --role, I expect its rights in the file: contents for who looks, none for who operates."""
    made("bot", "--role", role)

    rights = set(KeyFile(Path(".ltm/keys.json")).read()[0].may)
    assert rights == set(ROLES[role])
    assert (Right.READ in rights, Right.OPERATE in rights) == (role != "operator", role != "viewer")


@pytest.mark.parametrize(
    "arguments",
    [
        ["bot"],
        ["bot", "--may", "all", "--role", "full"],
        ["bot", "--role", "owner"],
        ["bot", "--may", ""],
        ["bot", "--may", "everything"],
        ["bot", "--may", "search,all"],
        ["bot", "--may", "all", "--user", "anna", "--users", "a"],
        ["bot", "--may", "all", "--expires", "soon"],
        ["bot", "--may", "all", "--rate", "-1"],
        ["bot", "--may", "all", "--rate", "nan"],
    ],
)
def test_a_wrong_option_makes_no_key(arguments: list[str]) -> None:
    """Given no right, an unknown one, two kinds of users or a wrong date, I expect a usage error, and no file."""
    result = run("create", *arguments)

    assert result.exit_code == 2 or isinstance(result.exception, KeyRefused)
    assert result.stdout == ""
    assert not Path(".ltm/keys.json").exists()


def test_a_past_date_makes_no_key() -> None:
    """Given a date of the past, I expect a refusal."""
    assert isinstance(run("create", "bot", "--may", "all", "--expires", "2020-01-31").exception, KeyRefused)


def test_days_are_counted_from_now() -> None:
    """Given --expires 30, I expect the key to end in 30 days."""
    made("bot", "--may", "all", "--expires", "30")

    expires = KeyFile(Path(".ltm/keys.json")).read()[0].expires
    assert expires is not None
    assert abs(expires - datetime.now(UTC) - timedelta(days=30)) < timedelta(hours=1)


@pytest.mark.parametrize(("keep", "valid"), [([], True), (["--keep", "30m"], True), (["--keep", "0"], False)])
def test_a_rotation_prints_the_new_key(keep: list[str], valid: bool) -> None:
    """Given `rotate`, I expect a new valid key, and the old one for as long as --keep says, a day by default."""
    old = made("bot", "--may", "all")
    result = run("rotate", "bot", *keep)
    new = result.stdout.strip()
    store = KeyStore(Path(".ltm/keys.json"), lambda: None)
    store.refresh()

    assert store.find(new).name == "bot"
    assert (old[4:20] in store.find(new).model_dump_json()) is valid
    assert ("is valid for another" in result.stderr) is valid


@pytest.mark.parametrize("keep", ["1", "h", "-1h", "1w", "24 h", "9999999h"])
def test_a_time_that_is_none_rotates_nothing(keep: str) -> None:
    """Given a wrong --keep, I expect a usage error, and the key as it was."""
    made("bot", "--may", "all")
    before = Path(".ltm/keys.json").read_bytes()

    assert run("rotate", "bot", "--keep", keep).exit_code == 2
    assert Path(".ltm/keys.json").read_bytes() == before


def test_a_token_is_signed_for_one_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the secret of the gateway, I expect a token for the user, with these rights, for these minutes."""
    secret = "0123456789abcdef" * 2
    monkeypatch.setenv("LTM_GATEWAY_TOKEN_SECRET", secret)
    result = run("token", "anna", "--may", "search,read", "--minutes", "5", "--agent", "luna")

    claims = jwt.decode(result.stdout.strip(), secret, ["HS256"], audience="keepsake")
    assert (claims["sub"], claims["may"], claims["agent"]) == ("anna", ["search", "read"], "luna")
    assert claims["exp"] - claims["iat"] == 300


def test_a_token_needs_the_secret() -> None:
    """Given no secret, I expect the setting and how to make one."""
    result = run("token", "anna")

    assert isinstance(result.exception, InvalidSetting)
    assert "LTM_GATEWAY_TOKEN_SECRET is not set: give the gateway one, as of `openssl rand -hex 32`" in str(
        result.exception
    )


@pytest.mark.parametrize("arguments", [[" "], ["anna", "--minutes", "1441"], ["anna", "--may", "everything"]])
def test_a_token_that_the_gateway_would_refuse_is_not_signed(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """Given no user, more than a day or an unknown right, I expect a usage error."""
    monkeypatch.setenv("LTM_GATEWAY_TOKEN_SECRET", "0123456789abcdef" * 2)

    assert run("token", *arguments).exit_code == 2
