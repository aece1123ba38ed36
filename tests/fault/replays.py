"""Answers that come twice, late or in another order: a wire that repeats itself. Pure: bytes in, bytes out.

It stands between a server and its client, on the server's words, and knows HTTP/2's frames. An answer is all frames of
one stream, from its first to the one that ends it. Header blocks that move no decoder's table can be said again
anywhere; those of Penstock's servers are such.
"""

from __future__ import annotations

import random
from collections import deque

from penstock.wire.http2 import frames as f

ANSWERS = (f.HEADERS, f.DATA)
KEPT = 200
"""Answers that may come again later."""


class Replayer:
    """One connection. share: of answers after which something comes again, and of those that change places with the
    next; most: answers that come again at one time. replayed: frames that came again."""

    def __init__(self, chance: random.Random, *, share: float = 0.5, most: int = 1) -> None:
        self._chance, self._share, self._most = chance, share, most
        self._rest = b""
        self._open: dict[int, bytes] = {}
        self._old: deque[bytes] = deque(maxlen=KEPT)
        self._held = b""
        self.replayed = self.swapped = 0

    def feed(self, data: bytes) -> bytes:
        """What goes on in place of these bytes."""
        self._rest += data
        out = bytearray()
        at = 0
        while len(self._rest) - at >= 9:
            high, low, kind, flags, stream = f.HEAD.unpack_from(self._rest, at)
            end = at + 9 + (high << 16 | low)
            if end > len(self._rest):
                break
            # Nobody waits for an answer that nothing follows.
            out += self._frame(self._rest[at:end], kind, flags, stream, may_hold=end < len(self._rest))
            at = end
        self._rest = self._rest[at:]
        return bytes(out)

    def _frame(self, frame: bytes, kind: int, flags: int, stream: int, *, may_hold: bool) -> bytes:
        if kind not in ANSWERS or not stream:
            return frame
        answer = self._open.pop(stream, b"") + frame
        if not flags & f.END_STREAM:
            self._open[stream] = answer
            return b""
        out = answer
        if self._held:
            out, self._held = answer + self._held, b""
            self.swapped += 1
        elif may_hold and self._chance.random() < self._share / 4:
            self._held, out = answer, b""
        self._old.append(answer)
        if out and self._chance.random() < self._share:
            again = [self._chance.choice(self._old) for _ in range(self._chance.randint(1, self._most))]
            # What is held must come for the first time first: else the copy would be the answer.
            again = [each for each in again if each != self._held]
            self.replayed += sum(map(_frames, again))
            out += b"".join(again)
        return out


def _frames(answer: bytes) -> int:
    count = at = 0
    while at < len(answer):
        high, low, _, _, _ = f.HEAD.unpack_from(answer, at)
        at += 9 + (high << 16 | low)
        count += 1
    return count
