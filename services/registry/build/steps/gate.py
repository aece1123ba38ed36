"""`gate`: is the candidate near enough to the source, good enough, fast enough and small enough?

Numbers are compared on real samples, where there are some, and on random ones; accuracy on an evaluation set; latency
and memory side by side in the same run. Every check is listed with what was measured and what the limit was, and the
verdict is "passed" only if all passed. A failed gate is a result: what becomes of the version is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from penstock.compiling.source import precision_of
from penstock.errors import InvalidArgument

from ..numerics import TOLERANCES, Difference, Tolerance, difference, merged, verdict
from ..step import Json, Role, Step, StepContext, StepResult, installed
from . import footprint, onnx_file, samples, tensors
from .evaluation import accuracy
from .session import METHOD, Session, latency

BATCH: Final = 8


@dataclass(frozen=True)
class Parameters:
    """precision: whose tolerance holds; auto for what the candidate's graph computes in; lossy for a pruned or
    distilled one, which is judged by accuracy alone. absolute, relative, close, cosine, argmax: other limits than the
    precision's (numerics.py). rows: how many samples are compared; random: how many random ones. mask: the input that
    hides positions of the outputs, which are not compared. sizes: dimension → size of random inputs. drop: how much
    accuracy may fall; accuracy: what it must be at least. latency_ratio, memory_ratio, size_ratio: the candidate's by
    the source's, at most; latency_ms, memory_bytes, size_bytes: its own, at most. What is None is measured and not
    judged."""

    precision: Literal["auto", "fp32", "fp16", "bf16", "int8", "lossy"] = "auto"
    absolute: float | None = None
    relative: float | None = None
    close: float | None = None
    cosine: float | None = None
    argmax: float | None = None
    rows: int = 64
    random: int = 16
    seed: int = 0
    mask: str = samples.MASK
    sizes: Mapping[str, int] = field(default_factory=dict)
    drop: float = 0.01
    accuracy: float | None = None
    output: str | None = None
    latency_rows: int = 8
    latency_ratio: float | None = None
    latency_ms: float | None = None
    memory_ratio: float | None = None
    memory_bytes: int | None = None
    size_ratio: float | None = None
    size_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.rows < 1 or self.random < 0 or self.latency_rows < 1:
            raise InvalidArgument("at least 1 is needed", field="rows")


@dataclass
class Gate:
    """The checks of one candidate, one after another."""

    work: StepContext[Parameters]
    checks: list[Json] = field(default_factory=list)

    def __post_init__(self) -> None:
        work = self.work
        self.model = onnx_file.read(work.inputs["source"], "source")
        self.candidate = onnx_file.read(work.inputs["model"])
        self.before = Session(self.model.SerializeToString(), work.threads, "source")
        self.after = Session(self.candidate.SerializeToString(), work.threads)
        given = work.inputs.get("samples")
        self.real = None if given is None else tensors.samples(given, "samples")

    def check(self, name: str, passed: bool, measured: Any, limit: Any, text: str = "") -> None:
        """Notes one check and says it."""
        text = text or f"{measured} measured, the limit is {limit}"
        self.checks.append({"name": name, "passed": passed, "measured": measured, "limit": limit, "text": text})
        self.work.say(f"{'passed' if passed else 'FAILED'} {name}: {text}")

    def signature(self) -> bool:
        """The candidate can stand in for the source: inputs that the source knows, all of the source's outputs."""
        known, takes = set(self.before.inputs), set(self.after.inputs)
        lacking = sorted(set(self.before.outputs) - set(self.after.outputs))
        strange = sorted(takes - known)
        words = [f"it lacks the output {name}" for name in lacking] + [f"it wants the input {name}" for name in strange]
        self.check("signature", not words, sorted(self.after.outputs), sorted(self.before.outputs), "; ".join(words))
        return not words

    def numerics(self, precision: str) -> Json:
        """Every output on real and on random inputs; what was found."""
        limit = _tolerance(self.work.parameters, precision)
        told: Json = {}
        for kind, batches in self._inputs():
            parts: dict[str, list[Difference]] = {}
            for feeds in batches:
                mask = self.work.parameters.mask
                a, b = (samples.visible(each.run(feeds), feeds, mask) for each in (self.before, self.after))
                for name in self.before.outputs:
                    parts.setdefault(name, []).append(difference(a[name], b[name], limit))
            for name, found in parts.items():
                whole = merged(found)
                words = verdict(whole, limit, made_up=kind == "random")
                cosine = whole.mean_cosine if kind == "random" else whole.cosine
                shown = {"absolute": round(whole.largest_absolute, 6), "cosine": round(cosine, 6)}
                self.check(f"numerics.{kind}.{name}", not words, shown, _short(limit), "; ".join(words))
                told[f"{kind}.{name}"] = whole.json()
        return told

    def _inputs(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        parameters = self.work.parameters
        if self.real is not None:
            yield "samples", list(tensors.batches(self.real, BATCH, parameters.rows))
        if parameters.random:
            yield (
                "random",
                [
                    samples.random_inputs(
                        self.model,
                        self.before,
                        min(BATCH, parameters.random - start),
                        parameters.seed + start,
                        parameters.sizes,
                        self.real,
                    )
                    for start in range(0, parameters.random, BATCH)
                ],
            )

    def quality(self, precision: str) -> Json:
        """Accuracy of both on the evaluation set; a lossy candidate fails without one."""
        parameters = self.work.parameters
        if "evaluation" not in self.work.inputs:
            if precision == "lossy" or parameters.accuracy is not None:
                self.check("accuracy", False, None, "an evaluation set", "accuracy was asked for and no set was given")
            return {}
        arrays = tensors.samples(self.work.inputs["evaluation"], "evaluation")
        before = accuracy(self.before, arrays, parameters.output)
        after = accuracy(self.after, arrays, parameters.output)
        self.check(
            "accuracy.drop", before - after <= parameters.drop, round(before - after, 6), parameters.drop,
            f"{before:.4f} before, {after:.4f} after",
        )  # fmt: skip
        if parameters.accuracy is not None:
            self.check("accuracy", after >= parameters.accuracy, round(after, 6), parameters.accuracy)
        return {"before": before, "after": after}

    def cost(self) -> Json:
        """Latency, memory and size, side by side."""
        parameters, work = self.work.parameters, self.work
        rows = parameters.latency_rows
        if self.real is not None:
            feeds = next(tensors.batches(self.real, rows))
        else:
            feeds = samples.random_inputs(self.model, self.before, rows, parameters.seed, parameters.sizes)
        times = latency(self.before, self.after, feeds)
        work.progress(0.8)
        held = tensors.write(feeds, work.folder / "feeds.safetensors")
        memory = [footprint.measure(work.inputs[role], held, work.threads) for role in ("source", "model")]
        held.unlink()
        size = [work.inputs[role].stat().st_size for role in ("source", "model")]
        self._most("latency.ratio", times["ratio"], parameters.latency_ratio)
        self._most("latency.ms", times["after_ms"], parameters.latency_ms)
        self._most("memory.ratio", round(memory[1] / max(1, memory[0]), 4), parameters.memory_ratio)
        self._most("memory.bytes", memory[1], parameters.memory_bytes)
        self._most("size.ratio", round(size[1] / size[0], 4), parameters.size_ratio)
        self._most("size.bytes", size[1], parameters.size_bytes)
        return {
            "latency": {**times, "rows": rows, "method": METHOD, "emulated": self.after.emulated},
            "memory": {"before": memory[0], "after": memory[1]},
            "size": {"before": size[0], "after": size[1]},
        }

    def _most(self, name: str, measured: float, limit: float | None) -> None:
        if limit is not None:
            self.check(name, measured <= limit, measured, limit)


def run(work: StepContext[Parameters]) -> StepResult:
    """Compares and judges."""
    gate = Gate(work)
    precision: str = work.parameters.precision
    if precision == "auto":
        precision = precision_of(gate.candidate, compilable=False)
    report: Json = {"precision": precision, "tolerance": asdict(_tolerance(work.parameters, precision))}
    if gate.signature():
        report["difference"] = gate.numerics(precision)
        work.progress(0.4)
        report["accuracy"] = gate.quality(precision)
        work.progress(0.6)
        report |= gate.cost()
    passed = all(check["passed"] for check in gate.checks)
    report |= {"verdict": "passed" if passed else "failed", "checks": gate.checks}
    work.progress(1.0)
    return StepResult({}, report)


def _tolerance(parameters: Parameters, precision: str) -> Tolerance:
    names = ("absolute", "relative", "close", "cosine", "argmax")
    other = {name: getattr(parameters, name) for name in names if getattr(parameters, name) is not None}
    return replace(TOLERANCES[precision], **other)


def _short(limit: Tolerance) -> str:
    asked = "" if limit.argmax is None else f", argmax {limit.argmax}"
    return f"{limit.close} within {limit.absolute} + {limit.relative}·|x|, cosine {limit.cosine}{asked}"


def _tools(parameters: Parameters) -> dict[str, str]:
    return installed("build", "numpy", "onnx", "onnxruntime", "safetensors")


STEP: Final = Step(
    name="gate",
    version=1,
    text="compares a candidate with its source and says whether it may be served",
    parameters=Parameters,
    inputs=(
        Role("source", "the ONNX model that the candidate stands in for"),
        Role("model", "the candidate, an ONNX model"),
        Role("samples", "real inputs by name", required=False),
        Role("evaluation", "inputs by name and labels", required=False),
    ),
    outputs=(),
    tools=_tools,
    run=run,
)
