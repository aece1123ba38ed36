"""Installed sizes against what is promised: `python -m tests.harness.sizes` prints a table and exits 1 above a limit.

The demo's is the environment that runs this; a worker's and the SDK's are what pip resolves for their extra, looked up
in the same environment, so nothing is installed twice.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

from packaging.requirements import Requirement

MB = 1_000_000
# (what, extras of penstock, limit in MB)
LIMITS = (("SDK alone", frozenset[str](), 60), ("ONNX worker", frozenset({"worker-onnx"}), 350))
DEMO_LIMIT = 750


def size_of(name: str) -> int:
    """Bytes of a distribution's files on disk, bytecode included."""
    files = importlib.metadata.distribution(name).files or []
    paths = {Path(str(file.locate())) for file in files}
    return sum(path.stat().st_size for path in paths if path.is_file())


def closure(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]] | None = None) -> set[str]:
    """The distribution and everything that it requires with those extras, normalised names."""
    seen = set() if seen is None else seen
    key = (name.lower().replace("_", "-"), extras)
    if key in seen:
        return set()
    seen.add(key)
    found = {key[0]}
    for text in importlib.metadata.requires(name) or []:
        requirement = Requirement(text)
        environments = [{"extra": extra} for extra in extras] or [{"extra": ""}]
        if requirement.marker is None or any(requirement.marker.evaluate(each) for each in environments):
            found |= closure(requirement.name, frozenset(requirement.extras), seen)
    return found


def tree_size(folder: Path) -> int:
    """Bytes of all files below a folder; hard links once."""
    sizes = {(stat.st_dev, stat.st_ino): stat.st_size for path in folder.rglob("*") if (stat := path.lstat())}
    return sum(sizes.values())


def main() -> int:
    """Prints and judges."""
    own = sum(path.stat().st_size for path in (Path(__file__).parents[2] / "penstock").rglob("*") if path.is_file())
    worst = 0
    for what, extras, limit in LIMITS:
        names = closure("penstock", extras) - {"penstock"}
        total = own + sum(size_of(name) for name in names)
        print(f"{what:<24} {total / MB:7.0f} MB   limit {limit} MB   {len(names)} distributions")
        worst |= total > limit * MB
    if not (Path(sys.prefix) / ".penstock-dev").exists():
        total = tree_size(Path(sys.prefix))
        print(f"{'demo environment':<24} {total / MB:7.0f} MB   limit {DEMO_LIMIT} MB")
        worst |= total > DEMO_LIMIT * MB
    return worst


if __name__ == "__main__":
    sys.exit(main())
