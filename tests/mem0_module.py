"""Mem0's clients as their package has them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def mem0_client() -> Iterator[ModuleType]:
    """Mem0's module with its clients, which Keepsake has a placeholder for (services/long_term_memory/__init__.py)."""
    name = "mem0.client.main"
    placeholder = sys.modules.pop(name, None)
    try:
        yield importlib.import_module(name)
    finally:
        if placeholder is not None:
            sys.modules[name] = placeholder
