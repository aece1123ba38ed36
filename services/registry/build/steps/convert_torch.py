"""`convert-torch`: an exported program of PyTorch (`.pt2`) or a TorchScript archive to ONNX.

The archive is rewritten before torch sees it (penstock/untrusted/torch_archive.py, torchscript_archive.py), so nothing
in it is unpickled by Python or run by loading. What is refused: `.pt` or `.pth` files of torch.save, which are pickles.
Weights alone belong in safetensors, and a program in torch.export.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from penstock.errors import InvalidArgument, InvalidManifest
from penstock.untrusted.torch_archive import rewrite
from penstock.untrusted.torchscript_archive import is_torchscript
from penstock.untrusted.words import public

from ..step import Role, Step, StepContext, StepResult, installed
from . import onnx_file, torchscript

OPERATOR = re.compile(r"\b((?:aten|prims|torchvision|quantized)[.:]+[a-z_0-9]+(?:\.[A-Za-z_0-9]+)?)")
UNKNOWN: Final = re.compile("No ONNX function|not supported|Unsupported")
BATCH: Final = "batch"
SERVED: Final = "serve the program itself (format torch-export)"

Answer = Callable[[Mapping[str, Any]], Any]
"""Arrays by name → what the module gives for them."""


@dataclass(frozen=True)
class Parameters:
    """opset: of the standard operators. outputs: names for what the program returns, in its order; a program that
    returns a dict has names already. inputs: for TorchScript alone, argument → shape, -1 for any size; datatypes:
    theirs where it is not FP32."""

    opset: int = 20
    outputs: tuple[str, ...] = ()
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    datatypes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 18 <= self.opset <= 23:
            raise InvalidArgument("18 to 23 is needed", field="opset")
        if len(set(self.outputs)) != len(self.outputs):
            raise InvalidArgument("every output needs a name of its own", field="outputs")


def run(work: StepContext[Parameters]) -> StepResult:
    """Converts, names inputs and outputs, compares the two, writes `model`."""
    scripted = is_script(work.inputs["model"])
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # of torch, about itself
    model, names, answer = _of_script(work) if scripted else _of_program(work)
    _rename(model, names)
    path = onnx_file.write(model, work.folder / "model.onnx")
    made = onnx_file.read(path)
    work.progress(0.8)
    largest = _compare(work, answer, path)
    work.say(f"{path.stat().st_size:,} bytes; differs from the program by {largest or 0:.1e} at most")
    return StepResult(
        {"model": path},
        {
            "before": {"bytes": work.inputs["model"].stat().st_size},
            "after": onnx_file.summary(path, made),
            "inputs": [value.name for value in made.graph.input],
            "outputs": [value.name for value in made.graph.output],
            "interface": onnx_file.interface(made),
            "largest_difference": largest,
        },
    )


def is_script(path: Path) -> bool:
    """Whether it is TorchScript rather than a program of torch.export.

    Raises InvalidManifest for files of torch that hold pickles only, in words of what to publish instead.
    """
    with path.open("rb") as file:
        head = file.read(4)
    if head[:1] == b"\x80" or not head.startswith(b"PK"):
        raise _wrong(
            "this is no torch.export archive (.pt2); a pickle of torch.save is never read: save the program with "
            "torch.export.save, or the weights as safetensors"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()[:100_000]
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        raise _wrong("the archive is damaged") from None
    if is_torchscript(names):
        return True
    if any(name.partition("/")[2] == "data.pkl" for name in names):
        raise _wrong(
            "this is a pickle of torch.save, which is never read: save the program with torch.export.save, or the "
            "weights as safetensors"
        )
    return False


def _of_program(work: StepContext[Parameters]) -> tuple[Any, list[str], Answer]:
    """The model of an exported program, the names of its outputs, and how to ask the program itself."""
    if work.parameters.inputs or work.parameters.datatypes:
        raise InvalidArgument(
            "convert-torch.inputs: an exported program says itself what it takes; leave it out",
            field="convert-torch.inputs",
        )
    program = load_program(work.inputs["model"], work.threads)
    work.say(f"a program of {len(program.graph.nodes)} nodes")
    work.progress(0.3)
    spec = program.call_spec.out_spec
    keys = [str(key) for key in spec.context] if spec.type is dict and spec.num_leaves == len(spec.context) else []
    return _export(program, work.parameters.opset), list(work.parameters.outputs) or keys, partial(_asked, program)


def _of_script(work: StepContext[Parameters]) -> tuple[Any, list[str], Answer]:
    """The same of a scripted module."""
    parameters = work.parameters
    module = torchscript.load(work.inputs["model"], work.threads)
    work.say("a scripted module")
    work.progress(0.3)
    tensors = torchscript.examples(module, parameters.inputs, parameters.datatypes)
    try:
        made = work.folder / "scripted.onnx"
        model = torchscript.export(module, tensors, parameters.inputs, parameters.opset, made)
    except Exception as error:  # the exporter's classes are private
        raise _cannot(error, torchscript.INSTEAD) from None
    return model, list(parameters.outputs), torchscript.answering(module, list(tensors))


def load_program(path: Path, threads: int) -> Any:
    """The exported program of an archive, rewritten first; raises InvalidManifest with public words."""
    try:
        with path.open("rb") as source, os.fdopen(os.memfd_create("program"), "w+b") as checked:
            rewrite(source, checked)
            checked.seek(0)

            import torch

            torch.set_num_threads(max(1, threads))
            program = torch.export.load(checked)
    except InvalidArgument as error:
        raise _wrong(error.message) from None
    except Exception as error:  # whatever torch makes of a program that it does not understand
        raise _wrong(f"PyTorch cannot load it: {public(error)}", repr(error)) from None
    for node in program.graph.nodes:  # the allow list of names again, now by what the names turned out to be
        if node.op == "call_function" and isinstance(node.target, str):
            raise _wrong(f"the program calls {node.target[:60]!r}, which this PyTorch does not have")
    return program


def _export(program: Any, opset: int) -> Any:
    import torch

    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, _stdout(nowhere):
            made = torch.onnx.export(
                program, dynamo=True, opset_version=opset, external_data=False, verbose=False, optimize=True
            )
    except Exception as error:  # the exporter's classes are private
        raise _cannot(error) from None
    model = made.model_proto
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    return model


class _stdout:
    """Keeps the exporter from printing what it is about to do."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __enter__(self) -> None:
        import sys

        self._kept, sys.stdout = sys.stdout, self._target

    def __exit__(self, *_: object) -> None:
        import sys

        sys.stdout = self._kept


def _cannot(error: BaseException, instead: str = SERVED) -> InvalidManifest:
    """The operator that has no conversion, out of the exporter's words or those of what caused it."""
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < 8:
        chain.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    text = "\n".join(chain)
    found = next((OPERATOR.findall(line) for line in text.splitlines() if UNKNOWN.search(line)), None)
    found = found or OPERATOR.findall(text)
    if found:
        return _wrong(
            f"the operator {found[0]} has no conversion to ONNX; write the module without it and export it again, or "
            + instead,
            text,
        )
    return _wrong(f"PyTorch cannot convert it: {public(chain[0] or repr(error), 200)}; {instead}", text)


def _rename(model: Any, wanted: list[str]) -> None:
    """Gives outputs these names, where there are some, and the first dimension the name batch."""
    given = [value.name for value in model.graph.output]
    names = wanted or given
    if len(names) != len(given):
        raise InvalidArgument(
            f"convert-torch.outputs: the program returns {len(given)} tensors, and {len(names)} names were given",
            field="convert-torch.outputs",
        )
    taken = {value.name for value in model.graph.input}
    for old, new in zip(given, names, strict=True):
        if new in taken and new != old:
            raise InvalidArgument(f"convert-torch.outputs: {new!r} is an input already", field="convert-torch.outputs")
    rename_tensors(model, dict(zip(given, names, strict=True)))


def rename_tensors(model: Any, names: dict[str, str]) -> None:
    """Renames tensors of the main graph, and the first dimension of every input, where they share it, to batch.

    A tensor that has a new name already makes way.
    """
    changed = {old: new for old, new in names.items() if old != new}
    used = {name for graph in _graphs(model.graph) for node in graph.node for name in [*node.input, *node.output]}
    changed |= {new: f"{new}/inner" for new in list(changed.values()) if new in used and new not in changed}
    # A name means the same tensor at every depth: ONNX lets no inner one hide an outer one.
    for graph in _graphs(model.graph):
        for node in graph.node:
            for side in (node.input, node.output):
                for index, name in enumerate(side):
                    side[index] = changed.get(name, name)
        for values in (graph.input, graph.output, graph.value_info, graph.initializer):
            for value in values:
                value.name = changed.get(value.name, value.name)
    _name_batch(model)


def _graphs(graph: Any) -> Iterator[Any]:
    """The graph and all inside it."""
    yield graph
    for node in graph.node:
        for inner in onnx_file.subgraphs(node):
            yield from _graphs(inner)


def _name_batch(model: Any) -> None:
    first = {dims[0].dim_param for value in model.graph.input if (dims := value.type.tensor_type.shape.dim)}
    if len(first) == 1 and (symbol := first.pop()):
        for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param == symbol:
                    dim.dim_param = BATCH


def _asked(program: Any, feeds: Mapping[str, Any]) -> Any:
    """What an exported program gives for arrays by name."""
    import torch

    positional, keywords = program.call_spec.in_spec.children()
    tensors = [torch.from_numpy(feeds[name]) for name in program.graph_signature.user_inputs]
    count = positional.num_leaves
    with torch.inference_mode():
        return program.module(check_guards=False)(
            *tensors[:count], **dict(zip(keywords.context, tensors[count:], strict=True))
        )


def flat(answer: Any) -> Iterator[Any]:
    """The tensors of what a module returns, in the order in which the exporters name them."""
    if isinstance(answer, (dict, list, tuple)):
        for inner in answer.values() if isinstance(answer, dict) else answer:
            yield from flat(inner)
    else:
        yield answer


def _compare(work: StepContext[Parameters], asked: Answer, path: Path) -> float | None:
    """The largest difference between program and graph on random inputs; None where they cannot be compared.

    Raises InvalidManifest where it is large.
    """
    import numpy as np
    import torch

    from .samples import random_inputs
    from .session import Session

    session = Session(path.read_bytes(), work.threads)
    feeds = random_inputs(onnx_file.read(path), session, 2, seed=0)
    try:
        answer = asked(feeds)
    except Exception as error:  # the program does not take what was made up: nothing can be said
        work.say(f"not compared: the program refuses random inputs ({public(error, 100)})")
        return None
    given = session.run(feeds)
    largest = 0.0
    for name, value in zip([each.name for each in onnx_file.read(path).graph.output], flat(answer), strict=True):
        found = given.get(name)
        if found is None or not value.dtype.is_floating_point:
            continue
        wanted = value.to(torch.float32).numpy()
        gap = float(np.abs(wanted - found).max()) if wanted.size else 0.0
        largest = max(largest, gap)
        if gap > 1e-2 * max(1.0, float(np.abs(wanted).max())):
            raise _wrong(f"the converted output {name} differs from the program's by {gap:.1e}; report this program")
    return largest


def _wrong(text: str, detail: str = "") -> InvalidManifest:
    return InvalidManifest(f"model: {text}", field="model", detail=detail)


def _tools(parameters: Parameters) -> dict[str, str]:
    return installed("build-torch", "torch", "onnxscript", "onnx", "onnxruntime")


STEP: Final = Step(
    name="convert-torch",
    version=2,
    text="an exported program of PyTorch (.pt2) or a TorchScript archive to ONNX",
    parameters=Parameters,
    inputs=(Role("model", "the archive that torch.export.save or torch.jit.save writes"),),
    outputs=(Role("model", "the ONNX model"),),
    tools=_tools,
    run=run,
)
