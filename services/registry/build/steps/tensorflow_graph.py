"""What the conversions from TensorFlow share: a function of tensors to ONNX, by tf2onnx, and the two compared.

TensorFlow is imported inside functions. Nothing here loads a file of somebody else's: the steps hand over functions
that they made of checked ones.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from penstock.errors import InvalidArgument, InvalidManifest
from penstock.untrusted.words import public

from ..step import Json, StepContext, StepResult
from . import onnx_file
from .convert_torch import BATCH, rename_tensors

LEAST_OPSET, MOST_OPSET = 13, 18
ROWS: Final = 2
_NEAR: Final = 1e-3


def check_opset(opset: int) -> None:
    """Raises InvalidArgument for a version of the operators that tf2onnx does not write."""
    if not LEAST_OPSET <= opset <= MOST_OPSET:
        raise InvalidArgument(f"{LEAST_OPSET} to {MOST_OPSET} is needed", field="opset")


def quiet(threads: int) -> None:
    """Before TensorFlow is imported: on the processor, with so many threads, without words about itself."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = str(max(1, threads))


def frozen(call: Callable[..., Any], specs: Sequence[Any]) -> Any:
    """The concrete function of `call` on inputs of these specs, its variables made constants."""
    import tensorflow
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    traced = tensorflow.function(call, autograph=False).get_concrete_function(*specs)
    # Loops and branches stay whole: tf2onnx has a counterpart for them, not for what they are lowered to.
    return convert_variables_to_constants_v2(traced, lower_control_flow=False)


def converted(function: Any, inputs: Sequence[str], outputs: Sequence[str], opset: int) -> Any:
    """The ONNX model of a frozen function under these names, in the order of its inputs and outputs."""
    import tf2onnx

    own = ([tensor.name for tensor in function.inputs], [tensor.name for tensor in function.outputs])
    try:
        graph = function.graph.as_graph_def()
        model, outside = tf2onnx.convert.from_graph_def(graph, input_names=own[0], output_names=own[1], opset=opset)
    except Exception as error:  # TensorFlow's errors, tf2onnx's, and plain ones
        raise cannot(public(error), repr(error)) from None
    check(model, outside)
    given = [value.name for value in model.graph.input]
    lost = [name for tensor, name in zip(own[0], inputs, strict=True) if tensor not in given]
    if lost:
        raise cannot(f"nothing depends on the input {lost[0]}; leave it out of the signature")
    rename_tensors(model, dict(zip((*own[0], *own[1]), (*inputs, *outputs), strict=True)))
    for value in model.graph.input:  # tf2onnx gives every unknown size a name of its own
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = BATCH
    return model


def check(model: Any, outside: Any) -> None:
    """Raises InvalidManifest where tf2onnx left something that is no ONNX, with the operator's name."""
    from onnx import defs

    if outside:
        raise cannot("it is larger than an ONNX file can be")
    known = {schema.name for schema in defs.get_all_schemas()}
    for node in _nodes(model.graph):
        if node.domain not in ("", "ai.onnx", "ai.onnx.ml") or (not node.domain and node.op_type not in known):
            raise cannot(
                f"the operator {public(node.op_type, 60)} has no conversion to ONNX; build the model without it, or "
                "do its work before or after the model"
            )


def distinct(names: Sequence[str], step: str) -> None:
    """Raises InvalidArgument where two tensors would have the same name."""
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise InvalidArgument(f"{step}.names: {doubled[0]!r} is the name of two tensors; name them", field="names")


def renamed(names: Sequence[str], wanted: Mapping[str, str]) -> list[str]:
    """The names of tensors with those that were asked for in the place of the file's own."""
    return [wanted.get(name, re.sub(r"[^A-Za-z0-9_.-]", "_", name)) for name in names]


def check_names(wanted: Mapping[str, str], known: Sequence[str], step: str) -> None:
    """Raises InvalidArgument where a name is changed that no tensor has."""
    strange = sorted(set(wanted) - set(known))
    if strange:
        raise InvalidArgument(
            f"{step}.names: there is no {strange[0][:60]!r}; there are {', '.join(known)}", field="names"
        )


def written(
    work: StepContext[Any], model: Any, before: int, function: Any = None, more: Mapping[str, Any] | None = None
) -> StepResult:
    """Writes `model`, compares it with the frozen function where there is one, and reports. before: bytes read."""
    made = onnx_file.write(model, work.folder / "model.onnx")
    work.progress(0.8)
    inputs, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))
    work.say(f"{made.stat().st_size:,} bytes, inputs {', '.join(inputs)}, outputs {', '.join(outputs)}")
    report: Json = {
        "before": {"bytes": before},
        "after": onnx_file.summary(made, model),
        "inputs": inputs,
        "outputs": outputs,
        "interface": onnx_file.interface(model),
        **(more or {}),
    }
    if function is not None:
        report["largest_difference"] = _compare(work, function, made)
    return StepResult({"model": made}, report)


def cannot(words: str, detail: str = "") -> InvalidManifest:
    """The error for a model that cannot become ONNX."""
    return InvalidManifest(f"model: it cannot be converted: {words}", field="model", detail=detail)


def _compare(work: StepContext[Any], function: Any, path: Path) -> float | None:
    """The largest difference on random inputs, as a share of the largest value; None where there is none to say.

    Raises InvalidManifest where it is large.
    """
    import tensorflow

    from .samples import random_inputs
    from .session import Session

    session = Session(path.read_bytes(), work.threads)
    feeds = random_inputs(onnx_file.read(path), session, ROWS, seed=0)
    try:
        answer = function(*(tensorflow.constant(feeds[name]) for name in session.inputs))
    except Exception as error:  # the model does not take what was made up: nothing can be said
        work.say(f"not compared: the model refuses random inputs ({public(error, 100)})")
        return None
    values = list(answer) if isinstance(answer, (list, tuple)) else [answer]
    found = session.run(feeds)
    largest = 0.0
    for name, value in zip(session.outputs, values, strict=True):
        wanted = np.asarray(value)
        if wanted.dtype.kind != "f" or not wanted.size:
            continue
        gap = float(np.abs(wanted - found[name]).max() / max(1.0, float(np.abs(wanted).max())))
        largest = max(largest, gap)
        if not gap <= _NEAR:
            raise cannot(f"the converted output {name} differs from the model's by {gap:.1e}; report this model")
    work.say(f"differs from the model by {largest:.1e} at most")
    return largest


def _nodes(graph: Any) -> Any:
    for node in graph.node:
        yield node
        for inner in onnx_file.subgraphs(node):
            yield from _nodes(inner)
