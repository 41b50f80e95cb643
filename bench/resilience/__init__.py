"""Fault injection, fuzzing and endurance."""
