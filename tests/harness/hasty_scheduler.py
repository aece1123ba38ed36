"""A scheduler by which a version stays for a moment where it stays for half a minute, so that a test sees many come and
go: `python -m tests.harness.hasty_scheduler`, with the flags of services.scheduler."""

from __future__ import annotations

import sys

from services.scheduler import residency
from services.scheduler.__main__ import main

IDLE, RESIDENCE = 1.5, 2.0

if __name__ == "__main__":
    vars(residency).update(IDLE=IDLE, RESIDENCE=RESIDENCE)
    sys.exit(main())
