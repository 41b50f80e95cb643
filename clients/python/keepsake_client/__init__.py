"""Client of Keepsake, the long-term memory of Redis chat pipelines."""

from keepsake_client.async_client import AsyncClient
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
from keepsake_client.protocol import Memory

__all__ = [
    "AsyncClient",
    "Disabled",
    "InvalidJSON",
    "InvalidMessage",
    "KeepsakeError",
    "Memory",
    "MessageTooLarge",
    "RequestFailed",
    "RequestTimeout",
    "Unavailable",
    "UnknownRequestType",
]
