"""Benchmarks: they measure and print, and never fail on a time.

They measure as the workers run, with one OpenMP thread, which has to be said before numpy or the embedder is loaded.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
