"""CUDA graphs of a program, over a torch that keeps count of what is done in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from services.worker.engines.torch_graphs import MOST, Graphs


class Tensor:
    """Numbers that can be moved, and written over in place."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values, dtype=float)
        self.shape = self.values.shape

    def to(self, device: str) -> Tensor:
        return Tensor(self.values.copy())

    def copy_(self, other: Tensor, non_blocking: bool) -> None:
        self.values[...] = other.values


class Torch:
    """Capture records the call; replay does it again on the same memory."""

    def __init__(self, capturable: bool = True) -> None:
        self.said: list[str] = []
        self.capturing = False
        self.capturable = capturable
        stream = SimpleNamespace(wait_stream=lambda other: self.said.append("wait"))
        self.cuda = SimpleNamespace(
            Stream=lambda: stream,
            current_stream=lambda: stream,
            stream=self._aside,
            graph=self._graph,
            CUDAGraph=self._new,
        )

    def _new(self) -> Any:
        made = SimpleNamespace(work=None)

        def replay() -> None:
            self.said.append("replay")
            made.work()

        made.replay = replay
        return made

    @contextmanager
    def _aside(self, stream: Any) -> Iterator[None]:
        self.said.append("aside")
        yield

    @contextmanager
    def _graph(self, graph: Any) -> Iterator[None]:
        self.said.append("capture")
        if not self.capturable:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.capturing = True
        yield
        self.capturing = False
        graph.work = self.work

    def program(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """y = 2x."""
        self.said.append("call")
        x = inputs["x"]
        y = Tensor(np.zeros(x.shape) if self.capturing else x.values * 2)
        if self.capturing:
            self.work = lambda: y.values.__setitem__(..., x.values * 2)
        return y


def test_each_shape_is_warmed_up_and_captured_once() -> None:
    torch = Torch()
    graphs = Graphs(torch, torch.program)
    for values in ([1.0, 2.0], [3.0, 4.0], [5.0], [6.0]):
        assert graphs.run({"x": Tensor(values)}).values.tolist() == [2 * value for value in values]
    first = ["wait", "aside", "call", "wait", "capture", "call", "replay"]
    assert torch.said == [*first, "replay", *first, "replay"]


def test_what_cannot_be_captured_runs_as_it_is() -> None:
    torch = Torch(capturable=False)
    graphs = Graphs(torch, torch.program)
    for value in (1.0, 2.0):
        assert graphs.run({"x": Tensor([value])}).values.tolist() == [2 * value]
    assert torch.said.count("capture") == 1
    assert not graphs.possible


def test_no_more_shapes_are_captured_than_memory_is_kept_for() -> None:
    torch = Torch()
    graphs = Graphs(torch, torch.program)
    for size in range(1, MOST + 4):
        assert graphs.run({"x": Tensor([1.0] * size)}).values.tolist() == [2.0] * size
    assert torch.said.count("capture") == MOST
    graphs.clear()
    graphs.run({"x": Tensor([1.0])})
    assert torch.said.count("capture") == MOST + 1
