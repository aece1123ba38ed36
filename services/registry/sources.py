"""What holds of the formats that only builds read (pure): their roles, and whether a file looks like one of its role.

No engine runs them (penstock/sources.py). What is looked at is what formats.py looks at: magic numbers and the names in
an archive. What is inside is read by the converting step, in a confined process of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from penstock.errors import InvalidArgument

from . import formats
from .document import shown
from .formats import Peek

HUGGINGFACE: Final = "huggingface"
SAVEDMODEL: Final = "savedmodel"
MAX_CONFIG: Final = 1 << 20
# Of the safetensors library: a header is at most this long.
MAX_HEADER: Final = 100_000_000

_WEIGHTS = re.compile(r"weights(-[1-9][0-9]*)?")
_CONFIG: Final = "config"
_TABLE_MAGIC: Final = bytes.fromhex("57fb808b247547db")
_OTHER_ROLES: Final = {HUGGINGFACE: (_CONFIG,), SAVEDMODEL: ("graph", "index")}
"""Formats whose files are several, of which the conversion makes `model`: their roles besides the weights'."""
_NEVER: Final = "are never read"
_ARCHIVES: Final = {
    "sklearn": ("schema.json", f"the file that skops.io.dump writes; pickles and joblib files {_NEVER}"),
    "keras": ("config.json", "the .keras archive that model.save of Keras 3 writes"),
    "torchscript": ("/constants.pkl", f"the archive that torch.jit.save writes; pickles of torch.save {_NEVER}"),
}
"""Format → what a member of its archive ends in, and what to publish."""
_BEGINNINGS: Final = {
    # The file identifier of TensorFlow Lite's flatbuffer schema, at byte 4.
    "tflite": (4, b"TFL3", "the .tflite file that tf.lite.TFLiteConverter makes"),
    # JSON and UBJSON both begin with an object.
    "xgboost": (0, b"{", f"what save_model writes as .json or .ubj; pickles {_NEVER}"),
    "lightgbm": (0, b"tree", f"what save_model writes as text; pickles {_NEVER}"),
}
"""Format → bytes at an offset of its file, and what to publish."""


def read_by_conversion(format: str, role: str) -> bool:
    """Whether a file of that role is the source's only, which what is built of it does not need."""
    return role in _OTHER_ROLES.get(format, ()) or (format in _OTHER_ROLES and _WEIGHTS.fullmatch(role) is not None)


def roles(format: str, files: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Field and words for every role that the format needs and lacks, and for weights that are never read."""
    if format not in _OTHER_ROLES:
        if "model" not in files:
            yield "files.model", "is missing; name the model's file, such as `model: model.onnx`"
        return
    yield from _lacking(format, files)
    if "model" in files:
        named = "`config` and `weights`" if format == HUGGINGFACE else "`graph`, `index` and `weights`"
        yield "files.model", f"is made by the build; name {named}, further shards as `weights-2` and so on"
    for role, path in files.items():
        if format == HUGGINGFACE and _WEIGHTS.fullmatch(role) and not path.endswith(".safetensors"):
            yield f"files.{role}", f"{shown(path)} is not safetensors; a .bin file is a pickle, which is never read"


def _lacking(format: str, files: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if format == SAVEDMODEL:
        if "graph" not in files:
            yield "files.graph", "is missing; name the folder's graph: `graph: saved_model.pb`"
        if ("index" in files) != ("weights" in files):
            yield "files.index", "goes with `weights`; name variables.index and variables.data-00000-of-00001"
        return
    if _CONFIG not in files:
        yield "files.config", "is missing; name the folder's configuration: `config: config.json`"
    if "weights" not in files:
        yield "files.weights", "is missing; name the weights in safetensors: `weights: model.safetensors`"


def check(format: str, role: str, size: int, peek: Peek) -> None:
    """Raises InvalidArgument, with the role, for a file that cannot be what the converting step reads."""
    if not (role == "model" or read_by_conversion(format, role)):
        return
    head = peek(0, 16)
    if not head:
        raise _wrong(role, "the file is empty")
    if format == HUGGINGFACE:
        if role == _CONFIG:
            _check_config(size, head)
        else:
            _check_safetensors(role, size, head)
    elif format == SAVEDMODEL:
        _check_saved_model(role, head, size, peek)
    elif format in _ARCHIVES:
        member, words = _ARCHIVES[format]
        zipped = head.startswith(b"PK\x03\x04")
        if not zipped or not any(name.endswith(member) for name in formats.archive_names(size, peek)):
            raise _wrong(role, f"format {format} needs {words}")
    else:
        at, magic, words = _BEGINNINGS[format]
        if not head.startswith(magic, at):
            raise _wrong(role, f"format {format} needs {words}")


def _check_saved_model(role: str, head: bytes, size: int, peek: Peek) -> None:
    """The graph is a protobuf that begins with its schema's version, 1, or with a graph; the index is a table of
    LevelDB's kind, whose last eight bytes are these (tensorflow/core/lib/io/format.h)."""
    if role == "graph" and not head.startswith((b"\x08\x01", b"\x12")):
        raise _wrong(role, "this is no saved_model.pb; save the model with model.export or tf.saved_model.save")
    if role == "index" and peek(size - 8, 8) != _TABLE_MAGIC:
        raise _wrong(role, "this is no variables.index of a SavedModel, or it is cut short")


def _check_config(size: int, head: bytes) -> None:
    if size > MAX_CONFIG or not head.lstrip().startswith(b"{"):
        raise _wrong(_CONFIG, "this is no config.json: it must be a JSON object of at most 1 MiB")


def _check_safetensors(role: str, size: int, head: bytes) -> None:
    """Eight bytes of length, little-endian, then a JSON object of that many (the format's README)."""
    length = int.from_bytes(head[:8], "little")
    if head.startswith((b"PK", b"\x80")):
        raise _wrong(role, "this is a pickle (pytorch_model.bin), which is never read; publish model.safetensors")
    if head[8:9] != b"{" or not 2 <= length <= min(MAX_HEADER, size - 8):
        raise _wrong(role, "this is not safetensors, or it is cut short; save the model with save_pretrained")


def _wrong(role: str, text: str) -> InvalidArgument:
    return InvalidArgument(f"files.{role}: {text}", field=f"files.{role}")
