"""Dramatiq middleware of the workers."""
