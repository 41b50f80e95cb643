"""Turn records: what a search found and why, and what a reply was made of; one entry each of the stream `ltm:turns`.

`docs/contract.md` documents the stream. What writes the records is the program that answered the search or replied.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from keepsake_client.fields import WireModel

# Every process imports these models for `LTMResponse`, and hardly any validates one of its own: `defer_build`.

#: A stream of `TurnRecord`s.
TURNS_STREAM: Final = "ltm:turns"
#: The field of its entries that holds the record.
TURN_FIELD: Final = "turn"
#: The best memories of a search that are explained, returned or not.
CANDIDATES: Final = 20

#: What became of a candidate: returned; with a score below `min_score`; behind the last place of `limit`; a fact that
#: goes with a message that is returned, in its `metadata.facts`; a message that a returned fact says; or in the words
#: of a better one.
Verdict = Literal["returned", "below_min_score", "over_limit", "with_message", "said_by_fact", "same_text"]


class Candidate(WireModel, defer_build=True):
    """One memory that a search ranked among the best.

    Attributes:
        content: its beginning; None where contents are not recorded.
        parts: of its evidence, in log-odds: meaning, words, session, utterance, recency.
        timestamp: when it was said, in seconds since 1970.
        kind: `message` or `fact`.
        message_id: of the message that it is, where its publisher gave one.
    """

    id: str
    content: str | None = None
    score: float
    parts: dict[str, float] = Field(default_factory=dict)
    verdict: Verdict
    source: str = "user"
    timestamp: float
    kind: str = "message"
    session_id: str | None = None
    message_id: str | None = None


class Cut(WireModel, defer_build=True):
    """Where the results of a search end, and what was left out before.

    Attributes:
        min_score, limit: of the search, or their defaults.
        ranked: how many memories were compared with the query.
        filtered: how many more the search's filters leave out, superseded facts among them.
        echoes: how many more are the query itself, said or asked before.
        partial: the query was not embedded for want of time: memories without one of its words were not ranked.
    """

    min_score: float
    limit: int
    ranked: int
    filtered: int = 0
    echoes: int = 0
    partial: bool = False


class PromptMessage(WireModel, defer_build=True):
    """One message of a prompt, in the form of OpenAI's chat completions."""

    role: str
    content: str


class TurnRecord(WireModel, defer_build=True):
    """What a search found, or what a reply was made of.

    Without contents (`LTM_TURNS=ids`) `query`, `text`, `prompt`, `reply` and the contents of candidates are None.

    Attributes:
        kind: a search or context that was answered, or a reply.
        at: when, in seconds since 1970.
        user: the user id or, with LTM_LOG_USER_IDS=false, its hash.
        message_id: of the user's message that was replied to.
        request_id: of the search; of a reply, of the one that it was made with.
        type: of a search: `search` or `context`.
        options: of a search, what was asked for besides the query.
        candidates: of a search, the best first.
        text: what the user said.
        prompt: what the model got.
        reply_message_id: of the reply's own event, where what replied has chosen it.
        model: what replied.
        remember: False where the reply is not to be remembered.
        shortened: something was too long for the record, and is cut or left out.
    """

    kind: Literal["search", "reply"]
    at: float
    user: str = ""
    message_id: str | None = None
    request_id: str | None = None
    task_id: str | None = None
    type: str | None = None
    query: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    candidates: list[Candidate] = Field(default_factory=list)
    cut: Cut | None = None
    text: str | None = None
    prompt: list[PromptMessage] | None = None
    reply: str | None = None
    reply_message_id: str | None = None
    model: str | None = None
    remember: bool = True
    shortened: bool = False
