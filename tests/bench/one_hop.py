"""One hop by itself: CPU-µs per request of the server process, ours beside bare grpc.aio in the same run.

`python -m tests.bench.one_hop [--seconds 2] [--uvloop] [--kinds ours,task,grpcio]`; needs h2load (Debian:
nghttp2-client). `task` is ours with a handler that waits once. Prints a table and, with --json, JSON.
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


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


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
    """CPU-µs per request and requests per second, over about `seconds`."""
    probe = max(200, 20 * clients * streams) // (1 if body.stat().st_size < 10_000 else 10)
    probe = max(probe, clients * streams)
    rate = load(port, body, probe, clients, streams)
    requests = max(probe, int(rate * seconds))
    before = cpu_seconds(pid)
    rate = load(port, body, requests, clients, streams)
    return {"cpu_us": (cpu_seconds(pid) - before) / requests * 1e6, "rate": rate}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--kinds", default="ours,task,grpcio")
    parser.add_argument("--sizes", default="200,600000")
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    print(f"{'server':8} {'bytes':>7} " + " ".join(f"{f'{c}x{m}':>20}" for c, m in SHAPES), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for size in (int(word) for word in given.sizes.split(",")):
            body = Path(folder) / str(size)
            body.write_bytes(request(size))
            for kind in given.kinds.split(","):
                with serving(kind, uvloop=given.uvloop and kind != "grpcio") as (pid, port):
                    cells = []
                    for clients, streams in SHAPES:
                        got = measure(pid, port, body, given.seconds, clients, streams)
                        results[f"{kind}/{size}/{clients}x{streams}"] = got
                        cells.append(f"{got['cpu_us']:9.1f} µs {got['rate']:6.0f}/s")
                    print(f"{kind:8} {size:7} " + " ".join(f"{cell:>20}" for cell in cells), flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
