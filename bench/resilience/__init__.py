"""Fault injection, fuzzing and soak runs on a real stack."""
