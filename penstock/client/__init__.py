"""The SDK: `AsyncClient` and `Client`, the same calls with and without await.

Needs grpcio and protobuf only. NumPy is used where it is installed; OpenTelemetry where the caller already uses it.
Everything public raises the classes of `penstock.errors`.
"""

from penstock.client.aio import AsyncClient
from penstock.client.payload import InferRequest, Tensor
from penstock.client.result import InferResult, StreamReply
from penstock.client.sync import Client
from penstock.client.upload import Progress

__all__ = ["AsyncClient", "Client", "InferRequest", "InferResult", "Progress", "StreamReply", "Tensor"]
