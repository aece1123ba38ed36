"""`make compile-demo`: from two trained models to compressed versions and compiled plans, through the build service.

Starts a suite of its own on free ports with nothing in it, publishes digits and minilm, has each built in int8 and in
half precision (quantise or halve, gate, compile), deploys what came out and calls it. Exit status 0 means that every
gate passed and every answer was right; what was measured is in build/compile-demo.json.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from deploy.local.ports import Ports
from deploy.local.suite import ROOT, Suite, SuiteError
from examples import artifacts
from examples.demo import MODELS, QUERY, RIGHT, SENTENCES, build_models, console, heading, say
from examples.digits import train
from examples.minilm import export
from penstock import AsyncClient, PenstockError
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2

FOLDER = ROOT / "build" / "compile-demo"
RESULT = ROOT / "build" / "compile-demo.json"
TOKENS = 32
BUILD_SECONDS = 900.0


@dataclass(frozen=True)
class Recipe:
    """One build of one model. steps: names and parameters."""

    model: str
    name: str
    steps: tuple[tuple[str, dict[str, Any]], ...]


def recipes() -> tuple[Recipe, ...]:
    """What is built; the plan is compiled from what the gate has looked at.

    For minilm accuracy is the mean cosine of the embeddings with the trained model's, and int8 may lose 0.02 of it.
    """
    digits = {"batch": {"max": 32}}
    minilm = {"batch": {"max": 8}, "sizes": {"seq": [1, TOKENS, 256]}}
    return (
        Recipe("digits", "int8", (("quantise", {}), ("gate", {}), ("compile", digits))),
        Recipe("digits", "fp16", (("halve", {}), ("gate", {}), ("compile", digits))),
        Recipe("minilm", "int8", (("quantise", {}), ("gate", {"drop": 0.02}), ("compile", minilm))),
        Recipe("minilm", "fp16", (("halve", {}), ("gate", {}), ("compile", minilm))),
    )


def main() -> int:
    """Runs the demo; returns the exit status."""
    began = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        build_models()
        write_sets()
        heading("Starting a suite with nothing in it")
        # Steps use both halves of a small machine; nobody calls a model meanwhile.
        flags = {"registry": ("--build-threads=2",)}
        suite = Suite(FOLDER / "suite", Ports.free(), say=say, trace_ratio=None, flags=flags)
        suite.up()
        try:
            told = asyncio.run(play(suite))
        finally:
            heading("Draining and stopping")
            killed = suite.down()
    except (SuiteError, artifacts.CheckFailed, PenstockError, ValueError) as problem:
        console.print(f"[red]compile demo failed:[/red] {problem}")
        return 1
    good = not killed and all(one["good"] for one in told)
    artifacts.write_json(RESULT, {"good": good, "seconds": round(time.monotonic() - began, 1), "builds": told})
    summary(told)
    say(f"{RESULT.relative_to(ROOT)} has every number; {time.monotonic() - began:.0f} s in all")
    return 0 if good else 1


# --- what steps read --------------------------------------------------------------------------------------------------


def write_sets() -> None:
    """Samples to measure ranges on, and an evaluation set that shares nothing with them, for each model."""
    from safetensors.numpy import save_file

    split = train.load()
    save_file({"pixels": split.train_pixels[:256]}, FOLDER / "digits-samples.safetensors")
    labels = split.test_digits.astype(np.int64)
    save_file({"pixels": split.test_pixels, "labels": labels}, FOLDER / "digits-evaluation.safetensors")
    texts = export.sentences()
    save_file(tokens(texts), FOLDER / "minilm-samples.safetensors")
    # Cut before the shortest ends: what a model answers for padding is nobody's business, and would count here.
    held_out = tokens([f"{text} {QUERY}" for text in SENTENCES], 12)
    save_file({**held_out, "labels": embeddings(held_out)}, FOLDER / "minilm-evaluation.safetensors")


def tokens(texts: list[str], length: int = TOKENS) -> dict[str, np.ndarray]:
    """Token ids of the texts, each padded or cut to the same length."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODELS / "minilm" / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    found = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([one.ids for one in found], dtype=np.int64),
        "attention_mask": np.array([one.attention_mask for one in found], dtype=np.int64),
        "token_type_ids": np.array([one.type_ids for one in found], dtype=np.int64),
    }


def embeddings(feeds: dict[str, np.ndarray]) -> np.ndarray:
    """What the trained model answers: accuracy of the others is their mean cosine with it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(MODELS / "minilm" / "model.onnx", providers=["CPUExecutionProvider"])
    wanted = {one.name for one in session.get_inputs()}
    answer: np.ndarray = session.run(None, {name: array for name, array in feeds.items() if name in wanted})[0]
    return answer


# --- building ---------------------------------------------------------------------------------------------------------


async def play(suite: Suite) -> list[dict[str, Any]]:
    """Publishes, builds, deploys and calls; what was seen, one entry per build."""
    told = []
    async with AsyncClient(f"127.0.0.1:{suite.ports['gateway_grpc']}", timeout=120) as client:
        heading("Publishing")
        for name in ("digits", "minilm"):
            published = await client.publish(MODELS / name)
            say(f"published {name}@{published.version}")
        for recipe in recipes():
            heading(f"Building {recipe.model} in {recipe.name}")
            build = await built(client, recipe)
            entry = described(recipe, build)
            if build.result_version and build.gate == pb.GATE_VERDICT_PASSED:
                entry |= await served(client, build)
            entry["good"] = entry["good"] and entry.get("right", 0) > 0 and entry["right"] == entry["asked"]
            told.append(entry)
    return told


async def built(client: AsyncClient, recipe: Recipe) -> pb.Build:
    """One build, its log shown as it comes."""
    spec = manifest_pb2.BuildSpec()
    for role in ("samples", "evaluation"):
        spec.files[role] = (await client.upload(FOLDER / f"{recipe.model}-{role}.safetensors")).digest
    for name, parameters in recipe.steps:
        spec.steps.add(step=name, parameters=json.dumps(parameters))
    return await client.build(
        recipe.model, 1, spec=spec, wait=BUILD_SECONDS, on_line=lambda line: say(f"{line.step_id or '·':9} {line.text}")
    )


def described(recipe: Recipe, build: pb.Build) -> dict[str, Any]:
    """A build as it goes into the JSON."""
    steps = [
        {
            "step": step.step,
            "seconds": round((step.end_time.ToNanoseconds() - step.start_time.ToNanoseconds()) / 1e9, 2),
            "cached": step.cached,
            "key": step.key,
            "tools": dict(step.tools),
            "files": {role: one.size_bytes for role, one in step.outputs.items()},
            "report": json.loads(step.report) if step.report else {},
        }
        for step in build.steps
    ]
    engines = [
        {
            "source_digest": one.source_digest,
            "builder": one.builder,
            "builder_version": one.builder_version,
            "architecture": one.architecture,
            "precision": one.precision,
            "profile": one.profile,
            "bytes": one.artifact.size_bytes,
        }
        for one in build.engines
    ]
    return {
        "model": recipe.model,
        "recipe": recipe.name,
        "version": build.result_version,
        "state": pb.BuildState.Name(build.state),
        "reason": build.reason,
        "gate": pb.GateVerdict.Name(build.gate),
        "failed_checks": list(build.failed_checks),
        "steps": steps,
        "engines": engines,
        "good": build.state == pb.BUILD_STATE_SUCCEEDED and build.gate == pb.GATE_VERDICT_PASSED and bool(engines),
    }


async def served(client: AsyncClient, build: pb.Build) -> dict[str, Any]:
    """Deploys what a build published and calls it with what `make demo` calls the trained model with."""
    name, version = build.name, build.result_version
    await client.deploy(name, version, wait=180)
    say(f"{name}@{version} is ready")
    begun = time.perf_counter()
    right = await (read_digits(client, version) if name == "digits" else rank_sentences(client, version))
    say(f"{sum(right)} of {len(right)} answers are right")
    return {"asked": len(right), "right": sum(right), "call_seconds": round(time.perf_counter() - begun, 3)}


async def read_digits(client: AsyncClient, version: int) -> list[bool]:
    """Which of the ten sample images are read rightly."""
    folder = MODELS / "digits"
    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    right = []
    for file, label in samples.items():
        result = await client.infer("digits", {"image": (folder / file).read_bytes()}, version=version)
        right.append(result["label"].ravel()[0].decode() == label)
    return right


async def rank_sentences(client: AsyncClient, version: int) -> list[bool]:
    """Whether the sentence that answers the query is the nearest to it."""
    texts = (QUERY, *SENTENCES)
    query, *found = [
        (await client.infer("minilm", {"text": text}, version=version))["embedding"].ravel() for text in texts
    ]
    similarity = [float(query @ vector) for vector in found]
    return [max(range(len(found)), key=similarity.__getitem__) == RIGHT]


# --- what is shown ----------------------------------------------------------------------------------------------------


def summary(told: list[dict[str, Any]]) -> None:
    """A row per step."""
    table = Table("", "model", "recipe", "step", "took", "size", "accuracy", "latency", "result")
    for build in told:
        for step in build["steps"]:
            table.add_row(
                "[green]✓[/green]" if build["good"] else "[red]✗[/red]",
                build["model"],
                build["recipe"],
                step["step"],
                f"{step['seconds']:.1f} s",
                *cells(step["report"]),
                " ".join(outcome(build, step)),
            )
    console.print(table)


def cells(report: dict[str, Any]) -> tuple[str, str, str]:
    """Size, accuracy and latency before and after, where a step has measured them."""
    size = report.get("size") or {part: (report.get(part) or {}).get("bytes") for part in ("before", "after")}
    accuracy, latency = report.get("accuracy") or {}, report.get("latency") or {}
    return (
        f"{size['before'] / 1e6:.2f} → {size['after'] / 1e6:.2f} MB"
        if size.get("before") and size.get("after")
        else "",
        f"{accuracy['before']:.4f} → {accuracy['after']:.4f}" if accuracy else "",
        f"{latency['before_ms']} → {latency['after_ms']} ms" if latency else "",
    )


def outcome(build: dict[str, Any], step: dict[str, Any]) -> Iterator[str]:
    """What a step ended with."""
    if step["step"] == "gate":
        yield from [build["gate"].removeprefix("GATE_VERDICT_").lower(), *build["failed_checks"]]
    elif step["step"] == "compile":
        for engine in build["engines"]:
            yield f"{engine['builder']} {engine['builder_version']} {engine['architecture']} {engine['precision']}"
        yield f"key {(step['report'].get('engine') or {}).get('key', '')[:12]}"
    elif build["version"]:
        yield f"{build['model']}@{build['version']}"


if __name__ == "__main__":
    sys.exit(main())
