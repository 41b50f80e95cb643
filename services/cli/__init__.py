"""The command `ltm`."""

from services.cli.app import main

__all__ = ["main"]
