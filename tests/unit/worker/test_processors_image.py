"""The image processor: pixels are right, and what is no image fails alone."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from penstock.errors import InvalidManifest
from penstock.v1 import manifest_pb2 as pb
from services.worker.host.samples import png
from services.worker.processors.image import MAX_PIXELS, NOT_AN_IMAGE, TOO_LARGE, ImageStep

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def step(**fields: Any) -> ImageStep:
    return ImageStep(pb.ImageProcessor(**{"input": "image", "output": "pixels", "width": 6, "height": 4, **fields}))


def encoded(pixels: np.ndarray[Any, Any], kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def test_pixels_are_scaled_shifted_and_laid_out() -> None:
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    expected = (PIXELS.astype(np.float64) / 255 - mean) / std
    for layout, shaped in {
        "CHW": expected.transpose(2, 0, 1),
        "HWC": expected,
        "FLAT": expected.reshape(-1),
    }.items():
        made = step(mode="RGB", scale=1 / 255, mean=mean, std=std, layout=layout)([encoded(PIXELS, "PNG")])
        assert made.failures == {}
        values = made.tensors["pixels"]
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        np.testing.assert_allclose(values[0], shaped, atol=1e-6)


def test_an_inverted_grey_image() -> None:
    grey = PIXELS[:, :, 0]
    made = step(mode="L", scale=1.0, invert=True, layout="CHW")([encoded(grey, "PNG")])
    np.testing.assert_array_equal(made.tensors["pixels"][0, 0], 255.0 - grey)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("GIF", {}), ("JPEG", {"quality": 100, "subsampling": 0})],
)
def test_every_format_is_decoded(kind: str, options: dict[str, Any]) -> None:
    made = step(mode="RGB", scale=1.0, layout="HWC")([encoded(PIXELS, kind, **options)])
    assert made.failures == {}
    assert np.abs(made.tensors["pixels"][0] - PIXELS).max() <= (8 if kind == "JPEG" else 0)


def test_a_format_that_is_not_offered_is_not_decoded() -> None:
    made = step()([encoded(PIXELS, "TIFF"), encoded(PIXELS, "PPM")])
    assert made.failures == {0: NOT_AN_IMAGE, 1: NOT_AN_IMAGE}


def test_images_are_resized_as_pillow_does() -> None:
    large = np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    for name, resample in {
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "nearest": Image.Resampling.NEAREST,
    }.items():
        made = step(mode="RGB", scale=1.0, layout="HWC", resample=name)([encoded(large, "PNG")])
        np.testing.assert_array_equal(
            made.tensors["pixels"][0], np.asarray(Image.fromarray(large).resize((6, 4), resample))
        )


def test_sixteen_bit_grey_keeps_its_upper_byte() -> None:
    wide = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    made = step(mode="L", scale=1.0, layout="HWC")([encoded(wide, "PNG")])
    np.testing.assert_array_equal(made.tensors["pixels"][0, :, :, 0], wide >> 8)


def test_bad_rows_fail_alone() -> None:
    good = encoded(PIXELS, "PNG")
    items = [good, b"", b"not an image", good[:-20], good[:40] + b"\xff" + good[41:], good]
    made = step(mode="RGB", scale=1.0, layout="HWC")(items)
    assert made.failures == dict.fromkeys((1, 2, 3, 4), NOT_AN_IMAGE)
    for row in (0, 5):
        np.testing.assert_array_equal(made.tensors["pixels"][row], PIXELS)


def bomb_png(width: int, height: int) -> bytes:
    """A valid header that promises a huge picture over a few bytes of data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bomb_webp() -> bytes:
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + (16_000).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("bomb", [bomb_png(100_000, 100_000), bomb_png(8_001, 8_000), bomb_webp()])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(bomb: bytes) -> None:
    made = step()([bomb, png(8, 8)])
    assert made.failures == {0: TOO_LARGE}


def test_the_limit_itself_is_taken() -> None:
    assert MAX_PIXELS == 64_000_000
    made = step(mode="L", scale=1.0, layout="HWC")([png(8_000, 8_000)])
    assert made.failures == {}
    assert np.unique(made.tensors["pixels"]).tolist() == [128.0]


def test_as_many_means_as_channels() -> None:
    with pytest.raises(InvalidManifest, match=r"image\.mean: 2 values for 3 channels"):
        step(mode="RGB", mean=[0.1, 0.2])
