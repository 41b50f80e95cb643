"""Arguments of the tools. None of them names a user; an argument that a tool does not have is an error."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from keepsake_client.protocol import CONTEXT_CHARS, WireModel
from keepsake_client.requests import MAX_CONTAINS_CHARS
from pydantic import ConfigDict, Field

#: What one answer may hold, for the window of a model: with the longest quotes, 20,000 and 50,000 characters.
MAX_FOUND: Final = 20
MAX_PAGE: Final = 50
MAX_QUERY_CHARS: Final = 2_000
#: The default of LTM_MAX_CONTENT_CHARS; a pipeline with a smaller one answers `too_large`.
MAX_CONTENT_CHARS: Final = 32_768
MIN_CONTEXT_CHARS: Final = 250
MAX_CONTEXT_CHARS: Final = 16_000

MemoryId = Annotated[
    str,
    Field(min_length=1, max_length=100, description="The id of the memory, as search_memories or list_memories gave."),
]
Content = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_CONTENT_CHARS,
        description="One self-contained sentence or short passage, in the user's language, with names and dates spelled"
        " out: it will be read without this conversation.",
    ),
]
_MAX_TIME_CHARS: Final = 100
Since = Annotated[
    str, Field(max_length=_MAX_TIME_CHARS, description="Only what was said then or later: an ISO 8601 date or time.")
]
Until = Annotated[
    str, Field(max_length=_MAX_TIME_CHARS, description="Only what was said then or earlier: an ISO 8601 date or time.")
]


class Arguments(WireModel):
    """Base of the arguments: an unknown one is an error, so that no model takes what it named for heard."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SearchArguments(Arguments):
    """Arguments of `search_memories`."""

    query: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_QUERY_CHARS,
            description="A question or a few words, in the user's language; one subject a search.",
        ),
    ]
    limit: Annotated[int, Field(ge=1, le=MAX_FOUND, description="The most memories to return.")] = 5
    since: Since | None = None
    until: Until | None = None


class ContextArguments(Arguments):
    """Arguments of `get_context`."""

    message: Annotated[
        str, Field(min_length=1, max_length=MAX_CONTENT_CHARS, description="The user's last message, as it was said.")
    ]
    max_chars: Annotated[
        int, Field(ge=MIN_CONTEXT_CHARS, le=MAX_CONTEXT_CHARS, description="The longest text to return.")
    ] = CONTEXT_CHARS


class AddArguments(Arguments):
    """Arguments of `add_memory`."""

    content: Content


class ListArguments(Arguments):
    """Arguments of `list_memories`."""

    contains: Annotated[
        str | None,
        Field(min_length=1, max_length=MAX_CONTAINS_CHARS, description="Only memories with this text, in any case."),
    ] = None
    kind: Annotated[
        Literal["message", "fact"],
        Field(description="message: what was said or added. fact: what was found in it, if the operator has that on."),
    ] = "message"
    since: Since | None = None
    until: Until | None = None
    order: Annotated[Literal["newest", "oldest"], Field(description="Which come first.")] = "newest"
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE, description="The most memories on the page.")] = 20
    cursor: Annotated[
        str | None,
        Field(
            max_length=200, description="next_cursor of the page before, to go on behind it; same arguments otherwise."
        ),
    ] = None


class CorrectArguments(Arguments):
    """Arguments of `correct_memory`."""

    id: MemoryId
    content: Content


class ForgetArguments(Arguments):
    """Arguments of `forget_memory`."""

    id: MemoryId


class NoArguments(Arguments):
    """Arguments of `get_profile`: none."""


class ProfileArguments(Arguments):
    """Arguments of `update_profile`."""

    updates: Annotated[
        dict[str, Any],
        Field(
            min_length=1,
            description="A JSON Merge Patch: keys to set; null removes a key; an object is merged into the one there;"
            ' anything else replaces. Such as {"name": "Anna", "pets": ["Tofu"], "old_job": null}.',
        ),
    ]
    expected_version: Annotated[
        int | None,
        Field(ge=0, description="version of get_profile: the update is refused if the profile has changed since."),
    ] = None
