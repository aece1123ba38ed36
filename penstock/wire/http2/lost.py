"""How a call fails when its connection does. Apart from the rest, because it is interpreted where that is compiled
(docs/decisions/0023-compiled-core.md)."""

from __future__ import annotations

from penstock import errors


class ConnectionLost(errors.Unavailable):
    """The connection failed before the peer answered: nothing is known of what it did. Inference may be retried."""


class NotTaken(ConnectionLost):
    """The peer did not take the request: it can be sent again, whatever it is."""
