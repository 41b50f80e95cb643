"""Fields and operators of Mem0's filters: what a condition reads of a memory, and how it compares."""

from __future__ import annotations

import operator as operators
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Any, Final

from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import Memory
from keepsake_client.times import parse_timestamp

from services.gateway.mem0_api.shapes import categories_of, run_of

#: The most values of one `in`.
MAX_VALUES: Final = 100
#: The wildcard: any value but none.
ANY: Final = "*"

_SAME: Final = frozenset({"eq", "ne", "in", "nin"})
_ORDERED: Final = frozenset({"eq", "ne", "gt", "gte", "lt", "lte"})
_TEXTS: Final = frozenset({"contains", "icontains"})
OPERATORS: Final = _SAME | _ORDERED | _TEXTS | {ANY}


@dataclass(frozen=True)
class Field:
    """What a condition may be about.

    Args:
        read: its value of a memory; None where it has none.
        operators: those that it knows, besides the wildcard.
        value: puts a value of a condition into the form that `read` gives; raises ValueError.
    """

    read: Callable[[Memory], Any]
    operators: frozenset[str]
    value: Callable[[Any, tzinfo], Any]


def _id(value: Any, _: tzinfo) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("must be a text")
    return str(value)


def _memory_id(value: Any, zone: tzinfo) -> str:
    return _id(value, zone).partition(".")[0].lower()


def _text(value: Any, _: tzinfo) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text")
    return value


def _time(value: Any, zone: tzinfo) -> float:
    return parse_timestamp(value, zone)


def _scalar(value: Any, _: tzinfo) -> Any:
    if isinstance(value, list | dict):
        raise ValueError("must be a text, a number, true, false or null")
    return value


FIELDS: Final[Mapping[str, Field]] = {
    "user_id": Field(lambda memory: memory.user_id, _SAME, _id),
    "agent_id": Field(lambda memory: memory.agent_id, _SAME, _id),
    "run_id": Field(run_of, _SAME, _id),
    "app_id": Field(lambda memory: memory.metadata.get("app_id"), _SAME, _id),
    "created_at": Field(lambda memory: memory.timestamp, _ORDERED, _time),
    "timestamp": Field(lambda memory: memory.timestamp, _ORDERED, _time),
    "updated_at": Field(lambda memory: parse_timestamp(memory.updated_at, UTC), _ORDERED, _time),
    "categories": Field(categories_of, _SAME | _TEXTS, _text),
    "keywords": Field(lambda memory: memory.content, _TEXTS, _text),
    "memory_ids": Field(lambda memory: memory.id, _SAME, _memory_id),
    "id": Field(lambda memory: memory.id, _SAME, _memory_id),
}


def metadata_field(key: str) -> Field:
    """A field of `metadata`, compared as it is."""
    return Field(lambda memory: memory.metadata.get(key), OPERATORS - {ANY}, _scalar)


@dataclass(frozen=True)
class Condition:
    """One condition of a filter.

    Args:
        name: the field's.
        value: in the form that the field's `read` gives; of `in` and `nin`, a tuple of them.
    """

    name: str
    field: Field
    operator: str
    value: Any

    def meets(self, memory: Memory) -> bool:
        """Whether a memory meets it. One without a value meets what denies, and nothing else, as Mem0 has it."""
        return self.allows(self.field.read(memory))

    def allows(self, found: Any) -> bool:
        """Whether a memory whose field has this value meets it."""
        if self.operator in ("ne", "nin"):
            return not _compare("eq" if self.operator == "ne" else "in", found, self.value)
        return _compare(self.operator, found, self.value)


def condition(name: str, field: Field, operator: str, value: Any, zone: tzinfo) -> Condition:
    """A condition, checked.

    Raises:
        InvalidMessage: the field does not know the operator, or the value is none of its.
    """
    shown = f"filters: {name[:64]!r}"
    if operator == ANY or (operator == "eq" and value == ANY):
        return Condition(name, field, ANY, None)
    if operator not in field.operators:
        known = ", ".join(sorted(field.operators))
        raise InvalidMessage(f"{shown} does not know the operator {operator[:32]!r}; it knows {known}")
    if operator not in ("in", "nin"):
        return Condition(name, field, operator, _checked(shown, field, operator, value, zone))
    if not isinstance(value, list) or len(value) > MAX_VALUES:
        raise InvalidMessage(f"{shown}: {operator!r} takes a list of at most {MAX_VALUES} values")
    return Condition(name, field, operator, tuple(_checked(shown, field, operator, each, zone) for each in value))


def _checked(shown: str, field: Field, operator: str, value: Any, zone: tzinfo) -> Any:
    if value is None and operator in _SAME:
        return None
    try:
        return _text(value, zone) if operator in _TEXTS else field.value(value, zone)
    except (ValueError, OverflowError) as error:
        raise InvalidMessage(f"{shown}: {error}") from None


def _compare(name: str, found: Any, value: Any) -> bool:
    if isinstance(found, tuple | list):  # of several values, one is enough
        return any(_compare(name, each, value) for each in found)
    return _COMPARISONS[name](found, value)


def _same(found: Any, value: Any) -> bool:
    # To Python, True is 1; to JSON it is not.
    return bool(found == value) and isinstance(found, bool) == isinstance(value, bool)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Compares two texts or two numbers; anything else is in no order."""

    def meets(found: Any, value: Any) -> bool:
        comparable = any(isinstance(found, kind) and isinstance(value, kind) for kind in (str, int | float))
        return comparable and compare(found, value)

    return meets


_COMPARISONS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    ANY: lambda found, _: found is not None,
    "eq": _same,
    "in": lambda found, values: any(_same(found, each) for each in values),
    "contains": lambda found, value: isinstance(found, str) and value in found,
    "icontains": lambda found, value: isinstance(found, str) and value.casefold() in found.casefold(),
    "gt": _ordered(operators.gt),
    "gte": _ordered(operators.ge),
    "lt": _ordered(operators.lt),
    "lte": _ordered(operators.le),
}
