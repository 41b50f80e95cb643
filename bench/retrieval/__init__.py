"""Retrieval quality benchmarks."""
