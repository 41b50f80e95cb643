"""Values of a profile, where they come from, and the patches that change them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keepsake_client.protocol import JSONObject, ProfileChange

from services.gateway.console.people.profile import NotJSON, NullInside, as_json, patch_to, read_value, values_of
from services.long_term_memory.profile_service import merge_patch

#: As PostgreSQL can store it.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)
KEYS = TEXTS.filter(bool)
#: JSON as a profile can have it: a patch removes what is null in an object.
VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(), TEXTS),
    lambda inner: st.one_of(
        st.lists(st.one_of(inner, st.none()), max_size=3), st.dictionaries(TEXTS, inner, max_size=3)
    ),
    max_leaves=8,
)
PROFILES = st.dictionaries(KEYS, VALUES, max_size=4)
HOME = {"value": "Lisbon", "evidence": ["m1", "m2"], "said_at": 5}


@settings(max_examples=40)
@given(PROFILES, KEYS, KEYS, VALUES)
def test_a_patch_sets_exactly_what_was_typed(profile: JSONObject, key: str, slot: str, value: object) -> None:
    """Given any profile and value, I expect the patch to set that value, also where an object becomes smaller."""
    assert merge_patch(profile, patch_to(profile, (key,), value))[key] == value
    assert merge_patch(profile, patch_to(profile, (key, slot), value))[key][slot] == value


def test_a_patch_removes_a_slot_and_leaves_the_others() -> None:
    """Given two slots, I expect the one removed and the other left."""
    profile = {"known": {"home": HOME, "job": "cook"}, "name": "Anna"}

    patch = patch_to(profile, ("known", "home"), None)

    assert merge_patch(profile, patch) == {"known": {"job": "cook"}, "name": "Anna"}


def test_values_have_their_provenance() -> None:
    """Given values of an LLM and of a service, I expect each with the last change of it, and the LLM's words."""
    changes = [
        ProfileChange(version=3, changed_at=30, source="service", patch={"name": "Ann", "known": {"job": "cook"}}),
        ProfileChange(version=2, changed_at=20, source="extraction", patch={"known": {"home": HOME}}),
        ProfileChange(version=1, changed_at=10, source="service", patch={"name": "Anna"}),
    ]

    values = values_of({"name": "Ann", "age": 3, "known": {"home": HOME, "job": "cook"}}, changes)

    assert [(value.path, value.change and value.change.version) for value in values] == [
        (("name",), 3),
        (("age",), None),
        (("known", "home"), 2),
        (("known", "job"), 3),
    ]
    assert [(value.value, value.evidence, value.said_at) for value in values[2:]] == [
        ("Lisbon", ["m1", "m2"], 5),
        ("cook", [], None),
    ]


def test_a_slot_of_another_shape_is_shown_as_it_is() -> None:
    """Given slots whose evidence and time are of no use, I expect no evidence, and no error."""
    (value,) = values_of({"known": {"home": {"evidence": "<b>", "said_at": "x"}}}, [])

    assert (value.value, value.evidence, value.said_at) == (None, [], None)


@settings(max_examples=40)
@given(VALUES)
def test_what_is_shown_can_be_typed_again(value: object) -> None:
    """Given a value as it is shown to be edited, I expect it read as the same."""
    assert read_value(as_json(value)) == value


@pytest.mark.parametrize("typed", ["", "Lisbon", '"a', "NaN", "1e999", '1, "x": 2', "[" * 100_000])
def test_what_is_no_json_is_refused(typed: str) -> None:
    """Given what is not one JSON value, I expect it refused."""
    with pytest.raises(NotJSON):
        read_value(typed)


@pytest.mark.parametrize("typed", ["null", '{"a": {"b": null}}'])
def test_a_null_that_would_remove_is_refused(typed: str) -> None:
    """Given a null in an object, I expect it refused: the profile would not have what was typed."""
    with pytest.raises(NullInside):
        read_value(typed)
