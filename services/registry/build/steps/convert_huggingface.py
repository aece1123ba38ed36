"""`convert-huggingface`: the folder of an encoder on the Hugging Face hub to ONNX.

What is read is config.json and the weights in safetensors, in one file or several. No code of the folder's is run
(`trust_remote_code` has no counterpart here) and no `.bin` file is read, which is a pickle. The graph is built from the
shape that config.json gives (encoder.py), so transformers and torch are not needed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from penstock.errors import InvalidManifest

from ..step import Role, Step, StepContext, StepResult, installed
from . import encoder, onnx_file, tensors

MAX_CONFIG: Final = 1 << 20
PREFIXES: Final = ("", "bert.", "roberta.", "distilbert.", "model.", "encoder.", "0.auto_model.", "auto_model.")
# Buffers that every checkpoint of some releases has, which are no weights.
BUFFERS: Final = ("position_ids", "token_type_ids")


@dataclass(frozen=True)
class Parameters:
    """name: of the graph."""

    name: str = "encoder"


def run(work: StepContext[Parameters]) -> StepResult:
    """Builds the graph and writes `model`."""
    shape = encoder.Shape.read(read_config(work.inputs["config"]))
    weights = read_weights(work.several("weights"))
    work.say(f"{shape.family}: {shape.layers} layers of {shape.hidden}, {len(weights)} tensors")
    work.progress(0.4)
    model, used = encoder.build(shape, weights, work.parameters.name)
    path = onnx_file.write(model, work.folder / "model.onnx")
    unused = sorted(set(weights) - used)
    if unused:
        work.say(f"not part of the encoder and left out: {', '.join(unused[:8])}{' …' if len(unused) > 8 else ''}")
    before = sum(file.stat().st_size for file in work.several("weights"))
    return StepResult(
        {"model": path},
        {
            "family": shape.family,
            "before": {"bytes": before},
            "after": onnx_file.summary(path, model),
            "inputs": list(shape.inputs),
            "outputs": [encoder.OUTPUT],
            "interface": onnx_file.interface(model),
            "left_out": unused,
        },
    )


def read_config(path: Path) -> dict[str, Any]:
    """The document of config.json; raises InvalidManifest."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise InvalidManifest("config: the file config.json of the model is needed", field="config")
    return document


def read_weights(paths: list[Path]) -> dict[str, Any]:
    """All tensors without the prefix that heads give the encoder; raises InvalidManifest for a pickle."""
    found: dict[str, Any] = {}
    for path in paths:
        with path.open("rb") as file:
            head = file.read(9)
        if head.startswith((b"PK", b"\x80")):
            raise InvalidManifest(
                "weights: this is a pickle (pytorch_model.bin), which is never read; publish model.safetensors",
                field="weights",
            )
        found |= tensors.read(path, "weights")
    prefix = max(PREFIXES, key=lambda each: sum(name.startswith(f"{each}embeddings.") for name in found))
    return {
        name.removeprefix(prefix): array
        for name, array in found.items()
        if name.rpartition(".")[2] not in BUFFERS and np.dtype(array.dtype).kind == "f"
    }


def _tools(parameters: Parameters) -> dict[str, str]:
    return installed("build", "numpy", "onnx", "safetensors")


STEP: Final = Step(
    name="convert-huggingface",
    version=2,
    text="an encoder of the BERT family (config.json and safetensors) to ONNX",
    parameters=Parameters,
    inputs=(
        Role("config", "config.json"),
        Role("weights", "safetensors, one file or several", several=True),
    ),
    outputs=(Role("model", "the ONNX model"),),
    tools=_tools,
    run=run,
)
