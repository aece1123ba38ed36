"""How fast weights are loaded, against a plain read of the same file from the page cache.

    python -m tests.bench.weights [--mebibytes 1024] [--threads 8]

Writes a safetensors file, reads it once so that it is in the page cache, and prints gigabytes per second of a read with
one buffer, as `dd bs=16M of=/dev/null` does it (one thread, nothing kept), of the same read kept in memory, and of our
loader with every page of its arrays touched; each is the best of five, and they take turns. Exits 1 below 70 % of the
plain read.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from services.worker.engines import weights

TARGET = 0.7
ROUNDS = 5
_TENSOR = 64 << 20


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--folder", default=None, help="where the file is written; default: the temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "weights.safetensors"
        write(path, args.mebibytes << 20)
        ways: dict[str, Callable[[], object]] = {
            "plain read, nothing kept": lambda: plain(path),
            "plain read into memory": lambda: path.read_bytes(),
            f"weights.load, {args.threads} threads": lambda: touched(path, args.threads),
        }
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(ROUNDS):
            for name, way in ways.items():
                began = time.perf_counter()
                kept = way()
                best[name] = min(best[name], time.perf_counter() - began)
                del kept
    size = args.mebibytes << 20
    for name, seconds in best.items():
        print(f"{name:28} {size / seconds / 1e9:7.2f} GB/s")
    first, _, ours = best.values()
    print(f"{'of the plain read':28} {first / ours:7.0%}   target {TARGET:.0%}")
    return 0 if first / ours >= TARGET else 1


def plain(path: Path) -> None:
    """Reads a file through one buffer."""
    buffer = bytearray(16 << 20)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def touched(path: Path, threads: int) -> int:
    """Loads the weights and looks at every page of them."""
    return sum(int(array.reshape(-1).view("u1")[::4096].sum()) for array in weights.load([path], threads).values())


def write(path: Path, size: int) -> None:
    """A safetensors file of tensors of 64 MiB."""
    import json

    places = range(0, size, _TENSOR)
    header = json.dumps(
        {
            f"t{at}": {"dtype": "U8", "shape": [min(_TENSOR, size - at)], "data_offsets": [at, min(at + _TENSOR, size)]}
            for at in places
        }
    ).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for at in places:
            file.write(os.urandom(1 << 20) * (min(_TENSOR, size - at) >> 20))


if __name__ == "__main__":
    sys.exit(main())
