"""Made-up inputs for a warm-up: zeros, a small picture for an image processor, a few words for a text one."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from penstock.v1 import manifest_pb2 as pb

from ..engines.engine import Array, dtype

TEXT = b"a few words to warm up with"


def sample(spec: pb.TensorSpec, manifest: pb.Manifest, batch_size: int) -> Array:
    """An input of that spec, with the batch in front unless batch_size is 0; a dimension of any size is 1."""
    shape = [max(1, size) if size < 0 else size for size in spec.shape]
    if batch_size:
        shape = [batch_size, *shape]
    if spec.datatype != "BYTES":
        return np.zeros(shape, dtype=dtype(spec.datatype))
    array = np.empty(shape, dtype=object)
    array.fill(_bytes_for(spec.name, manifest))
    return array


def _bytes_for(name: str, manifest: pb.Manifest) -> bytes:
    for step in manifest.preprocess:
        if step.WhichOneof("kind") == "image" and step.image.input == name:
            return png(8, 8)
        if step.WhichOneof("kind") == "text" and step.text.input == name:
            return TEXT
    return b"0"


def png(width: int, height: int) -> bytes:
    """A grey PNG of mid brightness (https://www.w3.org/TR/png/)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = (b"\0" + b"\x80" * width) * height
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
