"""gRPC over HTTP/2 on asyncio: a sans-IO core (connection, hpack, messages), a server, a client."""

from .head import Method, StreamHandler
from .limits import Limits
from .server import Server

__all__ = ["Limits", "Method", "Server", "StreamHandler"]
