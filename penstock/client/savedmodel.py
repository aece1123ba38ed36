"""Which files of a SavedModel's folder a build reads, by role, for a manifest that does not list them.

The graph and the checkpoint of its variables. Assets, such as vocabularies, cannot be converted and stay behind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from penstock.errors import InvalidManifest

GRAPH: Final = "saved_model.pb"
INDEX: Final = "variables/variables.index"
SHARDS: Final = "variables/variables.data-*-of-*"


def files(folder: Path) -> dict[str, str]:
    """Name by role: graph, index, weights, weights-2 and so on; raises InvalidManifest."""
    if not (folder / GRAPH).is_file():
        raise InvalidManifest(f"files: there is no {GRAPH} beside the manifest; put it into the SavedModel's folder")
    found = {"graph": GRAPH}
    shards = sorted(path.relative_to(folder).as_posix() for path in folder.glob(SHARDS))
    if (folder / INDEX).is_file() and shards:
        found["index"] = INDEX
        for number, name in enumerate(shards, 1):
            found["weights" if number == 1 else f"weights-{number}"] = name
    return found
