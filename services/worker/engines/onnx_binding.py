"""Runs an ONNX session with inputs and outputs bound to its device.

Device memory for inputs is kept by shape and filled again, so a batch of a shape that was there before allocates
nothing. Outputs stay on the device until all are there, and are copied back once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .engine import Array

KEPT: Final = 16
"""Shapes of each input whose memory is kept; the longest unused goes."""


class Binding:
    """For one session. device: `cuda`; `cpu` is for tests, and binds the very arrays that it is given first."""

    def __init__(self, session: Any, ort_value: Any, device: str) -> None:
        self._session = session
        self._ort_value = ort_value
        self._device = device
        self._io = session.io_binding()
        self._kept: OrderedDict[tuple[str, tuple[int, ...], str], Any] = OrderedDict()
        self._most = KEPT * max(1, len(session.get_inputs()))

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """Outputs in the order in which they are named."""
        self._io.clear_binding_inputs()
        self._io.clear_binding_outputs()
        for name, array in inputs.items():
            self._io.bind_ortvalue_input(name, self._filled(name, array))
        for name in outputs:
            self._io.bind_output(name, self._device)
        self._session.run_with_iobinding(self._io)
        return list(self._io.copy_outputs_to_cpu())

    def _filled(self, name: str, array: Array) -> Any:
        """The device's value of that shape, with the array in it."""
        key = (name, array.shape, array.dtype.str)
        value = self._kept.pop(key, None)
        if value is None:
            value = self._ort_value.ortvalue_from_numpy(array, self._device, 0)
        else:
            value.update_inplace(array)
        self._kept[key] = value
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return value
