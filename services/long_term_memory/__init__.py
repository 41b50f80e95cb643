"""Long-term memory: Mem0 on PostgreSQL with pgvector, and profiles. The only importer of mem0 and psycopg.

Mem0 reads two environment variables when it is imported, so they are set here, before any module of this package
imports it: its telemetry and notices connect to the internet unless they are disabled, and it writes a file with an id
of its own, unless it cannot. tests/unit/test_mem0.py fails when this no longer suffices. ONNX Runtime's wheels report
to its vendor, too, from a thread and a file below ~/.cache, unless they are told not to before it is initialized;
tests/unit/test_onnx_e5.py looks for the file.
"""

import os
import sys
from types import ModuleType

os.environ["MEM0_TELEMETRY"] = "False"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# A directory that there is and that takes no files. Mem0 needs the directory, and goes on without the file.
os.environ.setdefault("MEM0_DIR", "/dev/fd")

#: What Mem0 imports and is not used here, with the names that it takes from there. The client of its default vector
#: store took 1.0 of the 2.5 s of CPU that a worker needs to start after a crash, and 37 MB of its memory; those of its
#: telemetry and of its cloud 7 MB. tests/unit/test_mem0.py fails when Mem0 uses more of them.
_PLACEHOLDERS = {
    "qdrant_client": ("QdrantClient",),
    "posthog": ("Posthog",),
    "mem0.client.main": ("AsyncMemoryClient", "MemoryClient"),
}
for _module, _names in _PLACEHOLDERS.items():
    if _module not in sys.modules:
        sys.modules[_module] = ModuleType(_module)
        vars(sys.modules[_module]).update({_name: type(_name, (), {}) for _name in _names})
