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
MAX_CONFIG: Final = 1 << 20
# Of the safetensors library: a header is at most this long.
MAX_HEADER: Final = 100_000_000

_WEIGHTS = re.compile(r"weights(-[1-9][0-9]*)?")
_CONFIG: Final = "config"


def read_by_conversion(format: str, role: str) -> bool:
    """Whether a file of that role is the source's only, which what is built of it does not need."""
    return format == HUGGINGFACE and (role == _CONFIG or _WEIGHTS.fullmatch(role) is not None)


def roles(format: str, files: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Field and words for every role that the format needs and lacks, and for weights that are never read."""
    if format != HUGGINGFACE:
        if "model" not in files:
            yield "files.model", "is missing; name the model's file, such as `model: model.onnx`"
        return
    if _CONFIG not in files:
        yield "files.config", "is missing; name the folder's configuration: `config: config.json`"
    if "weights" not in files:
        yield "files.weights", "is missing; name the weights in safetensors: `weights: model.safetensors`"
    if "model" in files:
        yield (
            "files.model",
            "is made by the build; name `config` and `weights`, further shards as `weights-2` and so on",
        )
    for role, path in files.items():
        if _WEIGHTS.fullmatch(role) and not path.endswith(".safetensors"):
            yield f"files.{role}", f"{shown(path)} is not safetensors; a .bin file is a pickle, which is never read"


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
    elif format == "sklearn":
        if not head.startswith(b"PK\x03\x04") or "schema.json" not in formats.archive_names(size, peek):
            raise _wrong(
                role, "format sklearn needs the file that skops.io.dump writes; pickles and joblib files are never read"
            )
    elif format == "tflite":
        # The file identifier of TensorFlow Lite's flatbuffer schema, at byte 4.
        if head[4:8] != b"TFL3":
            raise _wrong(role, "format tflite needs the .tflite file that tf.lite.TFLiteConverter makes")
    elif format == "xgboost":
        # JSON and UBJSON both begin with an object.
        if not head.startswith(b"{"):
            raise _wrong(role, "format xgboost needs what save_model writes as .json or .ubj; pickles are never read")
    elif not head.startswith(b"tree"):
        raise _wrong(role, "format lightgbm needs what save_model writes as text; pickles are never read")


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
