"""The environment of the stack's processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from services.runtime.settings import SET_BY_UP
from services.stack.addresses import Addresses
from services.stack.data_directory import DataDirectory

_KEYS: Final = "LTM_GATEWAY_KEYS"


def child_environment(environment: Mapping[str, str], addresses: Addresses, directory: DataDirectory) -> dict[str, str]:
    """The environment of every process of a stack: that of `ltm up`, with the stack's addresses.

    Args:
        directory: has the gateway's keys, where no setting names another file.
    """
    chosen = {
        **({} if environment.get(_KEYS) else {_KEYS: str(directory.keys), f"{_KEYS}_OPTIONAL": "true"}),
        **{name.upper(): str(value) for name, value in addresses.settings.items()},
    }
    return {
        **environment,
        **_absolute(environment, _KEYS, "LTM_GATEWAY_TOKEN_PUBLIC_KEY"),
        **chosen,
        SET_BY_UP: ",".join(name for name, value in chosen.items() if environment.get(name) != value),
        # On a busy machine the embedder is 20 times slower with more than one thread per process.
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        # glibc keeps freed blocks: after a few messages of 20 MB the adapters held 199 MB, with these settings 41.
        "MALLOC_MMAP_THRESHOLD_": "1000000",
        "MALLOC_TRIM_THRESHOLD_": "10000000",
    }


def _absolute(environment: Mapping[str, str], *variables: str) -> dict[str, str]:
    """The variables that are set to paths: the processes have a working directory of their own."""
    return {name: str(Path(path).absolute()) for name in variables if (path := environment.get(name))}
