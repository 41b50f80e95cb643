"""How long an actor may run, in milliseconds.

Past its limit it is interrupted at its next line of Python; while C code runs (the embedder, a wait for PostgreSQL) it
is not. PostgreSQL's statement_timeout and the providers' own time-outs end those waits.
"""

from __future__ import annotations

#: Nobody waits for a search longer than this, and its thread is wanted.
INTERACTIVE_TIME_LIMIT_MS = 5_000
WRITE_TIME_LIMIT_MS = 30_000
#: An LLM that extracts facts may take its time.
INDEX_TIME_LIMIT_MS = 120_000
