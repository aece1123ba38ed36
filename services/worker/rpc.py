"""The worker's one gRPC service: the inference protocol, carried by penstock.wire."""

from __future__ import annotations

from typing import Final

from penstock.kit.service import Chassis
from penstock.wire.client import SERVICE
from penstock.wire.server import Limits, inference_methods

from .inference import Inference

DEFAULT_TIMEOUT: Final = 60.0
"""Seconds granted to a call that brings no deadline."""

LIMITS: Final = Limits(
    max_streams=8192, calls_at_once=8192, max_buffered=1 << 30, resets=100_000, resets_per_second=20_000.0
)
"""What one connection may cost. A gateway sends everything that it has for this worker over one, and gives up streams
as often as its own callers do; what it sends together had better meet in one batch."""


def register(chassis: Chassis, inference: Inference) -> None:
    """Puts the protocol on the process's port."""
    handlers = inference.handlers
    chassis.serve_inference(
        inference_methods(
            handlers,
            direct={"ModelInfer": inference.direct},
            stream_infer=handlers["ModelInfer"],
            default_timeout=DEFAULT_TIMEOUT,
        )
    )
    chassis.reflect([SERVICE])
