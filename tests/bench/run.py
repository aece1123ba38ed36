"""What all groups of measurements share: where, with what, and what has been found so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import exchange
from tests.bench.cells import Bench, Cell
from tests.bench.exchange import Exchange
from tests.bench.place import Place


@dataclass
class Run:
    """One run of the benchmark. seconds: of a cell; folder: for models; cells: what was measured, by name."""

    place: Place
    bench: Bench
    folder: Path
    seconds: float
    say: Callable[[str], None]
    cells: dict[str, Cell] = field(default_factory=dict)
    _ready: set[str] = field(default_factory=set)

    def keep(self, name: str, cell: Mapping[str, float]) -> None:
        """Records a cell and says it."""
        self.cells[name] = {key: round(value, 4) for key, value in cell.items()}
        said = ("both_us", "rate", "p50_ms", "p99_ms")
        shown = {key: cell[key] for key in said if key in cell} or dict(cell)
        self.say(f"{name}: " + ", ".join(f"{key} {value:,.4g}" for key, value in shown.items()))

    def deployed(self, name: str, make: Callable[[Path], Path]) -> str:
        """Makes and deploys the model unless it is deployed; the id of the worker that serves it."""
        if name not in self._ready:
            self.place.deploy(make(self.folder / name))
            self._ready.add(name)
        asked: Mapping[str, Callable[[], Exchange]] = {"add1": exchange.add1, "image": exchange.image}
        return self.place.worker_of(asked.get(name, lambda: exchange.affine(name))())
