"""Which files of a Hugging Face folder a build reads, by role, for a manifest that does not list them.

Weights are taken in safetensors alone. Shards are named by the folder's index; whether they lie in the folder is for
bundle.py to check, as with files that a manifest lists.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from penstock.errors import InvalidManifest

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
TOKENIZER: Final = "tokenizer.json"
MAX_INDEX: Final = 64 << 20

_PICKLES = re.compile(r".+\.(bin|pt|pth|ckpt|pkl)")


def files(folder: Path) -> dict[str, str]:
    """Name by role: config, weights, weights-2 and so on, and tokenizer where there is one; raises InvalidManifest."""
    found = {"config": CONFIG}
    if not (folder / CONFIG).is_file():
        raise InvalidManifest(f"files: there is no {CONFIG} beside the manifest; put it into the model's folder")
    for number, name in enumerate(_weights(folder), 1):
        found["weights" if number == 1 else f"weights-{number}"] = name
    if (folder / TOKENIZER).is_file():
        found["tokenizer"] = TOKENIZER
    return found


def _weights(folder: Path) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / INDEX).is_file():
        return _shards(folder / INDEX)
    pickled = sorted(path.name for path in folder.iterdir() if _PICKLES.fullmatch(path.name))
    if pickled:
        raise InvalidManifest(
            f"files: {pickled[0]} is a pickle, which is never read; save the model again with "
            "save_pretrained(folder, safe_serialization=True), which writes model.safetensors",
            field="files",
        )
    raise InvalidManifest(f"files: there is neither {WEIGHTS} nor {INDEX} beside the manifest", field="files")


def _shards(index: Path) -> list[str]:
    """The files that an index names, each once, in order."""
    try:
        if index.stat().st_size > MAX_INDEX:
            raise ValueError
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidManifest(f"files: {index.name} has no `weight_map` of tensors to files", field="files") from None
    if not names or not all(isinstance(name, str) for name in names):
        raise InvalidManifest(f"files: {index.name} names no file", field="files")
    return names
