"""Instances: the processes of one name, on one host or on several, each with its last heartbeat."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from pydantic import BaseModel

#: Without a heartbeat for this long, an instance counts no longer.
LIVE_FOR_S: Final = 5.0
#: One that ended without saying so is told of for this long.
KEPT_FOR_S: Final = 3_600


class Instances(BaseModel):
    """The instances of one name, as `2 on alpha, 1 on beta, none on gamma for 240 s`.

    Args:
        live: how many have a heartbeat, by host.
        silent: hosts of which none has, each with the seconds since the last heartbeat; not those that were stopped.
    """

    live: dict[str, int] = {}
    silent: dict[str, float] = {}

    def __str__(self) -> str:
        """Empty where there is nothing to tell: one instance."""
        parts = [f"{number} on {host}" for host, number in self.live.items()]
        if sum(self.live.values()) <= 1 and not self.silent:
            return ""
        parts += [f"none on {host} for {seconds:,.0f} s" for host, seconds in self.silent.items()]
        return ", ".join(parts)


def instances_of(members: Any, now: Any) -> Instances:
    """What the sorted set of a name says; nothing where Redis permits no look at it.

    Args:
        members: `host:pid` of each with its last heartbeat, in seconds since 1970 on Redis's clock.
        now: Redis's answer to TIME.
    """
    if isinstance(members, Exception) or isinstance(now, Exception):
        return Instances()
    live: Counter[str] = Counter()
    last: dict[str, float] = {}
    for member, at in sorted(members):
        host = member.decode(errors="replace").rpartition(":")[0]
        since = now[0] + now[1] / 1_000_000 - at
        # One of the future is from before the clock was set back: who lives has sent another one since.
        live[host] += abs(since) <= LIVE_FOR_S
        last[host] = max(0.0, min(last.get(host, since), since))
    return Instances(
        live={host: number for host, number in live.items() if number},
        silent={host: round(last[host], 1) for host, number in live.items() if not number},
    )
