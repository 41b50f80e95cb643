"""What the benchmarks share: the stack under test, the load generator, statistics."""
