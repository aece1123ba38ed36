"""`quantise`: float32 to int8 after training, by ONNX Runtime's quantiser.

`static` measures the ranges of activations on the input `samples` and writes QuantizeLinear and DequantizeLinear pairs
(QDQ), symmetric, weights per channel, biases left in float: what TensorRT reads as int8, and ONNX Runtime too.
`dynamic` needs no samples and measures each range while serving, with operators of ONNX Runtime that TensorRT does
not have.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from penstock.errors import InvalidArgument, InvalidManifest
from penstock.untrusted.words import public

from ..step import Role, Step, StepContext, StepResult, installed
from . import onnx_file, report, tensors
from .session import Session
from .smooth import smoothed

OPERATORS: Final = ("MatMul", "Gemm", "Conv")
OPSET: Final = 13  # the first with one scale per channel


@dataclass(frozen=True)
class Parameters:
    """method: static or dynamic. per_channel: a scale per column of a weight rather than one. operators: which are
    quantised. keep: names of nodes that are not. calibrate: how a range is chosen from what the samples show; smooth:
    how much of the outliers of activations moves into weights first (smooth.py), 0 for nothing; rows, batch: how many
    samples, and how many at once."""

    method: Literal["static", "dynamic"] = "static"
    per_channel: bool = True
    operators: tuple[str, ...] = OPERATORS
    keep: tuple[str, ...] = ()
    calibrate: Literal["minmax", "entropy", "percentile"] = "minmax"
    smooth: float = 0.7
    rows: int = 256
    batch: int = 8
    compare_rows: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rows", "batch", "compare_rows"):
            if getattr(self, name) < 1:
                raise InvalidArgument("at least 1 is needed", field=name)
        if not 0 <= self.smooth <= 1:
            raise InvalidArgument("0 to 1 is needed", field="smooth")


class Samples:
    """The quantiser's reader: one batch after another, each with every input of the model, then None."""

    def __init__(self, batches: Iterator[dict[str, Any]], session: Session) -> None:
        self._batches = batches
        self._inputs = session.inputs

    def get_next(self) -> dict[str, Any] | None:
        """The name is the quantiser's."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        return {name: batch[name].astype(kind, copy=False) for name, (kind, _) in self._inputs.items()}


def run(work: StepContext[Parameters]) -> StepResult:
    """Quantises, writes `model`, and compares it with the source."""
    from . import halve

    parameters = work.parameters
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser advises on steps of its own that are not needed here
    source = onnx_file.read(work.inputs["model"])
    model = onnx_file.inferred(halve.lifted(source, OPSET))
    found = [node for node in model.graph.node if node.op_type in parameters.operators]
    if not found:
        raise InvalidArgument(
            f"model: it has no {', '.join(parameters.operators)} to quantise; name the operators in `operators`",
            field="quantise.operators",
        )
    for index, node in enumerate(model.graph.node):  # the quantiser knows nodes by name only
        node.name = node.name or f"{node.op_type}_{index}"
    path = work.folder / "model.onnx"
    try:
        if parameters.method == "static":
            _static(work, model, path)
        else:
            _dynamic(work, model, path)
    except (InvalidArgument, InvalidManifest):
        raise
    except Exception as error:  # whatever the quantiser makes of a graph that it does not understand
        raise InvalidArgument(
            f"model: the quantiser cannot take it: {public(error)}; leave nodes out with `keep`",
            field="model",
            detail=repr(error),
        ) from None
    made = onnx_file.read(path)
    onnx_file.write(made, path)
    count = sum(node.op_type in ("DequantizeLinear", "MatMulInteger", "ConvInteger") for node in made.graph.node)
    work.say(f"{len(found)} nodes to quantise; {count} int8 operators in the new graph")
    work.progress(0.7)
    said = report.compared(work, source, path, "int8", parameters.compare_rows, parameters.seed)
    return StepResult(
        {"model": path}, {**said, "method": parameters.method, "for_tensorrt": parameters.method == "static"}
    )


def _static(work: StepContext[Parameters], model: Any, path: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    parameters = work.parameters
    if "samples" not in work.inputs:
        raise InvalidArgument(
            "samples: static quantisation needs a set of samples (.npz or safetensors); use method dynamic without one",
            field="samples",
        )
    arrays = tensors.samples(work.inputs["samples"], "samples")
    session = Session(model.SerializeToString(), work.threads)
    lacking = sorted(set(session.inputs) - set(arrays))
    if lacking:
        raise InvalidArgument(f"samples: the set lacks the model's input {lacking[0]}", field="samples")
    if parameters.smooth:
        model, count = smoothed(model, arrays, parameters.smooth, parameters.rows, parameters.batch, work.threads)
        work.say(f"{count} activations have outliers, which were moved into weights")
    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    work.say(f"measuring ranges on {min(parameters.rows, len(next(iter(arrays.values()))))} samples")
    quantize_static(
        model,
        str(path),
        Samples(tensors.batches(arrays, parameters.batch, parameters.rows), session),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(parameters.operators),
        nodes_to_exclude=list(parameters.keep),
        per_channel=parameters.per_channel,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=methods[parameters.calibrate],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            # Products of two activations, as in attention, lose most and gain least.
            "MatMulConstBOnly": True,
            # Only what a product reads is int8: what it gives is rounded where the next one reads it.
            "OpTypesToExcludeOutputQuantization": list(parameters.operators),
        },
    )


def _dynamic(work: StepContext[Parameters], model: Any, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    parameters = work.parameters
    quantize_dynamic(
        model,
        str(path),
        op_types_to_quantize=list(parameters.operators),
        nodes_to_exclude=list(parameters.keep),
        per_channel=parameters.per_channel,
        weight_type=QuantType.QInt8,
    )


def _tools(parameters: Parameters) -> dict[str, str]:
    return installed("build", "numpy", "onnx", "onnxruntime")


STEP: Final = Step(
    name="quantise",
    version=1,
    text="float32 to int8, measured on samples (static) or while serving (dynamic)",
    parameters=Parameters,
    inputs=(
        Role("model", "an ONNX model in float32"),
        Role("samples", "inputs by name to measure ranges on", required=False),
        Role("evaluation", "inputs by name and labels, for accuracy before and after", required=False),
    ),
    outputs=(Role("model", "the ONNX model in int8"),),
    tools=_tools,
    run=run,
)
