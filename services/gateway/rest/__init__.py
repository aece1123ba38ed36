"""The REST bridge: HTTP in front of the handlers that gRPC uses, and management as JSON.

    server (uvicorn) → protocol (bounds) → app (routes) → endpoint (credential, deadline, errors, compression)
      → inference | management | uploads | pages → pure codecs: infer_codec, json_codec, binary, messages, fields

`table` is the one list of routes; the application and the OpenAPI document are both made from it.
"""

from .server import serve_rest

__all__ = ["serve_rest"]
