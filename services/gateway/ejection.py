"""How long to stay away from something that broke, or is gray. Pure: the time is passed in.

fine ──failed──▶ ejected ──pause over──▶ one probe at a time ──succeeded──▶ fine
                    ▲                            │
                    └────── longer pause ◀──failed┘
"""

from __future__ import annotations


class Ejection:
    """State of one upstream. The probe is an ordinary request; if it fails it is retried elsewhere like any other."""

    __slots__ = ("_base", "_cap", "_failures", "_probing", "_until")

    def __init__(self, base: float = 0.25, cap: float = 8.0) -> None:
        """base: seconds of the first pause, doubled with every failure in a row; cap: seconds of the longest."""
        self._base = base
        self._cap = cap
        self._failures = 0
        self._until = 0.0
        self._probing = False

    @property
    def fine(self) -> bool:
        return self._failures == 0

    def ejected(self, now: float) -> bool:
        """True while requests should go elsewhere: during the pause, and after it while a probe is under way."""
        return self._failures > 0 and (now < self._until or self._probing)

    def started(self, now: float) -> bool:
        """A request goes out; True if it is the probe, whose end must be told by succeeded, failed or left."""
        if self._failures == 0 or now < self._until or self._probing:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        self._failures = 0
        self._probing = False

    def failed(self, now: float) -> bool:
        """True if this failure starts a pause; several requests that break together count once."""
        if self._failures > 0 and now < self._until:
            return False
        self._failures += 1
        # The exponent is bounded so that a thousand failures cannot overflow a float.
        self._until = now + min(self._cap, self._base * 2.0 ** min(self._failures - 1, 32))
        self._probing = False
        return True

    def left(self) -> None:
        """The probe ended without evidence, because its caller left."""
        self._probing = False

    def is_old(self, now: float) -> bool:
        """Whether the pause has been over for long, and nothing was sent since: it says nothing any more."""
        return self._failures > 0 and not self._probing and now - self._until > self._cap


class Gray:
    """State of one replica that turned out gray (pace.py): after each pause it must first answer a greeting, which
    costs no caller anything, and then one ordinary request, well.

    reason: `silent`, `failing` or `slow`.
    """

    __slots__ = ("_ejection", "_greeted", "_greeting", "reason")

    def __init__(self, reason: str, now: float) -> None:
        self.reason = reason
        self._ejection = Ejection(base=1.0, cap=30.0)
        self._ejection.failed(now)
        self._greeted = self._greeting = False

    def avoided(self, now: float) -> bool:
        """True while requests should go elsewhere."""
        return not self._greeted or self._ejection.ejected(now)

    def greets(self, now: float) -> bool:
        """Whether it is to be greeted now; the end must be told by greeted or failed."""
        if self._greeted or self._greeting or self._ejection.ejected(now):
            return False
        self._greeting = True
        return True

    def greeted(self) -> None:
        """It answered the greeting."""
        self._greeted, self._greeting = True, False

    def started(self, now: float) -> bool:
        """A request goes out; True if it is the probe, whose end must be told by failed or left, unless all is well."""
        return self._greeted and self._ejection.started(now)

    def failed(self, now: float) -> None:
        """The greeting or the probe was answered late, with a failure or not at all: a longer pause."""
        self._greeted = self._greeting = False
        self._ejection.failed(now)

    def left(self) -> None:
        """The probe ended without evidence."""
        self._ejection.left()
