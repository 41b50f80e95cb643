"""For all tests: hypothesis looks for wrong answers, never for slow ones, and Mem0 sends no telemetry."""

from __future__ import annotations

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
