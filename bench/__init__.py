"""Benchmarks of retrieval, latency and resilience: they measure and print, and never fail on a time.

They run with one OpenMP thread, as the workers do; numpy and the embedder read that variable when they are loaded.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
