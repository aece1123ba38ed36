"""Exported programs of PyTorch (`.pt2`), on the processor or a GPU. Nothing is ever unpickled: see penstock/untrusted.

A program runs on a GPU when its manifest asks for devices and PyTorch finds one, through CUDA graphs (torch_graphs.py).
A package that a trusted builder compiled from it runs in its place (torch_compiled.py).

Inputs have the names of the program's arguments. Outputs have names where the program returns a dict; a program that
returns one tensor, or a list of them, gives them in the order in which the manifest asks the engine for them.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import Internal, InvalidArgument, InvalidManifest, PenstockError
from penstock.untrusted.torch_archive import rewrite
from penstock.v1 import manifest_pb2 as pb

from . import torch_compiled
from .contract import promised
from .engine import NOTHING, Array, DeviceLost, Means, OutOfMemory, TensorInfo, dtype, open_model, public
from .torch_graphs import Graphs
from .trt import driver

_DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "bfloat16": "BF16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip


def probe(means: Means = NOTHING) -> str | None:
    """None where PyTorch is installed, else what to install. Does not import it."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed on this worker (install penstock[worker-torch])"
    return None


def load(files: Mapping[str, Path], manifest: pb.Manifest, threads: int, means: Means = NOTHING) -> TorchEngine:
    """The program of role `model`. Raises InvalidManifest with a public reason where it cannot be loaded."""
    try:
        program = _load_program(files["model"], threads)
        device = _device(manifest)
        engine = TorchEngine(program, promised(manifest), device, _compiled(files, means, device))
    except PenstockError as error:
        raise InvalidManifest(f"files.model: {error.message}", field="files.model", detail=error.detail) from None
    except Exception as error:  # whatever torch makes of a program that it does not understand
        raise InvalidManifest(
            f"files.model: PyTorch cannot load it: {public(error)}", field="files.model", detail=repr(error)
        ) from None
    most = manifest.batching.max_batch_size
    if most > 0 and most > engine.batch_limit:
        raise InvalidManifest(
            f"batching.max_batch_size: {most} is more than the {engine.batch_limit} that the program was exported for",
            field="batching.max_batch_size",
        )
    return engine


def _load_program(path: Path, threads: int) -> Any:
    """The exported program of the rewritten archive, which lies in anonymous memory for as long as this takes."""
    with open_model(path) as source, os.fdopen(os.memfd_create("program"), "w+b") as checked:
        rewrite(source, checked)
        checked.seek(0)

        import torch

        torch.set_num_threads(max(1, threads))
        program = torch.export.load(checked)
    for node in program.graph.nodes:  # the allow list of names again, now by what the names turned out to be
        if node.op == "call_function" and isinstance(node.target, str):
            raise InvalidArgument(f"the program calls {node.target[:60]!r}, which this PyTorch does not have")
    return program


def _device(manifest: pb.Manifest) -> str:
    import torch

    asked = manifest.resources.HasField("devices") and manifest.resources.devices.kind in ("", "gpu")
    return "cuda" if asked and torch.cuda.is_available() else "cpu"


def _compiled(files: Mapping[str, Path], means: Means, device: str) -> Any:
    import torch

    return torch_compiled.load(files, means, torch, device)


class TorchEngine:
    """The module of an exported program, or a package compiled from it, run without gradients.

    device: `cpu` or `cuda`.
    """

    def __init__(self, program: Any, promise: Any, device: str = "cpu", compiled: Any = None) -> None:
        import torch

        self._torch = torch
        self._device = device
        self._limits = {str(symbol): limits for symbol, limits in program.range_constraints.items()}
        self.batch_limit = 2**31
        nodes = {node.name: node for node in program.graph.nodes}
        self.inputs = {name: self._info(name, nodes[name].meta["val"]) for name in program.graph_signature.user_inputs}
        self._note_batch_limit(nodes[name].meta["val"] for name in program.graph_signature.user_inputs)
        given = list(program.graph_signature.user_outputs)
        self._keys = _output_keys(program.call_spec.out_spec, len(given), list(promise.wanted))
        self.outputs = {
            key: self._info(key, nodes[name].meta["val"]) for key, name in zip(self._keys, given, strict=True)
        }
        self._wanted = frozenset(promise.wanted)
        # Arguments by keyword stay by keyword: the tree of the call is ((positional...), {keyword: ...}).
        positional, keywords = program.call_spec.in_spec.children()
        self._keywords = list(keywords.context)
        self._positional = list(program.graph_signature.user_inputs)[: positional.num_leaves]
        if any(not child.is_leaf() for child in (*positional.children(), *keywords.children())):
            raise InvalidArgument("the program takes nested arguments; give every tensor an argument of its own")
        # Shapes were checked against the manifest and the manifest against the program; guards are not loaded.
        self._module = compiled or self._moved(program).module(check_guards=False)
        self._graphs = Graphs(torch, self._called) if device == "cuda" else None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See Engine.run."""
        fed = {name: self._tensor(inputs[name], info) for name, info in self.inputs.items()}
        try:
            with self._torch.inference_mode():
                answer = self._graphs.run(fed) if self._graphs else self._called(fed)
        except MemoryError:
            raise
        except Exception as error:  # torch raises RuntimeError, ValueError and more for what it dislikes
            raise self._failure(error) from None
        values = answer.values() if isinstance(answer, dict) else answer
        if isinstance(values, self._torch.Tensor):
            values = (values,)
        return {key: self._array(value) for key, value in zip(self._keys, values, strict=True) if key in self._wanted}

    def close(self) -> None:
        """See Engine.close."""
        self._module = None
        if self._graphs:
            self._graphs.clear()
            self._torch.cuda.empty_cache()

    def _called(self, fed: Mapping[str, Any]) -> Any:
        return self._module(*(fed[name] for name in self._positional), **{name: fed[name] for name in self._keywords})

    def _moved(self, program: Any) -> Any:
        if self._device == "cpu":
            return program
        from torch.export.passes import move_to_device_pass

        return move_to_device_pass(program, self._device)

    def _failure(self, error: Exception) -> PenstockError:
        if isinstance(error, self._torch.OutOfMemoryError):
            return OutOfMemory("the batch needs more memory than is free on the device", detail=repr(error))
        if self._device == "cuda" and (status := driver.lost()):
            return DeviceLost(f"the device of this replica is lost (CUDA error {status})", detail=repr(error))
        return Internal("the model failed on these inputs", detail=repr(error))

    def _info(self, name: str, value: Any) -> TensorInfo:
        if not isinstance(value, self._torch.Tensor):
            raise InvalidArgument(f"{name}: the program takes or gives something that is not a tensor")
        kind = str(value.dtype).removeprefix("torch.")
        shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        return TensorInfo(name, _DATATYPES.get(kind, kind), shape)

    def _note_batch_limit(self, values: Any) -> None:
        for value in values:
            first = value.shape[0] if value.dim() else 0
            if not isinstance(first, int) and (limits := self._limits.get(str(first))) is not None:
                upper = str(limits.upper)
                if upper.isdecimal():
                    self.batch_limit = min(self.batch_limit, int(upper))

    def _tensor(self, array: Array, info: TensorInfo) -> Any:
        plain = np.ascontiguousarray(array, dtype=dtype(info.datatype))
        if not plain.flags.writeable:  # torch has no read-only tensors
            plain = plain.copy()
        tensor = self._torch.from_numpy(plain)
        return tensor.view(self._torch.bfloat16) if info.datatype == "BF16" else tensor

    def _array(self, tensor: Any) -> Array:
        plain = tensor.detach().cpu().contiguous()
        if plain.dtype == self._torch.bfloat16:
            return np.asarray(plain.view(self._torch.int16).numpy()).view("<u2")
        return np.asarray(plain.numpy())


def _output_keys(tree: Any, count: int, wanted: list[str]) -> list[str]:
    """A name for every output tensor."""
    if tree.type is dict and all(child.is_leaf() for child in tree.children()):
        return list(tree.context)
    flat = tree.is_leaf() or all(child.is_leaf() for child in tree.children())
    if not flat or count != len(wanted):
        raise InvalidArgument(
            f"the program gives {count} outputs without names, and the manifest asks for {len(wanted)} of it"
        )
    return wanted
