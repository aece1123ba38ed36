"""TorchScript for `convert-torch`: loads an archive without running it, looks at its operators, makes ONNX of it.

The archive is rewritten before torch sees it (penstock/untrusted/torchscript_archive.py). Its operators are looked at
in the compiled graph, where every name is what it turned out to be, before anything of it runs: the exporter does run
it, since it folds what is constant and calls it once. A scripted module does not say which tensors it takes, so whoever
asks for the build does.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from penstock.errors import InvalidArgument, InvalidManifest
from penstock.untrusted import torchscript_archive
from penstock.untrusted.words import public

INSTEAD: Final = "export the module with torch.export.export and torch.export.save, and publish that"
MOST_OPSET: Final = 20
"""Of torch's exporter for scripted modules."""
SIZES: Final = (2, 3, 5, 7)
"""What stands in for sizes that may be any, while the exporter runs the module: no two alike."""

# Files, memory at an address, other processes.
_REACHING: Final = frozenset(
    "from_file save set_ set_data _resize_output_ _resize_output resize_storage_bytes_ from_blob".split()  # noqa: SIM905
)
_PLAIN: Final = frozenset(
    """
    Constant If Loop Return Param ListConstruct ListUnpack TupleConstruct TupleUnpack TupleIndex TupleSlice
    DictConstruct GetAttr SetAttr CreateObject NumToTensor Uninitialized RaiseException Print data device dtype layout
    is_cuda is_cpu isinstance min max abs tolist unchecked_cast unchecked_unwrap_optional rangelist EnumValue EnumName
    AutogradZero requires_grad itemsize index
    """.split()  # noqa: SIM905 (a page of words)
)


def load(path: Path, threads: int) -> Any:
    """The module, not run yet; raises InvalidManifest with public words, the operator's name among them."""
    made = io.BytesIO()
    try:
        with path.open("rb") as source:
            torchscript_archive.rewrite(source, made)
        made.seek(0)

        import torch

        torch.set_num_threads(max(1, threads))
        module = torch.jit.load(made, map_location="cpu").eval()
        graphs = [hook.graph.copy() for hook in (*module._c._get_forward_hooks(), *module._c._get_forward_pre_hooks())]
        graphs.append(module.forward.graph.copy())
        for graph in graphs:  # calls of other methods and classes become what they call
            torch._C._jit_pass_inline(graph)
    except InvalidArgument as error:
        raise _wrong(error.message) from None
    except Exception as error:  # whatever torch makes of an archive that it does not understand
        raise _wrong(f"PyTorch cannot load it: {public(error)}; {INSTEAD}", repr(error)) from None
    for graph in graphs:
        for node in _nodes(graph):
            check(node.kind())
    return module


def check(operator: str) -> None:
    """Raises InvalidManifest for an operator that does more than compute (`aten::save`), or that ONNX cannot have."""
    space, _, name = operator.partition("::")
    if not ((space == "aten" and name not in _REACHING) or (space == "prim" and name in _PLAIN)):
        raise _wrong(f"it calls the operator {operator[:60]}, which is not run here; write the module without it")


def examples(module: Any, inputs: Mapping[str, tuple[int, ...]], datatypes: Mapping[str, str]) -> dict[str, Any]:
    """A tensor for every argument of the module, in its order; raises InvalidArgument where they do not fit.

    inputs: shape by name, -1 for any size. datatypes: of a manifest, by name; FP32 where it is not said.
    """
    import torch

    kinds = {
        "FP32": torch.float32, "FP16": torch.float16, "FP64": torch.float64, "INT64": torch.int64,
        "INT32": torch.int32, "INT8": torch.int8, "UINT8": torch.uint8, "BOOL": torch.bool,
    }  # fmt: skip
    taken = [each.name for each in module.forward.schema.arguments][1:]
    if set(inputs) != set(taken):
        field = "convert-torch.inputs"
        shown = ", ".join(f"{name}: [-1, ...]" for name in taken)
        raise InvalidArgument(
            f"{field}: a scripted module does not say what it takes; give the shape of each argument: {{{shown}}}",
            field=field,
        )
    made = {}
    for name in taken:
        kind = datatypes.get(name, "FP32")
        if kind not in kinds or not all(size > 0 or size == -1 for size in inputs[name]):
            raise InvalidArgument(
                f"convert-torch.inputs: {name} needs sizes, -1 for any, and a datatype of {', '.join(kinds)}",
                field="convert-torch.inputs",
            )
        free = iter(SIZES * 8)
        made[name] = torch.zeros([next(free) if size == -1 else size for size in inputs[name]], dtype=kinds[kind])
    return made


def export(module: Any, tensors: Mapping[str, Any], inputs: Mapping[str, tuple[int, ...]], opset: int, to: Path) -> Any:
    """The ONNX model, its inputs named; raises what the exporter raises. to: a file that it writes meanwhile."""
    import onnx
    import torch

    any_size = {
        name: {axis: f"{name}.{axis}" if axis else "batch" for axis, size in enumerate(shape) if size == -1}
        for name, shape in inputs.items()
    }
    # The exporter that torch has for scripted modules is the older one; the newer one takes exported programs only.
    torch.onnx.export(
        module, tuple(tensors.values()), to, dynamo=False, verbose=False, opset_version=min(opset, MOST_OPSET),
        input_names=list(tensors), dynamic_axes=any_size,
    )  # fmt: skip
    model = onnx.load_model_from_string(to.read_bytes())
    to.unlink()
    return model


def answering(module: Any, names: list[str]) -> Callable[[Mapping[str, Any]], Any]:
    """What the module gives for arrays by name."""
    import torch

    def answer(feeds: Mapping[str, Any]) -> Any:
        with torch.inference_mode():
            return module(*(torch.from_numpy(feeds[name]) for name in names))

    return answer


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _wrong(text: str, detail: str = "") -> InvalidManifest:
    return InvalidManifest(f"model: {text}", field="model", detail=detail)
