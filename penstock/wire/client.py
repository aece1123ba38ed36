"""The calling side of the data plane: one peer, calls as bytes. At home in penstock/wire/http2."""

from penstock.wire.http2.client import SERVICE, ConnectionLost, Peer
from penstock.wire.http2.client_stream import ClientStream
from penstock.wire.http2.hpack import Field
from penstock.wire.http2.messages import write_timeout

__all__ = ["SERVICE", "ClientStream", "ConnectionLost", "Field", "Peer", "write_timeout"]
