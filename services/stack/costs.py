"""Costs of a stack, as measured: CPU time, bytes and memory, each with the command that measured it.

docs/capacity.md has them too; `services/stack/capacity.py` computes with them.
"""

from __future__ import annotations

from typing import Final

from services.stack.processes import ADAPTERS, CHAT, GATEWAY, INDEXER, MEMORY, POSTGRES, REDIS, WORKER, WRITER

#: The processor of the figures below; another one is slower or faster as a whole.
MEASURED_ON: Final = "an AMD EPYC (family 26) with AVX-512 VNNI, two cores of a virtual machine"
#: The dimensions of the default embedder's vectors. Another embedder's own cost is not in the figures.
DEFAULT_DIMENSIONS: Final = 384

# CPU milliseconds, by `python -m bench.latency.costs`: of a search of a user with FEW memories, and with MANY.
FEW: Final = 100
MANY: Final = 2_000
SEARCH_MS: Final = {WORKER: (11.1, 12.1), ADAPTERS: (1.0, 1.0), REDIS: (1.1, 1.1), POSTGRES: (0.9, 2.7)}
#: The part of a search in the worker that is the default embedder's: `bench.latency.roundtrip`, docs/benchmarks.md.
SEARCH_EMBEDDING_MS: Final = 4.5
MESSAGE_MS: Final = {INDEXER: 6.7, ADAPTERS: 0.6, REDIS: 0.4, POSTGRES: 1.0}
#: The part of a message in the indexer that is the default embedder's: `bench.latency.indexing`, docs/benchmarks.md.
MESSAGE_EMBEDDING_MS: Final = 3.4
#: Of a message that a user sends through the memory service and chat-ai answers, its model not included.
TURN_MS: Final = {MEMORY: 1.6, CHAT: 2.7, REDIS: 0.1}
#: Of a search by HTTP, beyond one on the wire.
HTTP_MS: Final = {GATEWAY: 3.1}

# Bytes, by the same command.
WAITING_MESSAGE: Final = 620
CONVERSATION_MESSAGE: Final = 330
TRACE_RECORD: Final = 360
TURN_RECORD: Final = 7_800
READ_OF_A_MEMORY: Final = 97
WAL_OF_A_MESSAGE: Final = 4_300
#: To and from Redis.
NETWORK_OF_A_SEARCH: Final = 25_000
NETWORK_OF_A_MESSAGE: Final = 4_900
#: What the ten best memories of a search take on their way from PostgreSQL, and a message on its way to it.
SHOWN_MEMORIES: Final = 10 * 1_024
STORED_MESSAGE: Final = 2_048

#: Of a memory without its vectors, table and indexes, and for each dimension: `python -m bench.latency.growth`.
#: A vector of two bytes a dimension is in the table, in the index that searches read, and for one memory in seven in
#: that of samples; the indexes' pages are half full where memories come one by one.
MEMORY_TABLE: Final = 1_366
MEMORY_INDEXES: Final = 2_263
#: Of a memory in a backup: docs/deployment.md.
MEMORY_IN_A_BACKUP: Final = 950

# Megabytes of a process alone on its host (RSS), by `python -m bench.latency.costs`.
PROCESS_MB: Final = {WORKER: 210, WRITER: 123, INDEXER: 209, ADAPTERS: 66, MEMORY: 57, CHAT: 82, GATEWAY: 134}
