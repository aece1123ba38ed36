"""Several processes that are one service: on the same ports, started, watched and renewed by a supervisor.

The supervisor is what operators see: one pid, one admin port, one exit status. It stands in no request's way: the
kernel spreads connections over the processes, each of which is a whole service process (penstock/kit/service.py).
"""

from penstock.kit.place import supervised
from penstock.kit.supervision.supervisor import cores, supervise

__all__ = ["cores", "supervise", "supervised"]
