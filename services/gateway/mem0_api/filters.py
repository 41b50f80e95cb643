"""Mem0's filters: parsed, tested on memories, and pushed down to the wire as far as its own filters go.

A filter is an object of conditions, all of which must hold, and of `AND`, `OR` and `NOT` with lists of such objects.
Every memory that the wire answers is tested on the whole filter, so what is pushed down saves work and decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any, Final, Literal

from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import Memory
from keepsake_client.requests import MAX_CONTAINS_CHARS

from services.gateway.mem0_api.fields import ANY, FIELDS, OPERATORS, Condition, condition, metadata_field
from services.gateway.mem0_api.shapes import FACT, MESSAGE

#: How deep a filter may be nested, and how many conditions it may have.
MAX_DEPTH: Final = 16
MAX_CONDITIONS: Final = 100

Logic = Literal["AND", "OR", "NOT"]
_LOGIC: Final[Mapping[str, Logic]] = {"AND": "AND", "OR": "OR", "NOT": "NOT"}
#: Fields of the time at which a memory was said, which `since` and `until` of the wire are about.
_SAID: Final = ("created_at", "timestamp")
#: Numbers above it are milliseconds to the wire. No memory is of the year 5138.
_LATEST_S: Final = 1e11 - 1


@dataclass(frozen=True)
class Group:
    """Several conditions. `NOT` holds where none of them does."""

    logic: Logic
    parts: tuple[Group | Condition, ...]

    def meets(self, memory: Memory) -> bool:
        """Whether a memory meets it."""
        if self.logic == "AND":
            return all(part.meets(memory) for part in self.parts)
        found = any(part.meets(memory) for part in self.parts)
        return found if self.logic == "OR" else not found

    def required(self) -> Iterator[Condition]:
        """The conditions that every matching memory meets: those that stand below no `OR` and no `NOT`."""
        if self.logic == "AND":
            for part in self.parts:
                yield from (part,) if isinstance(part, Condition) else part.required()

    def conditions(self) -> Iterator[Condition]:
        """All its conditions."""
        for part in self.parts:
            yield from (part,) if isinstance(part, Condition) else part.conditions()

    def wire(self) -> dict[str, Any]:
        """The wire's filters that every matching memory passes: they narrow a `memory_list`."""
        filters: dict[str, Any] = {}
        for each in self.required():
            if each.name == "run_id" and each.operator == "eq" and each.value is not None:
                filters["session_id"] = each.value
            elif each.name in _SAID and each.operator in ("gt", "gte"):
                filters["since"] = min(max(each.value, filters.get("since", each.value)), _LATEST_S)
            elif each.name in _SAID and each.operator in ("lt", "lte"):
                filters["until"] = min(each.value, filters.get("until", _LATEST_S))
            elif each.name == "keywords" and (each.value or "").strip() and len(each.value) <= MAX_CONTAINS_CHARS:
                filters["contains"] = each.value
            elif each.name == "categories" and not each.allows((MESSAGE,)):
                filters["kind"] = "fact"
        return filters

    def check_one_kind(self) -> None:
        """Check that its categories, if any, select either messages or facts: a list of the wire has one kind.

        Raises:
            InvalidMessage: they select both, and a list would leave some out.
        """
        required = list(self.required())
        for each in (each for each in self.conditions() if each.name == "categories"):
            if each not in required or (each.allows((MESSAGE,)) and _allows_facts(each)):
                raise InvalidMessage(
                    "filters: a list is of messages or of facts: name `message`, or `fact` or its kinds, in categories"
                    " that stand alone or below AND"
                )

    def is_wire_alone(self) -> bool:
        """Whether the wire's filters test all of it in a search, of one user or of several."""
        required = list(self.required())
        return required == list(self.conditions()) and all(
            (each.name == "user_id" and each.operator in ("eq", "in", ANY))
            or (each.name == "run_id" and each.operator == "eq" and each.value is not None)
            or (each.name in _SAID and each.operator in ("gte", "lte"))
            for each in required
        )


def _allows_facts(categories: Condition) -> bool:
    """Whether a fact of some kind may meet a condition on the categories."""
    values = categories.value if isinstance(categories.value, tuple) else (categories.value,)
    if categories.operator in ("ne", "nin"):
        return FACT not in values
    return categories.operator not in ("eq", "in") or any(value != MESSAGE for value in values)


def parse_filters(filters: Any, zone: tzinfo, *, any_field: bool = False) -> Group:
    """A filter, checked.

    Args:
        zone: that of times which name none.
        any_field: whether a field that is not known is one of `metadata`, as for Mem0's open source server.

    Raises:
        InvalidMessage: it is none that can be tested; names the part.
    """
    return _Parser(zone, any_field).group("AND", filters, 0)


class _Parser:
    """Parses one filter, and counts its conditions."""

    def __init__(self, zone: tzinfo, any_field: bool) -> None:
        self._zone = zone
        self._any_field = any_field
        self._conditions = 0

    def group(self, logic: Logic, filters: Any, depth: int) -> Group:
        """The group of an object of conditions, or of a list of such objects."""
        if depth > MAX_DEPTH:
            raise InvalidMessage(f"filters: nested deeper than {MAX_DEPTH} levels")
        if isinstance(filters, list):
            return Group(logic, tuple(self.group("AND", each, depth + 1) for each in filters))
        if not isinstance(filters, dict):
            raise InvalidMessage(f"filters: an object of conditions is needed, or a list of them below {logic}")
        parts: list[Group | Condition] = []
        for name, value in filters.items():
            if name in _LOGIC:
                below = [value] if name == "NOT" and isinstance(value, dict) else value
                if not isinstance(below, list) or not below:
                    raise InvalidMessage(f"filters: {name} takes a list of conditions, of one at least")
                parts.append(self.group(_LOGIC[name], below, depth + 1))
            else:
                parts.extend(self._field(name, value))
        return Group("AND", tuple(parts))

    def _field(self, name: str, value: Any) -> Iterator[Condition]:
        """The conditions of one key of an object."""
        if name == "metadata":
            if not isinstance(value, dict):
                raise InvalidMessage('filters: metadata takes an object, as in {"metadata": {"topic": "food"}}')
            for key, each in value.items():
                yield from self._operators(f"metadata.{key}", each)
        elif name in FIELDS or self._any_field:
            yield from self._operators(name if name in FIELDS else f"metadata.{name}", value)
        else:
            raise InvalidMessage(
                f"filters: {name[:64]!r} is no field; there are {', '.join(FIELDS)} and metadata, AND, OR and NOT;"
                f' a field of your own is filtered by {{"metadata": {{"{name[:64]}": …}}}}'
            )

    def _operators(self, name: str, value: Any) -> Iterator[Condition]:
        """The conditions on one field: a value to be equal to, or values by operator."""
        field = FIELDS.get(name) or metadata_field(name.partition(".")[2])
        if isinstance(value, list):
            value = {"in": value}
        if not isinstance(value, dict):
            value = {"eq": value}
        if not value:
            raise InvalidMessage(f"filters: {name[:64]!r} takes a value, a list of values, or values by operator")
        for operator, each in value.items():
            self._conditions += 1
            if self._conditions > MAX_CONDITIONS:
                raise InvalidMessage(f"filters: more than {MAX_CONDITIONS} conditions")
            if operator not in OPERATORS:
                known = ", ".join(sorted(OPERATORS))
                raise InvalidMessage(f"filters: {name[:64]!r}: {operator[:32]!r} is no operator; there are {known}")
            yield condition(name, field, operator, each, self._zone)
