"""What one connection may cost, and how often a peer may be a nuisance: numbers, and the bucket that counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

HEADER_TABLE_BYTES: Final = 4096
"""Dynamic table of either direction (RFC 7541, 4.2); the protocol's default."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds. The defaults suit a public port that carries tensors.

    stream_window, connection_window: what a peer may have under way; kept full while messages are accepted.
    calls_at_once: calls of one connection that are begun in a turn of the loop, before those of others.
    max_buffered: request bytes of one connection that are held at a time, whether arriving, queued or being served.
    resets, controls, crumbs: burst of streams given up, of SETTINGS and PING, of DATA frames with nearly nothing in
    them; each has its own rate of recovery. max_message: of one gRPC message, after its prefix.
    """

    max_frame: int = 1 << 20
    max_header_block: int = 16 << 10
    max_header_list: int = 16 << 10
    max_header_fields: int = 128
    max_continuations: int = 8
    max_streams: int = 256
    calls_at_once: int = 8
    stream_window: int = 8 << 20
    connection_window: int = 64 << 20
    max_message: int = 80 << 20
    max_buffered: int = 256 << 20
    resets: int = 1000
    resets_per_second: float = 200.0
    controls: int = 1000
    controls_per_second: float = 200.0
    crumbs: int = 10_000
    crumbs_per_second: float = 10_000.0
    handshake_seconds: float = 10.0
    keepalive_seconds: float = 60.0
    keepalive_timeout: float = 20.0
    stall_seconds: float = 60.0
    max_age: float = 3600.0
    max_age_grace: float = 60.0


class Budget:
    """A bucket of `burst` tokens that fills again at `rate` per second."""

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, burst: float, rate: float, now: float) -> None:
        self._burst, self._rate = burst, rate
        self._left, self._at = burst, now

    def take(self, now: float) -> bool:
        """One token; False when there is none."""
        if self._left < 1:
            self._left = min(self._burst, self._left + (now - self._at) * self._rate)
            self._at = now
            if self._left < 1:
                return False
        elif self._left >= self._burst:
            self._at = now
        self._left -= 1
        return True

    def give(self, tokens: float = 1.0) -> None:
        """Gives tokens back: for work that was worth it."""
        left = self._left + tokens
        self._left = left if left < self._burst else self._burst
