"""Backup and restore: all that a stack keeps, in one file."""
