"""README and the contract say what is true."""

from __future__ import annotations

from pathlib import Path

import pytest
from keepsake_client import protocol
from keepsake_client.errors import InvalidMessage, KeepsakeError, Unavailable
from pydantic import BaseModel, SecretStr

from services.runtime.errors import Expired, ProfileConflict
from services.runtime.settings import Settings

README = Path(__file__).parents[2] / "README.md"
CONTRACT = README.parent / "docs" / "contract.md"
WIRE = [
    protocol.MemoryUpdateMessage,
    protocol.LTMRequest,
    protocol.SearchData,
    protocol.SearchFilters,
    protocol.AddData,
    protocol.ProfileUpdateData,
    protocol.LTMResponse,
    protocol.Memory,
]


def settings_table() -> str:
    """The rows of the settings table, as `Settings` has them."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
        shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        rows.append(f"| `{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


def test_the_settings_table_is_that_of_the_code() -> None:
    """Given the table in README, I expect a row for every setting, with its default and what it is."""
    table = README.read_text().partition("|---|---|---|\n")[2].partition("\n<!-- /settings -->")[0]
    assert settings_table() == table.strip()


def test_the_example_for_foreign_services_is_short() -> None:
    """Given the plain redis-py example, I expect its function to be no longer than the 15 lines promised."""
    example = README.read_text().partition("import json, time, uuid, redis")[2].partition("```")[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 15


def test_the_access_rules_are_those_of_the_file() -> None:
    """Given the rules in README, I expect those that tests/integration/test_acl.py runs under."""
    shown = README.read_text().partition("<!-- acl: ")[2].partition("```\n")[2].partition("```")[0]
    assert shown == (README.parent / "deploy" / "redis-acl.conf").read_text()


@pytest.mark.parametrize("model", WIRE, ids=lambda model: model.__name__)
def test_the_contract_has_every_field(model: type[BaseModel]) -> None:
    """Given a message of the wire, I expect each of its fields in the tables and words of docs/contract.md."""
    told = CONTRACT.read_text()

    assert [name for name in model.model_fields if f"`{name}`" not in told] == []


def test_the_contract_has_every_error() -> None:
    """Given the errors that a response may carry, I expect a row for each."""
    told = CONTRACT.read_text()
    errors: list[type[KeepsakeError]] = [
        InvalidMessage,
        *InvalidMessage.__subclasses__(),
        ProfileConflict,
        Unavailable,
        Expired,
    ]

    assert [error.code for error in errors if f"| `{error.code}` |" not in told] == []
