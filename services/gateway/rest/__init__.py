"""The REST bridge: HTTP in front of the handlers that gRPC uses, and management as JSON.

    server (sockets) → connection (order, bounds, back-pressure; head, chunked) → bridge (credential, deadline, errors)
      → inference | management | uploads | pages → codecs: prepared, infer_codec, json_codec, binary, messages, fields

`table` is the one list of routes; what is served (routing) and the OpenAPI document are both made from it.
"""

from .server import serve_rest

__all__ = ["serve_rest"]
