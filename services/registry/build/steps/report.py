"""What a step says of the model that it made beside the one it was given: size, times, numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..numerics import TOLERANCES, difference
from ..step import Json, StepContext
from . import onnx_file, samples, tensors
from .evaluation import accuracy
from .session import METHOD, Session, latency


def compared(
    work: StepContext[Any], source: Any, path: Path, precision: str, rows: int, seed: int, tolerance: str | None = None
) -> Json:
    """The report of a step that made `path` of the model `source`.

    Measured on the first rows of the input `samples` where there is one, else on random inputs; accuracy before and
    after where there is an input `evaluation`.
    """
    made = onnx_file.read(path)
    before = Session(source.SerializeToString(), work.threads)
    after = Session(path.read_bytes(), work.threads)
    feeds = samples.measuring(work.inputs.get("samples"), source, before, rows, seed)
    near = TOLERANCES[tolerance or precision]
    a, b = (samples.visible(each.run(feeds), feeds, samples.MASK) for each in (before, after))
    found = {name: difference(a[name], b[name], near).json() for name in before.outputs if name in b}
    work.progress(0.8)
    times = latency(before, after, feeds)
    said: Json = {
        "precision": precision,
        "before": onnx_file.summary(work.inputs["model"], source),
        "after": onnx_file.summary(path, made),
        "difference": found,
        "samples": "given" if "samples" in work.inputs else "random",
        "latency": {**times, "rows": rows, "method": METHOD, "emulated": after.emulated},
    }
    if "evaluation" in work.inputs:
        arrays = tensors.samples(work.inputs["evaluation"], "evaluation")
        said["accuracy"] = {"before": accuracy(before, arrays), "after": accuracy(after, arrays)}
    work.say(
        f"{said['before']['bytes']:,} to {said['after']['bytes']:,} bytes, "
        f"{times['before_ms']} to {times['after_ms']} ms for {rows} rows"
    )
    work.progress(1.0)
    return said
