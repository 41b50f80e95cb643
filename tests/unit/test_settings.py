"""The settings: read once, frozen, without passwords in any output, with a clear error for a wrong value."""

from __future__ import annotations

import os
import pickle
import re
from datetime import UTC
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from services.runtime.errors import InvalidSetting
from services.runtime.settings import (
    EMPTY_SWITCHES_OFF,
    RENAMED_SETTINGS,
    Settings,
    load_settings,
    mask_url,
    renamed_settings,
)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without settings."""
    for name in {*Settings.model_fields, *RENAMED_SETTINGS}:
        for variable in os.environ.keys() & {name, name.upper()}:
            monkeypatch.delenv(variable)


def test_every_setting_has_a_default() -> None:
    """Given no variable, I expect the names of the contract."""
    settings = load_settings()

    assert (settings.ltm_requests_queue, settings.ltm_responses_channel, settings.memory_updates_channel) == (
        "ltm_requests",
        "ltm_responses",
        "memory_updates",
    )


def test_a_variable_sets_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a variable, I expect its value in the field of its name."""
    monkeypatch.setenv("LTM_SEARCH_TIMEOUT_MS", "750")

    assert load_settings().ltm_search_timeout_ms == 750


def test_a_time_zone_is_that_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the name of a zone, I expect that zone; UTC without one, for which no database is needed."""
    assert load_settings().timezone is UTC
    monkeypatch.setenv("LTM_TIMEZONE", "Asia/Shanghai")

    assert load_settings().timezone == ZoneInfo("Asia/Shanghai")


@pytest.mark.parametrize(("value", "on"), [("false", False), ("0", False), ("no", False), ("true", True), ("1", True)])
def test_a_flag_accepts_the_usual_spellings(monkeypatch: pytest.MonkeyPatch, value: str, on: bool) -> None:
    """Given a flag in one of the usual spellings, I expect its value."""
    monkeypatch.setenv("ENABLE_LTM", value)

    assert load_settings().enable_ltm is on


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name not in EMPTY_SWITCHES_OFF])
def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Given an empty variable, as compose passes those that are not set, I expect the default."""
    monkeypatch.setenv(name.upper(), "")

    assert getattr(load_settings(), name) == Settings.model_fields[name].get_default()


@pytest.mark.parametrize(
    ("value", "repeats_s"), [(None, (0.03, 0.1, 0.3, 0.6, 1.2)), ("", ()), ("50", (0.05,)), ("100, 20", (0.02, 0.1))]
)
def test_responses_are_repeated_unless_the_variable_is_empty(
    monkeypatch: pytest.MonkeyPatch, value: str | None, repeats_s: tuple[float, ...]
) -> None:
    """Given LTM_RESPONSE_REPEATS_MS unset, empty, and with times, I expect the default, none, and these in order."""
    monkeypatch.delenv("LTM_RESPONSE_REPEATS_MS", raising=False)
    if value is not None:
        monkeypatch.setenv("LTM_RESPONSE_REPEATS_MS", value)

    assert load_settings().response_repeats_s == repeats_s


@pytest.mark.parametrize("value", ["soon", "-1", "30,,100", "123456"])
def test_wrong_repeats_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Given times that are none, I expect one line that names the variable."""
    monkeypatch.setenv("LTM_RESPONSE_REPEATS_MS", value)

    with pytest.raises(InvalidSetting, match=f"^LTM_RESPONSE_REPEATS_MS is '{value}'; allowed: "):
        load_settings()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described(name: str) -> None:
    """Given any setting, I expect a description: the table of the settings is made of them."""
    assert Settings.model_fields[name].description


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_frozen(name: str) -> None:
    """Given loaded settings, I expect that none of them can be changed."""
    settings = load_settings()

    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, name, getattr(settings, name))


def test_the_broker_is_the_pipelines_redis() -> None:
    """Given no BROKER_URL, I expect the workers' queues in the pipeline's Redis."""
    assert load_settings(redis_url="redis://r:1/2").broker.get_secret_value() == "redis://r:1/2"


def test_the_broker_may_be_another_server() -> None:
    """Given a BROKER_URL, I expect the queues there."""
    assert load_settings(broker_url="redis://b:1/2").broker.get_secret_value() == "redis://b:1/2"


WRONG = {
    "a URL of another scheme": ("REDIS_URL", "http://r:1", "http://r:1", "redis://"),
    "a path for a database": ("DATABASE_URL", "/var/db", "/var/db", "postgresql://"),
    "a broker of another kind": ("BROKER_URL", "kafka://b", "kafka://b", "redis://"),
    "a flag that is none": ("ENABLE_LTM", "maybe", "maybe", "boolean"),
    "no number": ("LTM_SEARCH_TIMEOUT_MS", "soon", "soon", "integer"),
    "a number too small": ("LTM_SEARCH_TIMEOUT_MS", "0", "0", "greater than or equal to 1"),
    "a number too large": ("LTM_MAX_CONTENT_CHARS", "250001", "250001", "less than or equal to 250000"),
    "a fraction of a message": ("MEMORY_MAX_MESSAGES", "1.5", "1.5", "integer"),
    "a time of zero": ("MEMORY_TTL_HOURS", "0", "0", "greater than 0"),
    "not a number": ("MEMORY_TTL_HOURS", "nan", "nan", "less than or equal to 87600"),
    "an unknown level": ("LTM_LOG_LEVEL", "loud", "loud", "'debug', 'info', 'warning' or 'error'"),
    "no time zone": ("LTM_TIMEZONE", "Beijing", "Beijing", "such as UTC, Asia/Shanghai or Europe/Lisbon"),
    "a directory of time zones": ("LTM_TIMEZONE", "Asia", "Asia", "the IANA name of a time zone"),
    "a path": ("LTM_TIMEZONE", "../UTC", "../UTC", "the IANA name of a time zone"),
    "no id for a user": ("LTM_ANONYMOUS_USER", " ", " ", "must not be blank"),
    "too long a name": ("LTM_REQUESTS_QUEUE", "x" * 201, "x" * 201, "at most 200 characters"),
    "a Redis key, which is no secret": ("LTM_STREAM_KEY", "x" * 201, "x" * 201, "at most 200 characters"),
}


@pytest.mark.parametrize(("variable", "value", "shown", "allowed"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, shown: str, allowed: str
) -> None:
    """Given a value that is not allowed, I expect one line with the variable, the value and what is allowed."""
    monkeypatch.setenv(variable, value)

    with pytest.raises(InvalidSetting) as refused:
        load_settings()

    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith(f"{variable} is {shown!r}; allowed: ")
    assert allowed in line.partition("; allowed: ")[2]


LEAKS = {
    "another scheme": ("REDIS_URL", "http://user:hush@host/0"),
    "no scheme": ("REDIS_URL", "user:hush@host:6379/0"),
    "a password alone": ("REDIS_URL", ":hush@host:6379"),
    "a broken port": ("REDIS_URL", "http://:hush@host:port]/0"),
    "a broken host": ("DATABASE_URL", "mysql://user:hush@[host/db"),
    "a password in the query": ("DATABASE_URL", "mysql://host/db?user=u&password=hush"),
    "libpq's keywords": ("DATABASE_URL", "host=db user=u password=hush"),
    "an at sign in the password": ("BROKER_URL", "http://user:hush@hush@host/0"),
    "a user name that is the secret": ("BROKER_URL", "hush@host"),
    "an at sign that is not escaped": ("REDIS_URL", "redis://user:hu@hush@host/0"),
    "a hash that is not escaped": ("REDIS_URL", "redis://user:hush#hush@host/0"),
    "a slash that is not escaped": ("DATABASE_URL", "postgresql://user:hush/hush@host/db"),
    "a question mark that is not escaped": ("DATABASE_URL", "postgresql://user:hush?hush@host/db"),
    "a per cent sign that is not escaped": ("DATABASE_URL", "postgresql://user:hush%zz@host/db"),
    "an endpoint of another scheme": ("CHAT_BASE_URL", "ftp://user:hush@host/v1"),
    "an endpoint without one": ("LTM_LLM_BASE_URL", "user:hush@host/v1"),
    "an endpoint's query": ("LTM_EMBEDDER_BASE_URL", "ftp://host/v1?key=hush"),
    "an endpoint's user alone": ("LTM_EMBEDDER_BASE_URL", "ftp://hush@host/v1"),
    "a password without a host": ("REDIS_URL", "redis://:hush/0"),
    "a password for Sentinel without a service": (
        "REDIS_URL",
        "redis+sentinel://:hush@one:26379,two?sentinel_password=hush",
    ),
    "a slash in a password for Sentinel": ("BROKER_URL", "redis+sentinel://:hush/hush@one,two/mymaster"),
    "a user and a password without a host": ("DATABASE_URL", "postgresql://user:hush/db"),
    "an endpoint's at sign": ("LTM_EMBEDDER_BASE_URL", "https://user:hu@hush@host/v1"),
}


@pytest.mark.parametrize(("variable", "value"), LEAKS.values(), ids=LEAKS)
def test_the_error_of_a_wrong_url_hides_its_password(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """Given a wrong URL with a password in it, I expect an error without the password."""
    monkeypatch.setenv(variable, value)

    with pytest.raises(InvalidSetting) as refused:
        load_settings()

    assert "hush" not in str(refused.value)


def test_the_cause_of_an_error_is_not_chained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a wrong URL, I expect no exception behind the error: pydantic's would print the value in a traceback."""
    monkeypatch.setenv("REDIS_URL", "http://user:hush@host/0")

    with pytest.raises(InvalidSetting) as refused:
        load_settings()

    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


SECRETS = {
    "redis_url": "redis://user:hush@host:6379/0",
    "database_url": "postgresql://user:hush@host/db",
    "broker_url": "redis://:hush@host/1",
    "ltm_embedder_base_url": "https://user:hush@host/v1",
    "ltm_llm_base_url": "https://user:hush@host/v1",
    "chat_base_url": "https://user:hush@host/v1",
    "ltm_log_key": "hush",
    "ltm_embedder_api_key": "hush",
    "ltm_llm_api_key": "hush",
    "openai_api_key": "hush",
}


@pytest.mark.parametrize(
    "written", [repr, str, lambda settings: settings.model_dump_json()], ids=["repr", "str", "json"]
)
@pytest.mark.parametrize("name", SECRETS)
def test_no_representation_of_settings_holds_a_secret(name: str, written: object) -> None:
    """Given a password or key, I expect it in no representation of the settings that a log could hold."""
    settings = load_settings(**{name: SECRETS[name]})

    assert callable(written)
    assert "hush" not in written(settings)


def test_a_secret_can_be_read() -> None:
    """Given a URL with a password, I expect all of it as the secret's value, to connect with."""
    assert load_settings(**SECRETS).redis_url.get_secret_value() == SECRETS["redis_url"]


@pytest.mark.parametrize(
    "url",
    [
        "redis://host:6379/0",
        "redis://:p%40ss@host:6379/0",
        "rediss://user:pass@host/0?ssl_ca_certs=/etc/ca@home.pem&ssl_cert_reqs=required",
        "unix:///run/redis.sock?db=0",
        "redis+sentinel://user:p%40ss@one:26379,two,[::1]:26380/mymaster/2?sentinel_password=other&socket_timeout=3",
        "rediss+sentinel://one/mymaster?ssl_ca_certs=/etc/ca.pem&sentinel_ssl=false",
    ],
)
def test_a_valid_redis_url_is_accepted(url: str) -> None:
    """Given a valid URL, I expect it unchanged."""
    assert load_settings(redis_url=url).redis_url.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:p%23ss@one:5432,two:5433/db?target_session_attrs=read-write",
        "postgresql://user@/db?host=%2Frun%2Fpostgres",
        "postgresql:///db?user=anna@home&sslmode=verify-full&sslrootcert=/etc/ca.pem",
    ],
)
def test_a_valid_database_url_is_accepted(url: str) -> None:
    """Given a URL as libpq reads it, with several hosts, a socket or TLS, I expect it unchanged."""
    assert load_settings(database_url=url).database_url.get_secret_value() == url


def test_settings_can_be_pickled() -> None:
    """Given settings, I expect a pickled copy to equal them, so that they can be passed to a child process."""
    settings = load_settings(**SECRETS)

    assert pickle.loads(pickle.dumps(settings)) == settings


MASKED = {
    "redis://host:6379/0": "redis://host:6379/0",
    "redis://:hush@host:6379/0": "redis://:***@host:6379/0",
    "postgresql://user:hush@host/db?sslmode=require": "postgresql://user:***@host/db?sslmode=require",
    "postgresql://user:hu%40sh@[::1]:5432/db": "postgresql://user:***@[::1]:5432/db",
    "postgresql:///db?user=u&password=hush": "postgresql:///db?user=u&password=***",
    "redis://user:@host": "redis://user:***@host",
    "redis://host/0?ssl_ca_certs=/etc/ca.pem": "redis://host/0?ssl_ca_certs=/etc/ca.pem",
    "https://host/v1?key=hush": "https://host/v1?***",
    "https://hush@host/v1": "https://***@host/v1",
    "https://user:hu@sh@host/v1": "https://***@host/v1",
    "redis://user:hu\nsh@host": "redis://user:***@host",
    "redis://host:6379/0?password=hu@sh": "redis://host:6379/0?password=***",
    "redis://:hush@host:6379/0?password=hu#sh@hush": "redis://:***@host:6379/0?password=***",
    "redis+sentinel://one:1,two/m?sentinel_password=hu@hush&db=1": "redis+sentinel://one:1,two/m?sentinel_password=***&db=1",
    "redis+sentinel://:hush@one:1,two:2/m?sentinel_password=hush": "redis+sentinel://:***@one:1,two:2/m?sentinel_password=***",
}


@pytest.mark.parametrize(("url", "masked"), MASKED.items())
def test_a_masked_url_hides_the_password_alone(url: str, masked: str) -> None:
    """Given a URL, I expect all of it but its password."""
    assert mask_url(url) == masked


RENAMED = {
    "LTM_UPDATES_LOG": ("ltm_stream_key", "mine", "mine"),
    "LTM_LOG_MAX_LEN": ("ltm_stream_max_len", "7", 7),
    "LTM_LOG_HOURS": ("ltm_stream_hours", "1.5", 1.5),
    "LTM_READ_AHEAD": ("ltm_prefetch", "8", 8),
}


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_setting_is_read_under_its_old_name(monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    """Given a setting under its old name alone, I expect its value, as one that was set, and the names to warn of."""
    field, value, expected = RENAMED[old]
    monkeypatch.setenv(old, value)

    settings = load_settings()

    assert getattr(settings, field) == expected
    assert field in settings.model_fields_set
    assert [*renamed_settings()] == [(old, field.upper())]


def test_the_new_name_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a setting under both names, I expect the value of the new one, and the old one still to be warned of."""
    monkeypatch.setenv("LTM_READ_AHEAD", "not even a number")
    monkeypatch.setenv("LTM_PREFETCH", "9")

    assert load_settings().ltm_prefetch == 9
    assert [*renamed_settings()] == [("LTM_READ_AHEAD", "LTM_PREFETCH")]


def test_an_override_wins_over_an_old_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a setting under its old name and an override, I expect the override."""
    monkeypatch.setenv("LTM_UPDATES_LOG", "of the environment")

    assert load_settings(ltm_stream_key="of the caller").ltm_stream_key == "of the caller"


@pytest.mark.parametrize(("old", "new"), [("", ""), ("", "9"), ("8", "")])
def test_an_empty_variable_is_unset_under_either_name(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Given empty variables, as compose may pass them, I expect the value of the other name, or the default."""
    monkeypatch.setenv("LTM_READ_AHEAD", old)
    monkeypatch.setenv("LTM_PREFETCH", new)

    assert load_settings().ltm_prefetch == int(old or new or 20_000)
    assert len([*renamed_settings()]) == bool(old)


def test_a_wrong_value_is_reported_under_the_name_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a wrong value under an old name, I expect the error to name that variable."""
    monkeypatch.setenv("LTM_LOG_MAX_LEN", "many")

    with pytest.raises(InvalidSetting, match=r"^LTM_LOG_MAX_LEN is 'many'; allowed: "):
        load_settings()


def test_a_wrong_value_under_the_new_name_is_reported_under_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given both names and a wrong value under the new one, I expect the error to name the new one."""
    monkeypatch.setenv("LTM_LOG_MAX_LEN", "7")
    monkeypatch.setenv("LTM_STREAM_MAX_LEN", "many")

    with pytest.raises(InvalidSetting, match=r"^LTM_STREAM_MAX_LEN is 'many'; allowed: "):
        load_settings()


@pytest.mark.parametrize("name", ["ltm_log_key", "ltm_embedder_api_key", "ltm_llm_api_key", "openai_api_key"])
def test_the_error_of_a_wrong_key_hides_it(name: str) -> None:
    """Given a key of the wrong type, I expect an error without it."""
    with pytest.raises(InvalidSetting, match=rf"^{name.upper()} is '\*\*\*'; allowed: "):
        load_settings(**{name: 12_345})


@pytest.mark.parametrize(
    "url", ["redis://:p%4@host", "redis://host:63x9/0", "redis://one:1,two:x", "redis://host:65536"]
)
def test_a_broken_escape_or_port_is_refused(url: str) -> None:
    """Given a broken escape or port, I expect an error: the client library's would quote parts of the URL."""
    with pytest.raises(InvalidSetting, match="percent-encoded and whose port is a number"):
        load_settings(redis_url=url)


@pytest.mark.parametrize(
    "url",
    [
        "REDIS://host",
        " redis://host",
        "redis://host/mine",
        "redis://host/0?tls=yes",
        "redis://host?socket_timeout=soon",
        "redis-sentinel://one,two/mymaster",
        "redis+sentinel://one:26379,two:26379/0",
        "redis+sentinel://one,two/mymaster/first",
        "redis+sentinel://one,,two/mymaster",
        "redis+sentinel://one,two/mymaster?sentinel_passwort=x",
    ],
)
@pytest.mark.parametrize("variable", ["REDIS_URL", "BROKER_URL"])
def test_a_url_that_redis_py_cannot_use_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, url: str) -> None:
    """Given a URL at which redis-py fails in each process, or whose database it ignores, I expect one line."""
    monkeypatch.setenv(variable, url)

    with pytest.raises(InvalidSetting, match=rf"^{variable} is '{re.escape(url)}'; allowed: a URL "):
        load_settings()


@pytest.mark.parametrize(
    "url", ["redis://host:/0?client_name=1:2", "rediss://u:p%25@h:6380/0", "redis://[::1]:1", "redis://[::1]"]
)
def test_an_ipv6_address_or_an_empty_port_is_accepted(url: str) -> None:
    """Given an IPv6 address, an empty port, or colons after the host, I expect the URL unchanged."""
    assert load_settings(redis_url=url).redis_url.get_secret_value() == url


def test_slots_are_names_each_once() -> None:
    """Given LTM_PROFILE_SLOTS with spaces and a name twice, I expect each once, in order."""
    assert load_settings(ltm_profile_slots="name, home,name,likes").profile_slots == ("name", "home", "likes")
    assert load_settings().profile_slots[:3] == ("name", "call_me", "language")


@pytest.mark.parametrize("value", ["name,,home", "Name", "name home", "a" * 41, ",".join(["a"] * 51), "known.name"])
def test_wrong_slots_are_refused(value: str) -> None:
    """Given what is no list of names, I expect the variable named."""
    with pytest.raises(InvalidSetting, match="LTM_PROFILE_SLOTS"):
        load_settings(ltm_profile_slots=value)


@pytest.mark.parametrize(("provider", "extracts"), [(None, False), ("openai", True)])
def test_facts_are_extracted_where_an_llm_is_set(provider: str | None, extracts: bool) -> None:
    """Given no LLM, I expect nothing extracted; with one, facts."""
    assert load_settings(ltm_llm_provider=provider).extracts is extracts


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:81/"), ("0.0.0.0", "http://127.0.0.1:81/"), ("::", "http://[::1]:81/")],
)
def test_the_address_of_the_console_is_one_for_a_browser(host: str, url: str) -> None:
    """Given a gateway that listens on every address, I expect one that a browser can open; without a console, none."""
    assert load_settings(ltm_gateway_host=host, ltm_gateway_port=81).console_url == url
    assert load_settings(ltm_console=False).console_url is None
