"""The page of the settings: what it lists, what it hides, and the health of the stack."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from keepsake_client.protocol import alive_key, process_key
from nicegui import ui

from services.gateway.access import ALL_RIGHTS, Caller, Right
from services.gateway.console.settings_list import listed_settings, matching
from services.runtime.extraction_figures import EXTRACTION_KEY, ExtractionFigures
from services.runtime.process_record import Dependency, ProcessRecord
from services.runtime.settings import Settings, load_settings
from tests.unit.console_app import ConsoleApp, look

PASSWORD = "Xylophone-4711"


def test_every_setting_is_listed_with_its_description_and_no_secret() -> None:
    """Given a password in a URL and an API key, I expect all settings in their order, and neither of the two."""
    settings = load_settings(redis_url=f"redis://me:{PASSWORD}@h:1/0", openai_api_key=PASSWORD)
    found = listed_settings(settings, {"REDIS_URL": "x", "OPENAI_API_KEY": "x"})
    assert [listed.setting.variable.lower() for listed in found] == list(Settings.model_fields)
    assert all(listed.description for listed in found)
    assert PASSWORD not in str(found)
    assert found[0].setting == ("REDIS_URL", "redis://me:***@h:1/0", "environment", None)


@pytest.mark.parametrize(
    ("words", "changed_only", "expected"),
    [
        ("gateway PORT", False, {"LTM_GATEWAY_PORT"}),
        ("18381", False, {"LTM_GATEWAY_PORT"}),
        ("", True, {"LTM_GATEWAY_PORT"}),
        ("redis", True, set()),
        ("no such thing", False, set()),
    ],
)
def test_settings_are_found_by_words_and_by_being_set(words: str, changed_only: bool, expected: set[str]) -> None:
    """Given one setting in the environment, I expect those with all the words in name, value or description."""
    found = listed_settings(load_settings(ltm_gateway_port=18_381), {"LTM_GATEWAY_PORT": "18381"})
    assert {listed.setting.variable for listed in matching(found, words, changed_only=changed_only)} == expected


def test_the_page_shows_health_and_extraction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a gateway that works, and an extractor that waits, I expect both in words."""

    async def info(_: str) -> dict[str, object]:
        return {"valkey_version": "9.0.1", "uptime_in_seconds": 60}

    async def story(app: ConsoleApp) -> None:
        monkeypatch.setattr(app.redis, "info", info)  # fakeredis has none
        record = ProcessRecord(version="9.9.9", uses=[Dependency(name="LLM", version="7", detail="gpt")])
        await app.redis.set(process_key("gateway"), record.model_dump_json())
        await app.redis.set(alive_key("gateway"), "1")
        figures = ExtractionFigures(at=datetime.now(UTC), state="waiting", reason="it sleeps", messages=1_234, users=2)
        await app.redis.set(EXTRACTION_KEY, figures.model_dump_json())
        await app.user.open("/console/settings")
        for words in ("9.0.1", "9.9.9", "used by gateway", "it sleeps", "1,234 messages of 2 users wait"):
            await app.user.should_see(words, retries=50)

    look(story)


def test_a_word_filters_the_settings() -> None:
    """Given a word in the field of the filter, I expect the settings that have it, and no others."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/settings")
        await app.user.should_see("LTM_TRACE_MAX_LEN", retries=50)
        app.user.find(ui.input).type("ltm_console")
        await app.user.should_not_see("LTM_TRACE_MAX_LEN", retries=50)
        await app.user.should_see("LTM_CONSOLE", retries=50)

    look(story)


def test_the_page_needs_the_right_to_see_metrics() -> None:
    """Given a key without that right, I expect to be told of it, in Chinese too, and no setting."""

    async def story(app: ConsoleApp) -> None:
        app.keys.of = Caller("ben", ALL_RIGHTS - {Right.METRICS})
        app.http.headers["accept-language"] = "zh"
        await app.user.open("/console/settings")
        await app.user.should_see("此密钥没有 metrics 权限")
        await app.user.should_not_see("REDIS_URL")

    look(story)
