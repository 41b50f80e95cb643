"""Parts that the benchmarks share: the stack under test, the load generator, statistics, tables."""
