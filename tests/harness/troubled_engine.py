"""An engine that gets into trouble on command, in the real child process of a real worker.

`trouble = install(folder)` writes a `sitecustomize.py`; a worker that is started with `PYTHONPATH=folder` has children
whose ONNX engine is wrapped. Then, at any time:

    trouble.full(8)     # more than 8 rows at once: OutOfMemory
    trouble.lost()      # every run: DeviceLost, as from a process whose CUDA context is broken
    trouble.fails()     # every run raises what nobody expects
    trouble.eats(n)     # the next run allocates n bytes of memory and touches them
    trouble.over()
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

HOOK: Final = '''"""Wraps the ONNX engine of a worker's children; nothing in any other process."""

import sys
import time

if "services.worker.host.child" in sys.orig_argv:
    from pathlib import Path

    from services.worker.engines import onnx
    from services.worker.engines.engine import DeviceLost, OutOfMemory

    _COMMAND = Path(__file__).with_name("command")
    _load = onnx.load

    class _Troubled:
        def __init__(self, engine):
            self._engine = engine
            self.inputs, self.outputs, self.close = engine.inputs, engine.outputs, engine.close

        def run(self, inputs):
            try:
                word, number = _COMMAND.read_text().split()
            except (OSError, ValueError):
                word, number = "", "0"
            if word == "lost":
                raise DeviceLost("the device is lost", detail="CUDA error 700: an illegal memory access")
            if word == "full" and max(len(array) for array in inputs.values()) > int(number):
                raise OutOfMemory("the engine has not enough memory for this batch", detail="CUDA error 2")
            if word == "full":
                time.sleep(0.01)  # so that batches form
            if word == "fails":
                raise RuntimeError("the model is not what it was")
            if word == "eats":
                b"1" * int(number)
            return self._engine.run(inputs)

    onnx.load = lambda *given: _Troubled(_load(*given))
'''


class Trouble:
    """Commands to engines whose hook lies in this folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._command = folder / "command"

    def full(self, rows: int) -> None:
        """No batch of more rows fits."""
        self._say(f"full {rows}")

    def lost(self) -> None:
        """The device is lost to every process that runs something."""
        self._say("lost 0")

    def fails(self) -> None:
        """Every run fails, and the process lives on."""
        self._say("fails 0")

    def eats(self, size: int) -> None:
        """Every run takes so many bytes of memory."""
        self._say(f"eats {size}")

    def over(self) -> None:
        """All is well again."""
        self._command.unlink(missing_ok=True)

    def _say(self, command: str) -> None:
        fresh = self._command.with_suffix(".new")
        fresh.write_text(command)
        fresh.replace(self._command)


def install(folder: Path) -> Trouble:
    """Writes the hook; the folder belongs at the front of the worker's PYTHONPATH."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(HOOK)
    return Trouble(folder)
