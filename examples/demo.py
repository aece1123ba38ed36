"""`make demo`: builds two real models, starts the whole suite, publishes, deploys and calls them, and says what it saw.

Exit status 0 means that every answer was the right one and that everything shut down cleanly. A suite that runs
already (`make up`) is used and left running.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import struct
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.local.__main__ import state_folder
from deploy.local.ports import Ports
from deploy.local.suite import ROOT, Suite, SuiteError
from examples.artifacts import CheckFailed
from examples.digits.train import build as build_digits
from examples.minilm.export import export as export_minilm
from examples.minilm.export import find_weights
from penstock import AsyncClient, PenstockError
from penstock.client.result import InferResult

MODELS = ROOT / "build" / "models"
QUERY = "How do I get my money back?"
SENTENCES = (
    "The museum opens at nine in the morning.",
    "Refunds are paid within five working days.",
    "Our cat sleeps on the warm radiator.",
    "The train to Lyon leaves from platform two.",
    "Fresh basil makes the sauce much better.",
)
RIGHT = 1
"""Index of the sentence that answers the query."""

console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)


@dataclass(frozen=True)
class Row:
    """One line of the table; right is None where the answer is part of a ranking that is judged as a whole."""

    protocol: str
    model: str
    version: str
    input: str
    answer: str
    milliseconds: float
    batch_size: str
    worker: str
    right: bool | None


def main() -> int:
    """Runs the demo; returns the exit status."""
    began = time.monotonic()
    suite = Suite(state_folder(), Ports.read(os.environ), say=say, trace_ratio=1.0)
    try:
        build_models()
        found = suite.running()
        if found and len(found) == len(suite.table()):
            say("the suite is up already; using it and leaving it running")
            return report(asyncio.run(play(suite)), suite, began)
        if found:
            suite.down()
        heading("Starting etcd, a registry, two schedulers, two workers and a gateway")
        suite.up()
        try:
            status = report(asyncio.run(play(suite)), suite, began)
        finally:
            heading("Draining and stopping")
            killed = suite.down()
        return 1 if killed else status
    except (SuiteError, CheckFailed, PenstockError, ValueError) as problem:
        console.print(f"[red]demo failed:[/red] {problem}")
        return 1


def build_models() -> None:
    """Trains digits and exports minilm unless they are built; prints the accuracy measured then."""
    heading("Building two real models (no torch)")
    say("digits: training on scikit-learn's handwritten digits (seconds; nothing to do the second time)")
    build_digits(MODELS / "digits")
    accuracy = json.loads((MODELS / "digits" / "metrics.json").read_text())["test_accuracy"]
    say(f"digits: test accuracy {accuracy:.4f} on held-out handwritten digits (required: 0.95)")
    if accuracy < 0.95:
        raise CheckFailed("digits is below 0.95")
    say("minilm: building its ONNX graph from the published weights (seconds; nothing to do the second time)")
    export_minilm(find_weights(), MODELS / "minilm")
    say(f"minilm: {(MODELS / 'minilm' / 'model.onnx').stat().st_size / 1e6:.0f} MB of ONNX, checked against numpy")


async def play(suite: Suite) -> list[Row]:
    """Publishes, deploys and calls; returns what to show."""
    rest = f"http://127.0.0.1:{suite.ports['gateway_rest']}"
    async with AsyncClient(f"127.0.0.1:{suite.ports['gateway_grpc']}", trace_context=new_trace) as client:
        heading("Publishing and deploying")
        for name in ("digits", "minilm"):
            published = await client.publish(MODELS / name)
            say(f"published {name}@{published.version} ({published.manifest_digest[:19]}…)")
            await client.deploy(name, published.version, replicas=2, wait=120)
            say(f"{name}@{published.version} is ready on two workers")
        heading("Calling")
        rows = await call_digits(client, rest)
        rows += await call_minilm(client, rest)
    return rows


async def call_digits(client: AsyncClient, rest: str) -> list[Row]:
    """Ten PNG images at once over gRPC, one more over REST."""
    folder = MODELS / "digits"
    samples = json.loads((folder / "samples.json").read_text())
    rows = []

    async def one(file: str, right: str) -> Row:
        begun = time.perf_counter()
        result = await client.infer("digits", {"image": (folder / file).read_bytes()})
        label, score = result["label"].ravel()[0].decode(), float(result["score"].ravel()[0])
        return row("gRPC", result, file, f"{label} ({score:.2f})", begun, label == right)

    rows += await asyncio.gather(*(one(file, right) for file, right in samples.items()))
    file, right = next(iter(samples.items()))
    rows.append(await asyncio.to_thread(rest_image, rest, folder / file, right))
    return rows


async def call_minilm(client: AsyncClient, rest: str) -> list[Row]:
    """A query and five sentences over gRPC, ranked by meaning; the query once more over REST."""

    async def embed(text: str) -> tuple[Any, Row]:
        begun = time.perf_counter()
        result = await client.infer("minilm", {"text": text})
        return result["embedding"].ravel(), row("gRPC", result, text, "", begun, None)

    (query, asked), *found = await asyncio.gather(*(embed(text) for text in (QUERY, *SENTENCES)))
    similarity = [float(query @ vector) for vector, _ in found]
    best = max(range(len(found)), key=similarity.__getitem__)
    rows = [described(asked, f"{len(query)} numbers", None)]
    for index, (_, each) in enumerate(found):
        rank = sorted(similarity, reverse=True).index(similarity[index]) + 1
        right = index == RIGHT if index == best else None
        rows.append(described(each, f"rank {rank}, similarity {similarity[index]:+.2f}", right))
    rows.append(await asyncio.to_thread(rest_text, rest, QUERY, query))
    return rows


def rest_image(rest: str, path: Path, expected: str) -> Row:
    """One image by the binary tensor extension: a JSON header, then the bytes."""
    image = path.read_bytes()
    tensor = struct.pack("<I", len(image)) + image
    header = json.dumps(
        {
            "inputs": [
                {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tensor)}}
            ],
            "outputs": [{"name": "label"}, {"name": "score"}],
        }
    ).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    begun = time.perf_counter()
    answer, sent = post(f"{rest}/v2/models/digits/infer", header + tensor, headers)
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    label = outputs["label"][0]
    shown = f"{label} ({outputs['score'][0]:.2f})"
    return rest_row(answer, sent, path.name, shown, begun, label == expected)


def rest_text(rest: str, text: str, expected: Any) -> Row:
    """One text as plain JSON; its vector must equal the one that gRPC gave."""
    body = {"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}]}
    begun = time.perf_counter()
    answer, sent = post(
        f"{rest}/v2/models/minilm/infer", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    vector = answer["outputs"][0]["data"]
    distance = max(abs(a - float(b)) for a, b in zip(vector, expected, strict=True))
    return rest_row(answer, sent, text, f"differs from gRPC by {distance:.0e}", begun, distance < 1e-4)


def post(url: str, body: bytes, headers: dict[str, str]) -> tuple[Any, Any]:
    """Answer and response headers."""
    request = urllib.request.Request(url, body, {**headers, "traceparent": new_trace()})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response), response.headers


def row(protocol: str, result: InferResult, shown: str, answer: str, begun: float, right: bool | None) -> Row:
    """A line about a gRPC call that began at `begun` (perf_counter, s)."""
    took = (time.perf_counter() - begun) * 1000
    trailers = result.trailers
    return Row(
        protocol, result.model, result.version, shown, answer, took, str(trailers.batch_size), trailers.worker, right
    )


def rest_row(answer: Any, sent: Any, shown: str, text: str, begun: float, right: bool) -> Row:
    """A line about a REST call."""
    took = (time.perf_counter() - begun) * 1000
    batch_size, worker = sent["penstock-batch-size"], sent["penstock-worker"]
    return Row("REST", answer["model_name"], answer["model_version"], shown, text, took, batch_size, worker, right)


def described(line: Row, answer: str, right: bool | None) -> Row:
    """The same line with its answer, known only after all have come."""
    return Row(**{**line.__dict__, "answer": answer, "right": right})


def report(rows: list[Row], suite: Suite, began: float) -> int:
    """Prints the table and where to look next; 0 when every judged answer is right."""
    table = Table("", "via", "model", "version", "input", "answer", "latency", "batch", "worker")
    for each in rows:
        mark = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: ""}[each.right]
        latency = f"{each.milliseconds:.1f} ms"
        shown = (each.input, each.answer, latency, each.batch_size, each.worker)
        table.add_row(mark, each.protocol, each.model, each.version, *shown)
    console.print(table)
    judged = [each.right for each in rows if each.right is not None]
    say(f"{sum(judged)} of {len(judged)} judged answers are right; {time.monotonic() - began:.0f} s in all")
    ports = suite.ports
    heading("Where to look next (after `make up`)")
    say(f"gRPC     127.0.0.1:{ports['gateway_grpc']}   (Open Inference Protocol v2 and penstock.v1)")
    say(f"REST     http://127.0.0.1:{ports['gateway_rest']}   API documentation: /docs")
    say(f"metrics  http://127.0.0.1:{ports['gateway_admin']}/metrics   (every process has its own; deploy/ports.env)")
    say(f"traces   {suite.state / 'traces.jsonl'}")
    say(f"logs     {suite.state / 'logs'}   or: make logs")
    return 0 if all(judged) else 1


def new_trace() -> str:
    """A traceparent that asks for this call to be traced."""
    return f"00-{random.getrandbits(128) | 1:032x}-{random.getrandbits(64) | 1:016x}-01"


def heading(text: str) -> None:
    """A step begins."""
    console.print(f"\n[bold]{text}[/bold]")


def say(text: str) -> None:
    """One line of progress."""
    console.print(f"  {text}")


if __name__ == "__main__":
    sys.exit(main())
