"""FiguresThread: publishes the figures of extraction in Redis, for who has no access to PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol

import redis
import structlog

from services.long_term_memory.extraction.report import ExtractionReport, SetAside
from services.runtime.extraction_figures import MAX_SET_ASIDE, ExtractionFigures, SetAsideMessage, publish_figures
from services.runtime.logging import user_id_hasher
from services.runtime.periodic import PeriodicThread
from services.runtime.settings import Settings

INTERVAL_S: Final = 5.0

log = structlog.get_logger()


class Reports(Protocol):
    """What tells how extraction is, as `ExtractionService` does."""

    def report(self) -> ExtractionReport:
        """What waits, and whether it works."""

    def newest_set_aside(self, limit: int) -> list[SetAside]:
        """The messages that were set aside last."""


class FiguresThread(PeriodicThread):
    """Publishes the figures at an interval, while Redis takes them.

    Args:
        client: connects to the pipeline's Redis.
        count_failure: called where they could not be read, other than from a database that does not answer.
    """

    def __init__(
        self,
        extraction: Reports,
        client: redis.Redis,
        settings: Settings,
        count_failure: Callable[[], None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        super().__init__("extraction-figures", self._publish, "extraction_figures_failed", count_failure, interval_s)
        self._extraction = extraction
        self._client = client
        self._settings = settings
        self._shown = user_id_hasher(settings)

    def _publish(self) -> None:
        report = self._extraction.report()
        aside = self._extraction.newest_set_aside(MAX_SET_ASIDE) if report.set_aside else []
        figures = ExtractionFigures(
            at=datetime.now(UTC),
            state=report.state,
            since=report.since,
            reason=report.reason,
            messages=report.messages,
            users=report.users,
            oldest=report.oldest,
            set_aside=report.set_aside,
            newest_set_aside=[
                SetAsideMessage(
                    user=self._shown(message.user_id),
                    agent_id=message.agent_id,
                    memory_id=message.memory_id,
                    said_at=message.said_at,
                    reason=message.reason,
                )
                for message in aside
            ],
            calls=report.calls,
            tokens=report.tokens,
            tokens_per_day=self._settings.ltm_extract_tokens_per_day,
            tokens_per_user=self._settings.ltm_extract_tokens_per_user,
        )
        try:
            publish_figures(self._client, figures)
        except redis.RedisError:
            log.debug("extraction_figures_not_published", exc_info=True)  # the heartbeats and others tell of an outage
