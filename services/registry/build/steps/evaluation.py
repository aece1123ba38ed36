"""Accuracy on an evaluation set: inputs by name, and the right answers in an array `labels`.

labels of one number per sample are compared with the largest element of a row of the output `scores`, or with an output
of whole numbers as it is; labels of more are vectors, and what counts is their mean cosine with the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidArgument

from . import tensors
from .session import Session

Array = NDArray[Any]

LABELS = "labels"
BATCH = 64


def accuracy(session: Session, arrays: Mapping[str, Array], output: str | None = None) -> float:
    """The share of samples that are right, or the mean cosine. output: which one; the first that fits where None.

    Raises InvalidArgument where there are no labels or no output fits them.
    """
    if LABELS not in arrays:
        raise InvalidArgument(f"evaluation: the set needs an array {LABELS!r} beside the inputs", field="evaluation")
    labels = arrays[LABELS]
    right = 0.0
    for batch in tensors.batches(arrays, BATCH):
        given = session.run({name: array for name, array in batch.items() if name != LABELS})
        right += _right(given, batch[LABELS], output)
    return right / len(labels)


def _right(given: Mapping[str, Array], labels: Array, output: str | None) -> float:
    flat = labels.reshape(len(labels), -1)
    chosen = given if output is None else {output: given.get(output, np.empty(0))}
    for array in chosen.values():
        if array.shape[:1] != labels.shape[:1]:
            continue
        rows = array.reshape(len(array), -1)
        if flat.shape[1] > 1 and rows.shape == flat.shape:
            lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(flat, axis=1)
            return float((np.einsum("ij,ij->i", rows.astype("f8"), flat.astype("f8")) / lengths).sum())
        if flat.shape[1] == 1 and rows.shape[1] > 1 and array.dtype.kind == "f":
            return float((rows.argmax(axis=1) == flat[:, 0]).sum())
        if flat.shape[1] == 1 and rows.shape[1] == 1:
            return float((np.rint(rows[:, 0].astype("f8")) == flat[:, 0]).sum())
    raise InvalidArgument(
        f"evaluation: no output of the model fits {LABELS} of shape {list(labels.shape)}", field="evaluation"
    )
