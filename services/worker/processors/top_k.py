"""Scores to the best k with their labels, best first (manifest.proto, TopKProcessor). Equal scores keep their order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from penstock.errors import InvalidManifest
from penstock.v1 import manifest_pb2 as pb

from .processor import Array


class TopKStep:
    """One `top_k` processor of a manifest, with its labels read."""

    def __init__(self, step: pb.TopKProcessor, labels: Path | None) -> None:
        self._input = step.input
        self._k = step.k or 1
        self._output_labels = step.output_labels
        self._output_scores = step.output_scores
        self._labels = None if labels is None else _read_labels(labels)

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Labels [rows, k] as BYTES and scores [rows, k] as FP32. A score that is not a number counts as the lowest."""
        scores = tensors[self._input]
        width = scores.shape[1]
        if self._labels is not None and len(self._labels) != width:
            raise InvalidManifest(f"top_k.labels: {len(self._labels)} labels for {width} scores", field="top_k.labels")
        if self._k > width:
            raise InvalidManifest(f"top_k.k: {self._k} is more than the {width} scores there are", field="top_k.k")
        order = np.argsort(-np.where(np.isnan(scores), -np.inf, scores), axis=1, kind="stable")[:, : self._k]
        made: dict[str, Array] = {}
        if self._output_labels:
            named = np.empty(order.size, dtype=object)
            named[:] = [self._label(int(index)) for index in order.ravel()]
            made[self._output_labels] = named.reshape(order.shape)
        if self._output_scores:
            made[self._output_scores] = np.take_along_axis(scores, order, axis=1)
        return made

    def _label(self, index: int) -> bytes:
        return str(index).encode() if self._labels is None else self._labels[index]


def _read_labels(path: Path) -> list[bytes]:
    """One label a line; a line end at the end of the file starts no further label."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidManifest(
            "top_k.labels: the file is not UTF-8 text", field="top_k.labels", detail=repr(error)
        ) from None
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.rstrip("\r").encode() for line in lines]
