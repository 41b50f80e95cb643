"""The settings of the gateway's process as a list: each with its value, source and description."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from services.runtime.setting_values import SettingValue, values_of
from services.runtime.settings import Settings


class ListedSetting(NamedTuple):
    """A setting, and what it is."""

    setting: SettingValue
    description: str

    @property
    def is_changed(self) -> bool:
        """Whether something has set it, be it to its default."""
        return self.setting.source != "default"


def listed_settings(settings: Settings, environment: Mapping[str, str]) -> list[ListedSetting]:
    """Every setting, in the order of docs/configuration.md."""
    return [
        ListedSetting(value, Settings.model_fields[value.variable.lower()].description or "")
        for value in values_of(settings, environment)
    ]


def matching(found: Iterable[ListedSetting], words: str, *, changed_only: bool = False) -> Sequence[ListedSetting]:
    """Those that have each of the words in their name, value or description."""
    wanted = words.casefold().split()
    return [
        listed
        for listed in found
        if (listed.is_changed or not changed_only)
        and all(
            word in f"{listed.setting.variable} {listed.setting.value} {listed.description}".casefold()
            for word in wanted
        )
    ]
