"""The serving side of the data plane: the inference protocol as gRPC over HTTP/2, bytes in and bytes out.

The parts are at home in penstock/wire/http2; services take them from here.
"""

from penstock.wire.http2.forward import Forwarding
from penstock.wire.http2.head import Method
from penstock.wire.http2.limits import Limits
from penstock.wire.http2.server import KINDS, Server
from penstock.wire.http2.service import inference_methods
from penstock.wire.http2.unix import bound as bound_unix

__all__ = ["KINDS", "Forwarding", "Limits", "Method", "Server", "bound_unix", "inference_methods"]
