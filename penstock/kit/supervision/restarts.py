"""What to do when a process has ended that nobody had asked to. Pure, but for the chance in the pauses."""

from __future__ import annotations

from typing import Final

from penstock.kit.backoff import Backoff

CANNOT_START: Final = 2
"""Exit status of a process that refuses its configuration; it has said why."""
SOUND_SECONDS: Final = 60.0
"""A process that served so long was sound: its end is a new story, not the next of a series."""
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 30.0


def hopeless(status: int, *, made: bool, served: bool) -> bool:
    """Whether a process's end shows that starting it again would change nothing.

    made: it had accepted its configuration; served: some process of the service has been ready. Once one has served,
    the others are worth more than a configuration that went bad since.
    """
    return status == CANNOT_START and not made and not served


class Restarts:
    """The pauses in one place among the processes: growing while each that is put there ends soon."""

    def __init__(self) -> None:
        self._backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)

    def pause(self, served_seconds: float) -> float:
        """Seconds to wait before the next start; served_seconds: how long the one that ended was ready."""
        if served_seconds >= SOUND_SECONDS:
            self._backoff.reset()
        return self._backoff.next()
