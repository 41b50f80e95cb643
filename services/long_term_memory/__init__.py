"""Long-term memory: Mem0 on PostgreSQL with pgvector, and profiles. The only importer of mem0 and psycopg.

Mem0 reads two environment variables when it is imported, so they are set here, before any module of this package
imports it: its telemetry and notices connect to the internet unless they are disabled, and it writes a file with an id
of its own, unless it cannot. tests/unit/test_mem0.py fails when this no longer suffices.
"""

import os
import sys
from types import ModuleType

os.environ["MEM0_TELEMETRY"] = "False"
# A directory that there is and that takes no files. Mem0 needs the directory, and goes on without the file.
os.environ.setdefault("MEM0_DIR", "/dev/fd")

# Mem0 imports the client of its default vector store, which is not used here: 1.0 of the 2.5 s of CPU that a worker
# needs to start after a crash, and 37 MB of its memory. tests/unit/test_mem0.py fails when Mem0 uses more of it.
if "qdrant_client" not in sys.modules:
    _placeholder = ModuleType("qdrant_client")
    _placeholder.QdrantClient = type("QdrantClient", (), {})  # type: ignore[attr-defined]
    sys.modules["qdrant_client"] = _placeholder
