"""`/v1/profile`: the user's profile, read and patched by its version."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Header, Query, Request, Response
from keepsake_client.errors import InvalidMessage, KeepsakeError, RequestFailed
from keepsake_client.protocol import JSONObject, KeptId, LTMResponse

from services.gateway.access import Right
from services.gateway.api.models import ProfileAnswer
from services.gateway.api.wire import OfUser, answered, ask, problems, with_example
from services.gateway.app import CallerOf, GatewayOf
from services.gateway.idempotency import IdempotencyKey, attempt
from services.gateway.problems import JSONResponse

router = APIRouter(tags=["profile"])

MERGE_PATCH: Final = "application/merge-patch+json"
_EXAMPLE = {"user_profile": {"name": "Anna"}, "profile_version": 3, "profile_updated_at": 1712345678.25}
_FIELDS: Final = ("user_profile", "profile_version", "profile_updated_at")


class PreconditionFailed(KeepsakeError):
    """The profile is not at the version that `If-Match` names."""

    code = "precondition_failed"


class ProfileQuery(OfUser):
    """Whose profile: the user's own, or the one that a character keeps of the user."""

    agent_id: KeptId | None = None


@router.get(
    "/profile",
    response_model=ProfileAnswer,
    responses={
        **problems(),
        304: {"description": "It is at the version that If-None-Match names."},
        **with_example(200, _EXAMPLE, "The profile; its ETag is its version."),
    },
)
async def get(
    request: Request,
    caller: CallerOf,
    gateway: GatewayOf,
    query: Annotated[ProfileQuery, Query()],
    if_none_match: Annotated[str | None, Header(description="The ETag of the profile that you have.")] = None,
) -> Response:
    """The profile of a user; an empty one, version 0, where there is none."""
    caller.check(Right.READ)
    user_id, data = caller.user_of(query.user_id), {"agent_id": caller.agent_of(query.agent_id)}
    response = await ask(request, gateway, "profile_get", user_id, data, query.deadline_ms)
    etag = _etag(response)
    if if_none_match is not None and etag in re.findall(r'"[^"]*"', if_none_match):
        return Response(status_code=304, headers={"ETag": etag})
    return answered(response, *_FIELDS, headers={"ETag": etag})


@router.patch(
    "/profile",
    response_model=ProfileAnswer,
    responses={
        **problems(412, body=True, idempotent=True),
        **with_example(200, _EXAMPLE, "The whole profile after the patch."),
    },
)
async def patch(
    request: Request,
    caller: CallerOf,
    gateway: GatewayOf,
    query: Annotated[ProfileQuery, Query()],
    updates: Annotated[JSONObject, Body(media_type=MERGE_PATCH, examples=[{"name": "Anna", "age": None}])],
    if_match: Annotated[
        str | None, Header(description="The ETag of the profile that the patch is for; * for any.", examples=['"3"'])
    ] = None,
    key: IdempotencyKey = None,
) -> JSONResponse:
    """Apply a JSON Merge Patch (RFC 7386) to the profile; null removes a key."""
    caller.check(Right.WRITE)
    user_id, agent = caller.user_of(query.user_id), {"agent_id": caller.agent_of(query.agent_id)}
    data: dict[str, Any] = {"updates": updates, "expected_version": _version(if_match), **agent}
    async with attempt(request, gateway.redis, caller, key, data, user_id, query.deadline_ms) as this:
        if this.done is not None:  # not again: it would undo what was changed since
            response = await ask(request, gateway, "profile_get", user_id, agent, query.deadline_ms)
            return answered(response, *_FIELDS, headers={"ETag": _etag(response)})
        try:
            response = await ask(request, gateway, "profile_update", user_id, data, query.deadline_ms, this.request_id)
        except RequestFailed as error:
            if error.code != "conflict":
                raise
            raise PreconditionFailed("the profile is at another version: read it again, and send its ETag") from error
        await this.complete({})
    return answered(response, *_FIELDS, headers={"ETag": _etag(response)})


def _etag(response: LTMResponse) -> str:
    return f'"{response.profile_version or 0}"'


def _version(if_match: str | None) -> int | None:
    """The version that an `If-Match` names; None for any."""
    if if_match is None or if_match.strip() == "*":
        return None
    if (found := re.fullmatch(r'\s*"([0-9]{1,18})"\s*', if_match)) is None:
        raise InvalidMessage('If-Match: must be one ETag of this profile, such as "3"')
    return int(found[1])
