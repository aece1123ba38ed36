"""One hop by itself: CPU-µs per request of the server process, ours beside bare grpc.aio in the same run.

`python -m tests.bench.one_hop [--seconds 2] [--uvloop] [--kinds ours,task,grpcio] [--sizes 200,600000]
[--shapes 1x1,8x1,8x8,64x1]`; needs h2load (Debian: nghttp2-client). `task` is ours with a handler that waits once.
Prints a table and, with --json, JSON. Beside CPU time and rate stand page faults per request and the process's peak of
resident memory over what it had at its start, in messages of that size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from penstock.oip import inference_pb2 as oip

PATH = "/inference.GRPCInferenceService/ModelInfer"
SHAPES = ((1, 1), (8, 1), (8, 8), (64, 1))
_TICK = os.sysconf("SC_CLK_TCK")


def request(size: int) -> bytes:
    """A ModelInferRequest of about `size` bytes, with its gRPC prefix."""
    message = oip.ModelInferRequest(model_name="add1", id="1")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, max(1, (size - 60) // 4)])
    message.raw_input_contents.append(bytes(4 * tensor.shape[1]))
    body = message.SerializeToString()
    return b"\x00" + len(body).to_bytes(4, "big") + body


def spent(pid: int) -> tuple[float, int]:
    """User and system seconds of a process, all its threads, and its page faults that needed no disk."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK, int(fields[7])


def resident(pid: int, line: str) -> int:
    """Bytes of resident memory: `VmRSS` now, `VmHWM` at most."""
    found = re.search(rf"{line}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


@contextlib.contextmanager
def serving(kind: str, *, uvloop: bool) -> Iterator[tuple[int, int]]:
    """A server process: pid and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [kind, str(port), *(["uvloop"] if uvloop else [])]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.echo_server", *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid, port
    finally:
        process.kill()
        process.wait()


def load(port: int, body: Path, requests: int, clients: int, streams: int) -> float:
    """Requests per second; raises when an answer was not 2xx or did not come."""
    command = ["h2load", "-n", str(requests), "-c", str(clients), "-m", str(streams), "-d", str(body)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", "-w", "26", "-W", "28"]
    command += [f"http://127.0.0.1:{port}{PATH}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    counted = re.search(r"(\d+) succeeded, (\d+) failed", said)
    rate = re.search(r"([\d.]+) req/s", said)
    assert counted is not None and rate is not None, said
    if int(counted[1]) != requests or int(counted[2]):
        raise RuntimeError(said)
    return float(rate[1])


def measure(pid: int, port: int, body: Path, seconds: float, clients: int, streams: int) -> dict[str, float]:
    """CPU-µs and page faults per request, requests per second, over about `seconds`, and the peak of memory so far."""
    probe = max(200, 20 * clients * streams) // (1 if body.stat().st_size < 10_000 else 10)
    probe = max(probe, clients * streams)
    rate = load(port, body, probe, clients, streams)
    requests = max(probe, int(rate * seconds))
    before, faults_before = spent(pid)
    rate = load(port, body, requests, clients, streams)
    after, faults = spent(pid)
    return {
        "cpu_us": (after - before) / requests * 1e6,
        "rate": rate,
        "faults": (faults - faults_before) / requests,
        "peak_bytes": resident(pid, "VmHWM"),
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--kinds", default="ours,task,grpcio")
    parser.add_argument("--sizes", default="200,600000")
    parser.add_argument("--shapes", default=",".join(f"{clients}x{streams}" for clients, streams in SHAPES))
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    shapes = [tuple(map(int, word.split("x"))) for word in given.shapes.split(",")]
    print(f"{'server':8} {'bytes':>8} " + " ".join(f"{f'{c}x{m}':>38}" for c, m in shapes), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for size in (int(word) for word in given.sizes.split(",")):
            body = Path(folder) / str(size)
            body.write_bytes(request(size))
            for kind in given.kinds.split(","):
                with serving(kind, uvloop=given.uvloop and kind != "grpcio") as (pid, port):
                    cells = []
                    began = resident(pid, "VmRSS")
                    for clients, streams in shapes:
                        got = measure(pid, port, body, given.seconds, clients, streams)
                        results[f"{kind}/{size}/{clients}x{streams}"] = got
                        messages = (got["peak_bytes"] - began) / size
                        said = f"{got['cpu_us']:9.1f} µs {got['rate']:6.0f}/s {got['faults']:6.1f} pf"
                        cells.append(said + (f" {messages:5.1f} m" if size >= 10_000 else ""))
                    print(f"{kind:8} {size:8} " + " ".join(f"{cell:>38}" for cell in cells), flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
