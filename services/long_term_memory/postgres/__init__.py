"""Persistence in PostgreSQL with pgvector: pool, schema, store, history."""
