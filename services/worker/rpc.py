"""The worker's one gRPC service: the inference protocol, carried by penstock.wire."""

from __future__ import annotations

from typing import Final

from penstock.kit.service import Chassis
from penstock.wire.client import SERVICE
from penstock.wire.server import service_handler

from .inference import Inference

DEFAULT_TIMEOUT: Final = 60.0
"""Seconds granted to a call that brings no deadline."""


def register(chassis: Chassis, inference: Inference) -> None:
    """Puts the protocol on the process's server."""
    handlers = inference.handlers
    chassis.server.add_generic_rpc_handlers(
        (service_handler(handlers, stream_infer=handlers["ModelInfer"], default_timeout=DEFAULT_TIMEOUT),)
    )
    chassis.reflect([SERVICE])
