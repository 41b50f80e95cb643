"""JSON Merge Patch, against RFC 7386's own examples."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.long_term_memory.profile_service import merge_patch

# Appendix A, in its order: original, patch, result.
APPENDIX_A: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(st.sampled_from("abcd"), json_values, max_size=4)


def without_nulls(value: Any) -> Any:
    """What a patch leaves of itself on nothing: its members that are not null, all the way down its objects."""
    if not isinstance(value, dict):
        return value
    return {name: without_nulls(item) for name, item in value.items() if item is not None}


@pytest.mark.parametrize(("original", "patch", "result"), APPENDIX_A)
def test_the_examples_of_the_rfc(original: Any, patch: Any, result: Any) -> None:
    """Given an example of appendix A, I expect its result."""
    assert merge_patch(original, patch) == result


@given(objects, objects)
def test_nothing_given_is_changed(original: dict[str, Any], patch: dict[str, Any]) -> None:
    """Given any profile and patch, I expect both as they were: the patch goes into the history next."""
    before = copy.deepcopy((original, patch))

    merge_patch(original, patch)

    assert (original, patch) == before


@given(json_values, objects)
def test_a_patch_is_idempotent(original: Any, patch: dict[str, Any]) -> None:
    """Given a patch that is applied again, as a retried message is, I expect no further change."""
    once = merge_patch(original, patch)

    assert merge_patch(once, patch) == once


@given(json_values)
def test_an_empty_patch_changes_no_object(original: Any) -> None:
    """Given an empty patch, I expect an object as it was, and an empty one in place of anything else."""
    assert merge_patch(original, {}) == (original if isinstance(original, dict) else {})


@given(objects)
def test_a_patch_on_nothing_is_itself_without_nulls(patch: dict[str, Any]) -> None:
    """Given a first patch, I expect what it sets and nothing for what it removes."""
    assert merge_patch({}, patch) == without_nulls(patch)


@given(objects, objects)
def test_what_a_patch_does_not_name_stays(original: dict[str, Any], patch: dict[str, Any]) -> None:
    """Given any patch, I expect every member that it does not name as it was."""
    merged = merge_patch(original, patch)

    assert {k: v for k, v in merged.items() if k not in patch} == {k: v for k, v in original.items() if k not in patch}


@given(objects, objects)
def test_a_null_removes(original: dict[str, Any], patch: dict[str, Any]) -> None:
    """Given a null in a patch, I expect its member gone."""
    merged = merge_patch(original, patch)

    assert not {name for name, value in patch.items() if value is None} & merged.keys()


@given(
    objects, st.dictionaries(st.sampled_from("ab"), json_values), st.dictionaries(st.sampled_from("cd"), json_values)
)
def test_patches_of_different_members_commute(
    original: dict[str, Any], one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Given two patches that name different members, I expect the same profile in either order."""
    assert merge_patch(merge_patch(original, one), other) == merge_patch(merge_patch(original, other), one)
