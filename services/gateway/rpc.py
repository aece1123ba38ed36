"""The gateway's gRPC face: the inference protocol and management, on one port. No decisions.

A message up to the server's limit (80 MiB, penstock/channel.py) arrives; above `max_body_bytes` (64 MiB) the inference
path answers INVALID_ARGUMENT in its own words, and above the server's limit the transport answers RESOURCE_EXHAUSTED.
"""

from __future__ import annotations

from typing import Final

from penstock.kit.service import Chassis
from penstock.wire.client import SERVICE
from penstock.wire.server import Limits, inference_methods

from .control import Control
from .inference import Inference

LIMITS: Final = Limits(max_streams=1024)
"""What one connection of a client may cost."""


def register(chassis: Chassis, inference: Inference, control: Control, *, default_timeout: float) -> None:
    """Puts inference on the data plane and management behind it; default_timeout: seconds for a call without a
    deadline."""
    chassis.serve_inference(
        inference_methods(
            inference.handlers(),
            direct={"ModelInfer": inference.direct},
            stream_infer=inference.infer,
            default_timeout=default_timeout,
        )
    )
    chassis.server.add_generic_rpc_handlers(tuple(control.generic_handlers()))
    chassis.reflect((SERVICE, *control.service_names()))
