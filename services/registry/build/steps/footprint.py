"""The process that says how much memory a model takes: `python -m services.registry.build.steps.footprint`.

It reads an order from its input: model file, threads, and a file of inputs. Memory of a process only grows, so that a
model is measured in one of its own: resident bytes after one call, less what was resident before the model was
loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from penstock.errors import InvalidArgument


def measure(model: Path, feeds: Path, threads: int) -> int:
    """Bytes that the model takes; raises InvalidArgument where it cannot be loaded in a process of its own."""
    order = {"model": str(model), "feeds": str(feeds), "threads": threads}
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__],
        input=json.dumps(order).encode(),
        capture_output=True,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    if done.returncode != 0:
        raise InvalidArgument(
            f"model: the process that loads it ended with status {done.returncode}",
            field="model",
            detail=done.stderr.decode(errors="replace")[-2000:],
        )
    return int(json.loads(done.stdout))


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Carries out one order."""
    import onnxruntime  # noqa: F401 (what the runtime takes by itself is not the model's)

    from . import tensors
    from .session import Session

    order: dict[str, Any] = json.load(sys.stdin)
    feeds = tensors.read(Path(order["feeds"]), "feeds")
    before = _resident()
    session = Session(Path(order["model"]).read_bytes(), order["threads"])
    session.run(feeds)
    json.dump(max(0, _resident() - before), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
