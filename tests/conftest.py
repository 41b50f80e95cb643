"""For all tests: hypothesis looks for wrong answers, not for slow ones, tracebacks are plain, no telemetry is sent."""

from __future__ import annotations

import structlog
from hypothesis import HealthCheck, settings

# It switches Mem0's telemetry off, which must happen before any test module imports Mem0.
import services.long_term_memory

# On a loaded machine an example may take any time; the examples that failed before are not shared.
assert services.long_term_memory
settings.register_profile(
    "keepsake", max_examples=50, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("quick", settings.get_profile("keepsake"), max_examples=15)  # for every other Python
settings.load_profile("keepsake")

# Where no log is configured: structlog's default tracebacks have colours and all locals, and take 0.2 s and more.
*processors, _ = structlog.get_config()["processors"]
structlog.configure([*processors, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)])
