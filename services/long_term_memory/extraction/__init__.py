"""Extraction: finds facts and slots of the profile in what was said, by an LLM, in the background."""
