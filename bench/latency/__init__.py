"""Benchmarks of latency, throughput, start-up time and scale."""
