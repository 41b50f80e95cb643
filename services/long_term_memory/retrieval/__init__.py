"""Retrieval: candidates, features of queries and memories, ranking."""
