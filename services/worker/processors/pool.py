"""Token embeddings to one vector (manifest.proto, PoolProcessor)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from penstock.errors import InvalidManifest
from penstock.v1 import manifest_pb2 as pb

from .processor import Array

_SMALLEST = np.float32(1e-12)


class PoolStep:
    """One `pool` processor of a manifest. A row of which no token counts becomes zeros."""

    def __init__(self, step: pb.PoolProcessor) -> None:
        self._input, self._mask, self._output = step.input, step.mask, step.output
        self._mode = step.mode or "mean"
        self._normalize = step.normalize

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """[rows, tokens, width] and a mask [rows, tokens] to [rows, width], FP32."""
        vectors = tensors[self._input]
        counts = np.ones(vectors.shape[:2], dtype=bool) if not self._mask else tensors[self._mask] != 0
        if vectors.ndim != 3 or counts.shape != vectors.shape[:2]:
            raise InvalidManifest(
                f"pool: {self._input} has shape {list(vectors.shape)} and its mask {list(counts.shape)}; "
                "they are [tokens, width] and [tokens] per item",
                field="pool.mask",
            )
        pooled = self._pool(vectors, counts)
        if self._normalize:
            pooled = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), _SMALLEST)
        return {self._output: np.ascontiguousarray(pooled, dtype=np.float32)}

    def _pool(self, vectors: Array, counts: Array) -> Array:
        there = counts[:, :, None]
        if self._mode == "max":
            best = np.where(there, vectors, -np.inf).max(axis=1, initial=-np.inf)
            return np.where(counts.any(axis=1, keepdims=True), best, 0)
        if self._mode == "first":
            if vectors.shape[1] == 0:
                return np.zeros((len(vectors), vectors.shape[2]), dtype=np.float32)
            chosen = vectors[np.arange(len(vectors)), counts.argmax(axis=1)]
            return np.where(counts.any(axis=1, keepdims=True), chosen, 0)
        # Not a product with the mask: a padding vector that is not a number must not spoil the sum.
        total = np.where(there, vectors, 0).sum(axis=1, dtype=np.float32)
        return np.asarray(total / np.maximum(counts.sum(axis=1, dtype=np.float32)[:, None], 1))
