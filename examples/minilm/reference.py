"""The same encoder in plain numpy: the plainest form that is right, to judge the ONNX graph by.

One sentence at a time, in float64, with no batch, no padding and no mask, so that none of what makes the graph fast
can be wrong here in the same way. It shares no code with export.py. Slow is fine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

Weights = Mapping[str, np.ndarray]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def encode(weights: Weights, ids: list[int], *, layers: int, heads: int, epsilon: float) -> np.ndarray:
    """The last hidden state [tokens, hidden] of one sentence, all of it in segment 0."""
    table = "embeddings.{}_embeddings.weight"
    x = weights[table.format("word")][ids].astype(np.float64)
    x = x + weights[table.format("position")][: len(ids)] + weights[table.format("token_type")][0]
    x = _normalise(weights, "embeddings.LayerNorm", x, epsilon)
    for index in range(layers):
        at = f"encoder.layer.{index}"
        x = _normalise(weights, f"{at}.attention.output.LayerNorm", x + _attend(weights, at, x, heads), epsilon)
        wide = _dense(weights, f"{at}.intermediate.dense", x)
        wide = wide * (1 + _erf(wide / math.sqrt(2))) / 2
        x = _normalise(weights, f"{at}.output.LayerNorm", x + _dense(weights, f"{at}.output.dense", wide), epsilon)
    return x


def pool(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The sentence's embedding: the mean of the token vectors that the mask counts, scaled to length 1."""
    mean = tokens[mask.astype(bool)].mean(axis=0)
    unit: np.ndarray = mean / np.linalg.norm(mean)
    return unit


def _attend(weights: Weights, at: str, x: np.ndarray, heads: int) -> np.ndarray:
    """What each token takes from the others, head by head."""
    query, key, value = (
        np.split(_dense(weights, f"{at}.attention.self.{part}", x), heads, axis=1) for part in ("query", "key", "value")
    )
    mixed = []
    for q, k, v in zip(query, key, value, strict=True):
        scores = q @ k.T / math.sqrt(q.shape[1])
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed.append(shares / shares.sum(axis=1, keepdims=True) @ v)
    return _dense(weights, f"{at}.attention.output.dense", np.concatenate(mixed, axis=1))


def _dense(weights: Weights, at: str, x: np.ndarray) -> np.ndarray:
    product: np.ndarray = x @ weights[f"{at}.weight"].T.astype(np.float64) + weights[f"{at}.bias"]
    return product


def _normalise(weights: Weights, at: str, x: np.ndarray, epsilon: float) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=1, keepdims=True) + epsilon)
    scaled: np.ndarray = centred / spread * weights[f"{at}.weight"] + weights[f"{at}.bias"]
    return scaled
