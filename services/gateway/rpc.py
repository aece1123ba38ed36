"""The gateway's gRPC face: the inference protocol and management, on one port. No decisions.

A message up to the server's limit (80 MiB, penstock/channel.py) arrives; above `max_body_bytes` (64 MiB) the inference
path answers INVALID_ARGUMENT in its own words, and above the server's limit gRPC itself answers RESOURCE_EXHAUSTED.
"""

from __future__ import annotations

import grpc

from penstock.wire.client import SERVICE
from penstock.wire.server import service_handler

from .control import Control
from .inference import Inference


def register(
    server: grpc.aio.Server, inference: Inference, control: Control, *, default_timeout: float
) -> tuple[str, ...]:
    """Adds every service to the server and returns their names; default_timeout: seconds for a call without a
    deadline."""
    handlers = inference.handlers()
    serving = service_handler(handlers, stream_infer=inference.infer, default_timeout=default_timeout)
    server.add_generic_rpc_handlers((serving, *control.generic_handlers()))
    return (SERVICE, *control.service_names())
