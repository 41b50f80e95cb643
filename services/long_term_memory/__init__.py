"""Long-term memory: Mem0 on PostgreSQL with pgvector, and profiles. The only importer of mem0 and psycopg.

Mem0 reads two variables when it is imported, so they are set here, before any room of this package can import it: its
telemetry and notices call out unless they are switched off, and it writes to its directory, which a read-only home
refuses. tests/unit/test_mem0.py fails when this no longer keeps it quiet.
"""

import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

os.environ["MEM0_TELEMETRY"] = "False"
os.environ.setdefault("MEM0_DIR", str(Path(tempfile.gettempdir()) / f"keepsake-mem0-{os.getuid()}"))

# Mem0 imports the client of its default vector store, which we have no use for: 1.0 of the 2.5 s of CPU that a worker
# needs to be back after a crash, and 37 MB of its memory. tests/unit/test_mem0.py fails when Mem0 wants more of it.
if "qdrant_client" not in sys.modules:
    _placeholder = ModuleType("qdrant_client")
    _placeholder.QdrantClient = type("QdrantClient", (), {})  # type: ignore[attr-defined]
    sys.modules["qdrant_client"] = _placeholder
