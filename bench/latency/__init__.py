"""Benchmarks of latency, throughput, start-up time and scale."""

# Switches Mem0's telemetry off, which must happen before a module of this package imports Mem0.
import services.long_term_memory

assert services.long_term_memory
