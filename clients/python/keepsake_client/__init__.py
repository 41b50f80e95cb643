"""Client of Keepsake, the long-term memory of Redis chat pipelines."""

import logging
from importlib.metadata import version

from keepsake_client.async_client import AsyncClient
from keepsake_client.client import Client
from keepsake_client.context import Context
from keepsake_client.errors import (
    Disabled,
    InvalidJSON,
    InvalidMessage,
    KeepsakeError,
    MessageTooLarge,
    RequestFailed,
    RequestTimeout,
    Unavailable,
    UnknownRequestType,
)
from keepsake_client.protocol import LTMResponse, Memory

__version__ = version("keepsake-client")

# A library leaves output to the application: without this, Python prints warnings of unconfigured logging to stderr.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "AsyncClient",
    "Client",
    "Context",
    "Disabled",
    "InvalidJSON",
    "InvalidMessage",
    "KeepsakeError",
    "LTMResponse",
    "Memory",
    "MessageTooLarge",
    "RequestFailed",
    "RequestTimeout",
    "Unavailable",
    "UnknownRequestType",
]
