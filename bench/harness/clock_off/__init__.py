"""Modules of a process whose host's clock is off."""
