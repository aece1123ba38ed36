"""Penstock serves large models as a service. Installed: the SDK, the command and the floor that services stand on.

`Client` and `AsyncClient` are loaded when they are first named, so that `import penstock.errors` does not load gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.client.aio import AsyncClient
    from penstock.client.payload import InferRequest, Tensor
    from penstock.client.result import InferResult
    from penstock.client.sync import Client
    from penstock.v1.manifest_pb2 import Placement
    from penstock.v1.models_pb2 import Scaling

__all__ = [
    "AsyncClient",
    "Client",
    "InferRequest",
    "InferResult",
    "PenstockError",
    "Placement",
    "Scaling",
    "Tensor",
    "__version__",
]

__version__ = "0.1.0"

_LAZY = {
    "AsyncClient": "penstock.client.aio",
    "Client": "penstock.client.sync",
    "InferRequest": "penstock.client.payload",
    "InferResult": "penstock.client.result",
    "Placement": "penstock.v1.manifest_pb2",
    "Scaling": "penstock.v1.models_pb2",
    "Tensor": "penstock.client.payload",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
