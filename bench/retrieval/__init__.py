"""Benchmarks of retrieval quality: recall@k and hit@k on conversations."""
