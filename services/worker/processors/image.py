"""Image bytes to pixels: value = (pixel * scale - mean) / std, as FP32 (manifest.proto, ImageProcessor).

Only PNG, JPEG, BMP, GIF (first frame) and WebP are decoded, and nothing is decoded before its size is known to be sane:
a few kilobytes can claim to be gigapixels. 16-bit grey is brought to 8 bits by its upper byte; transparency is dropped.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from penstock.errors import InvalidManifest
from penstock.v1 import manifest_pb2 as pb

from .processor import Array, Made

FORMATS: Final = tuple(
    plugin.format
    for plugin in (
        PngImagePlugin.PngImageFile,
        JpegImagePlugin.JpegImageFile,
        BmpImagePlugin.BmpImageFile,
        GifImagePlugin.GifImageFile,
        WebPImagePlugin.WebPImageFile,
    )
)
MAX_PIXELS: Final = 64_000_000
NOT_AN_IMAGE: Final = "not an image that can be decoded (PNG, JPEG, BMP, GIF, WebP)"
TOO_LARGE: Final = f"an image of more than {MAX_PIXELS // 1_000_000} million pixels"

_RESAMPLE: Final = {
    "": Image.Resampling.BILINEAR,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


class ImageStep:
    """One `image` processor of a manifest."""

    def __init__(self, step: pb.ImageProcessor) -> None:
        self.input = step.input
        self._output = step.output
        self._mode = step.mode or "RGB"
        self._size = (step.width, step.height)
        self._layout = step.layout or "CHW"
        self._invert = step.invert
        self._resample = _RESAMPLE[step.resample]
        channels = 1 if self._mode == "L" else 3
        self._scale = np.float32(step.scale or 1 / 255)
        self._mean = _per_channel(step.mean, channels, 0.0, "mean")
        self._std = _per_channel(step.std, channels, 1.0, "std")
        self._channels = channels

    def __call__(self, items: Sequence[bytes]) -> Made:
        """Pixels of each item, [rows, ...] by the layout; rows that are no images stay zeros."""
        width, height = self._size
        pixels = np.zeros((len(items), height, width, self._channels), dtype=np.uint8)
        failures: dict[int, str] = {}
        for row, data in enumerate(items):
            try:
                pixels[row] = self._decode(data).reshape(height, width, self._channels)
            except _Unusable as error:
                failures[row] = str(error)
        return Made({self._output: self._values(pixels)}, failures)

    def _values(self, pixels: Array) -> Array:
        if self._invert:
            pixels = 255 - pixels
        values = pixels.astype(np.float32)
        values *= self._scale
        values -= self._mean
        values /= self._std
        if self._layout == "CHW":
            return np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        return values.reshape(len(values), -1) if self._layout == "FLAT" else values

    def _decode(self, data: bytes) -> Array:
        """The item's pixels, uint8."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the size is judged here, and broken metadata is not our concern
                _open(data).verify()  # checks the structure without decoding; the object is spent afterwards
                with _open(data) as image:
                    return np.asarray(self._fit(image))
        except _Unusable:
            raise
        except Exception:  # decoders raise whatever they please on hostile bytes; a MemoryError too is about this item
            raise _Unusable(NOT_AN_IMAGE) from None

    def _fit(self, image: Image.Image) -> Image.Image:
        grey = _eight_bits(image)
        if grey.mode != self._mode:
            grey = grey.convert(self._mode)
        return grey if grey.size == self._size else grey.resize(self._size, self._resample)


class _Unusable(Exception):
    """What is wrong with an item, in public words."""


def _open(data: bytes) -> Image.Image:
    _check_webp_canvas(data)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _Unusable(TOO_LARGE) from None
    if image.width * image.height > MAX_PIXELS:
        raise _Unusable(TOO_LARGE)
    return image


def _check_webp_canvas(data: bytes) -> None:
    """The WebP decoder reserves two canvases when it is opened, before anybody can ask it how large they are.

    Header: https://developers.google.com/speed/webp/docs/riff_container#extended_file_format
    """
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and len(data) >= 30:
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        if width * height > MAX_PIXELS:
            raise _Unusable(TOO_LARGE)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def _per_channel(values: Any, channels: int, default: float, field: str) -> Array:
    """One value per channel; one value alone stands for all."""
    if len(values) not in (0, 1, channels):
        raise InvalidManifest(f"image.{field}: {len(values)} values for {channels} channels", field=f"image.{field}")
    return np.asarray(list(values) or [default], dtype=np.float32)
