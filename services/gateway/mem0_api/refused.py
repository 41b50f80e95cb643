"""Routes of Mem0's that Keepsake does not support: each is answered 501, with what to use instead."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter

from services.gateway.app import CallerOf
from services.gateway.mem0_api.errors import NotSupported
from services.gateway.problems import JSONResponse

_PROJECTS: Final = "there are no organizations and projects; settings are docs/configuration.md, keys are `ltm key`"
_WEBHOOKS: Final = "there are no webhooks; what happens is on the channels of Redis, see docs/contract.md"
_PROFILES: Final = (
    "profiles are made of what is said, where an LLM is set; their slots are the setting LTM_PROFILE_SLOTS, and"
    " get_profile reads them"
)
_ALL: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")

#: What is refused, by path: the methods, and what there is in its place.
REFUSED: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "/v1/exports/": (("POST",), "an export is made by `ltm export USER`"),
    "/v1/exports/get/": (("POST",), "an export is made by `ltm export USER`"),
    "/v1/summary/": (
        ("POST",),
        "there are no summaries; what a prompt needs is a context, see docs/contract.md",
    ),
    "/v1/feedback/": (("POST",), "feedback changes nothing here: correct the memory by update, or delete it"),
    "/v2/profiles/jobs/": (("GET", "POST"), _PROFILES),
    "/v2/profiles/jobs/{job_id}/": (("GET",), _PROFILES),
    "/v2/profiles/settings/": (("GET", "POST"), _PROFILES),
    "/api/v1/orgs/{rest:path}": (_ALL, _PROJECTS),
    "/api/v1/webhooks/{rest:path}": (_ALL, _WEBHOOKS),
    "/reset": (
        ("POST",),
        "all users at once are not deleted: forget each by delete_users(user_id=…)",
    ),
    "/configure": (("GET", "POST"), "settings are made before the start, see docs/configuration.md"),
}

router = APIRouter(default_response_class=JSONResponse)


def _refuse(path: str, methods: tuple[str, ...], words: str) -> None:
    async def refused(caller: CallerOf) -> JSONResponse:
        raise NotSupported(words)

    refused.__doc__ = f"Not supported: {words}."
    for method in methods:
        name = f"refused_{method.lower()}"
        router.add_api_route(path, refused, methods=[method], name=name)


for _path, (_methods, _words) in REFUSED.items():
    _refuse(_path, _methods, _words)
