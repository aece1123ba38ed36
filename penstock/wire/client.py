"""The calling side of the data plane: one peer, calls as bytes. At home in penstock/wire/http2."""

from penstock.wire.http2.client import SERVICE, ConnectionLost, Peer

__all__ = ["SERVICE", "ConnectionLost", "Peer"]
