"""The actors of profiles: parse, one service call, return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dramatiq

from services.contract import LTMRequest, ProfileUpdateData
from tasks import routes
from tasks.limits import INTERACTIVE_TIME_LIMIT_MS, WRITE_TIME_LIMIT_MS
from tasks.retries import NO_RETRY, WHILE_ASKED

if TYPE_CHECKING:
    from services.long_term_memory.profile_service import Profile
    from tasks.resources import Resources


def declare(broker: dramatiq.Broker, resources: Resources) -> None:
    """Declare `profile.get` and `profile.update` on the broker."""
    get, update = routes.BY_TYPE["profile_get"], routes.BY_TYPE["profile_update"]

    @dramatiq.actor(
        broker=broker,
        actor_name=get.actor,
        queue_name=get.queue,
        retry=NO_RETRY,
        time_limit=INTERACTIVE_TIME_LIMIT_MS,
    )
    def profile_get(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        return _in_response(resources.profiles.get(LTMRequest.model_validate(request).user_id))

    @dramatiq.actor(
        broker=broker,
        actor_name=update.actor,
        queue_name=update.queue,
        retry=WHILE_ASKED,
        time_limit=WRITE_TIME_LIMIT_MS,
    )
    def profile_update(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        asked = LTMRequest.model_validate(request)
        data = ProfileUpdateData.model_validate(asked.data)
        profile = resources.profiles.update(asked.user_id, data.updates, data.expected_version, asked.request_id)
        return _in_response(profile)


def _in_response(profile: Profile) -> dict[str, Any]:
    return {
        "user_profile": profile.values,
        "profile_version": profile.version,
        "profile_updated_at": profile.updated_at and profile.updated_at.timestamp(),
    }
