"""CUDA graphs for a program: one for each shape of its inputs, captured when that shape is seen first.

A graph reads and writes memory that does not move, so inputs are copied into it, and outputs are valid until the next
run. A program that cannot be captured, because it looks at its data on the way, is run as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

MOST: Final = 32
"""Shapes that are captured; more are run as they are, since each keeps memory on the device."""


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph and the memory that it works on."""

    graph: Any
    inputs: Mapping[str, Any]
    outputs: Any


class Graphs:
    """For one program on one device.

    Args:
        call: tensors on the device by name → what the program gives.
    """

    def __init__(self, torch: Any, call: Callable[[Mapping[str, Any]], Any]) -> None:
        self._torch, self._call = torch, call
        self._captured: dict[tuple[tuple[str, tuple[int, ...]], ...], Captured] = {}
        self.possible = True

    def run(self, inputs: Mapping[str, Any]) -> Any:
        """What the program gives for tensors of this machine or of the device."""
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in inputs.items())
        captured = self._captured.get(shapes)
        if captured is None and self.possible and len(self._captured) < MOST:
            captured = self._capture({name: tensor.to("cuda") for name, tensor in inputs.items()})
            if captured is not None:
                self._captured[shapes] = captured
        if captured is None:
            return self._call({name: tensor.to("cuda") for name, tensor in inputs.items()})
        for name, tensor in inputs.items():
            captured.inputs[name].copy_(tensor, non_blocking=True)
        captured.graph.replay()
        return captured.outputs

    def clear(self) -> None:
        """Gives their memory back."""
        self._captured.clear()

    def _capture(self, inputs: Mapping[str, Any]) -> Captured | None:
        cuda = self._torch.cuda
        # Off the default stream, and once before: what is set up lazily cannot be set up while a graph is captured.
        aside = cuda.Stream()
        aside.wait_stream(cuda.current_stream())
        with cuda.stream(aside):
            self._call(inputs)
        cuda.current_stream().wait_stream(aside)
        graph = cuda.CUDAGraph()
        try:
            with cuda.graph(graph):
                outputs = self._call(inputs)
        except RuntimeError:  # torch says with it that something is not permitted under capture
            self.possible = False
            return None
        return Captured(graph, inputs, outputs)
