"""Text embeddings: providers, query cache, calibration, query projection."""
