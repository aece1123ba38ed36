"""The child process of an engine: `python -m services.worker.host.child <descriptor> <parent's pid> [processor...]`.

Reads frames from its end of the socket pair, one at a time, answers each, and ends when the other end closes. It dies
with its worker, is the kernel's first choice when memory runs out, leaves no core file, and refuses to unpickle
whatever a library may try to.
"""

from __future__ import annotations

import array
import ctypes
import faulthandler
import gc
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Any, Final

from penstock.internal.v1 import engine_pb2
from penstock.kit.child import tie_to

from .arena import Arena
from .frames import HEADER, MAX_FRAME, failure_of, pack
from .memory import resident_bytes

_OOM_SCORE: Final = 600
_INT: Final = array.array("i").itemsize


class Child:
    """The loop and what it holds."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._descriptors: list[int] = []
        # By side.
        self._inputs: list[Arena | None] = [None, None]
        self._outputs: list[Arena | None] = [None, None]
        self._runner: Any = None

    def serve(self) -> None:
        """Answers until the worker closes its end; then the engine puts its things away."""
        while (frame := self._frame()) is not None:
            request = engine_pb2.HostRequest.FromString(frame)
            if request.WhichOneof("call") == "arena":
                self._map(request.arena)
            else:
                self._link.sendall(pack(self._response(request)))
        if self._runner is not None:
            with suppress(Exception):
                self._runner.close()

    def _response(self, request: engine_pb2.HostRequest) -> engine_pb2.HostResponse:
        from .runner import Runner, as_penstock_error

        try:
            if request.WhichOneof("call") == "load":
                self._runner = Runner.load(request.load)
                gc.collect()
                ctypes.CDLL(None).malloc_trim(0)  # what loading needed goes back before it is counted
                loaded = engine_pb2.LoadResult(memory_bytes=resident_bytes(), costs=self._runner.costs)
                return engine_pb2.HostResponse(id=request.id, load=loaded)
            if request.WhichOneof("call") == "check":
                self._runner.check()
                return engine_pb2.HostResponse(id=request.id, check=engine_pb2.CheckResult())
            side = request.run.side
            result = self._runner.run(request.id, request.run, self._inputs[side], self._outputs[side])
        except Exception as error:  # the worker gets every failure as an answer; only a crash ends this process
            return engine_pb2.HostResponse(id=request.id, failure=failure_of(as_penstock_error(error)))
        if isinstance(result, int):
            return engine_pb2.HostResponse(id=request.id, need_bytes=result)
        return engine_pb2.HostResponse(id=request.id, run=result)

    def _map(self, call: engine_pb2.ArenaCall) -> None:
        descriptor = self._descriptors.pop(0)
        try:
            arena = Arena(descriptor, call.size_bytes, writable=True)
        finally:
            os.close(descriptor)
        arenas = self._outputs if call.outputs else self._inputs
        old, arenas[call.side] = arenas[call.side], arena
        if old is not None:
            old.close()

    def _frame(self) -> bytes | None:
        """The next frame; None at the end. Descriptors that come with it are put aside."""
        header = self._exactly(HEADER.size)
        if header is None:
            return None
        (size,) = HEADER.unpack(header)
        return self._exactly(size) if size <= MAX_FRAME else None

    def _exactly(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            piece, ancillary, _, _ = self._link.recvmsg(
                size - len(data), socket.CMSG_SPACE(4 * _INT), socket.MSG_CMSG_CLOEXEC
            )
            if not piece:
                return None
            data += piece
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    whole = len(content) - len(content) % _INT
                    self._descriptors.extend(array.array("i", content[:whole]))
        return bytes(data)


def confine(parent: int) -> None:
    """Ties this process to its worker and takes away what it does not need."""
    tie_to(parent, "penstock-engine", oom_score=_OOM_SCORE)
    # Ctrl-C at a terminal is the worker's to hear; this process ends when its worker closes the link.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    sys.addaudithook(_refuse_pickle)


def _refuse_pickle(event: str, arguments: tuple[object, ...]) -> None:
    if event == "pickle.find_class":
        raise RuntimeError("nothing is unpickled in an engine's process")


def main() -> None:
    """Runs until the worker closes the link."""
    confine(int(sys.argv[2]))
    if processors := set(map(int, sys.argv[3:])):
        with suppress(OSError):  # one that has gone since: slower, and no reason not to run
            os.sched_setaffinity(0, processors)
    with socket.socket(fileno=int(sys.argv[1])) as link:
        Child(link).serve()
    # Not sys.exit: an engine's threads and atexit hooks have nothing left to say, and may wait for each other.
    os._exit(0)


if __name__ == "__main__":
    main()
