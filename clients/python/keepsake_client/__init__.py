"""Client of Keepsake, the long-term memory of Redis chat pipelines."""

from importlib.metadata import version

from keepsake_client.async_client import AsyncClient
from keepsake_client.client import Client
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

__all__ = [
    "AsyncClient",
    "Client",
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
