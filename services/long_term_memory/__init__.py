"""Long-term memory: Mem0 on PostgreSQL with pgvector, and profiles. The only importer of mem0 and psycopg.

Mem0 reads two variables when it is imported, so they are set here, before any room of this package can import it: its
telemetry and notices call out unless they are switched off, and it writes to its directory, which a read-only home
refuses. tests/unit/test_mem0.py fails when this no longer keeps it quiet.
"""

import os
import tempfile
from pathlib import Path

os.environ["MEM0_TELEMETRY"] = "False"
os.environ.setdefault("MEM0_DIR", str(Path(tempfile.gettempdir()) / f"keepsake-mem0-{os.getuid()}"))
