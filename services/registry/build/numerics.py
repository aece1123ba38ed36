"""How far two sets of outputs are apart, and whether that is near enough (pure).

Tolerances per precision are for outputs of order one: `close` is |a - b| <= absolute + relative * |a|, a being the
source's. bfloat16 keeps 8 bits of a number, float16 11, float32 24; int8 rounds activations to one of 256 steps, so
it is judged by direction (cosine) and by decisions (argmax) rather than by single numbers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Tolerance:
    """What is near enough. close: share of elements within absolute + relative; cosine: least over rows; argmax: share
    of rows whose largest element is the same one, where the last axis is a choice (None: not asked)."""

    absolute: float
    relative: float
    close: float
    cosine: float
    argmax: float | None = None


TOLERANCES = {
    "fp32": Tolerance(1e-4, 1e-4, 1.0, 0.99999),
    "fp16": Tolerance(1e-2, 1e-2, 0.999, 0.999),
    "bf16": Tolerance(6e-2, 6e-2, 0.99, 0.995),
    "int8": Tolerance(0.5, 0.5, 0.9, 0.97),
    # A pruned or distilled model is another model: only an evaluation set can tell whether it is good enough.
    "lossy": Tolerance(1.0, 1.0, 0.0, -1.0),
}


@dataclass(frozen=True)
class Difference:
    """Largest and mean distances over all elements; cosine: the smallest over rows; mean_cosine: their
    mean; argmax: share of rows that
    agree."""

    elements: int
    largest_absolute: float
    largest_relative: float
    mean_absolute: float
    close: float
    cosine: float
    mean_cosine: float
    argmax: float | None
    finite: bool

    def json(self) -> dict[str, Any]:
        """For a report; what is not a number is null there."""
        return {key: value if value == value else None for key, value in asdict(self).items()}


def difference(source: Array, candidate: Array, tolerance: Tolerance) -> Difference:
    """Compares outputs of one shape; integers and booleans as numbers. Where the shapes differ nothing is close."""
    if source.shape != candidate.shape or source.size == 0:
        same = source.shape == candidate.shape
        worst = 0.0 if same else float("inf")
        return Difference(0, worst, worst, worst, float(same), float(same), float(same), None, same)
    a, b = source.astype(np.float64), candidate.astype(np.float64)
    finite = bool(np.isfinite(b[np.isfinite(a)]).all())
    both = np.isfinite(a) & np.isfinite(b)
    gap = np.abs(np.where(both, a, 0) - np.where(both, b, 0))
    gap[~both & ~_equal(a, b)] = np.inf
    floor = np.maximum(np.abs(a), tolerance.absolute)
    relative = np.divide(gap, floor, out=np.full_like(gap, np.inf), where=np.isfinite(floor))
    relative[gap == 0] = 0.0
    bound = tolerance.absolute + tolerance.relative * np.where(np.isfinite(a), np.abs(a), 0)
    smallest, average = _cosines(np.where(both, a, 0), np.where(both, b, 0))
    return Difference(
        elements=int(a.size),
        largest_absolute=float(gap.max()),
        largest_relative=float(relative.max()),
        mean_absolute=float(gap.mean()),
        close=float((gap <= bound).mean()),
        cosine=smallest,
        mean_cosine=average,
        argmax=_argmax(a, b),
        finite=finite,
    )


def verdict(found: Difference, tolerance: Tolerance, made_up: bool = False) -> list[str]:
    """What is too far apart, in words; empty where it is near enough.

    made_up: the inputs were. They may lie on the border between two answers, where the smallest step changes much, so
    that the mean cosine counts and not the smallest, and which element is largest does not.
    """
    said = []
    if not found.finite:
        said.append("the candidate gives numbers that are not finite where the source's are")
    if found.close < tolerance.close:
        said.append(f"{found.close:.4f} of the elements are close, {tolerance.close} are needed")
    kind, cosine = ("mean", found.mean_cosine) if made_up else ("smallest", found.cosine)
    if not cosine >= tolerance.cosine:
        said.append(f"the {kind} cosine is {cosine:.5f}, {tolerance.cosine} is needed")
    if not made_up and tolerance.argmax is not None and found.argmax is not None and found.argmax < tolerance.argmax:
        said.append(f"the largest element agrees in {found.argmax:.4f} of the rows, {tolerance.argmax} is needed")
    return said


def merged(parts: list[Difference]) -> Difference:
    """One difference of several batches of the same output."""
    total = sum(part.elements for part in parts)
    shares = [part.elements / total if total else 1 / len(parts) for part in parts]
    argmax = [part.argmax for part in parts]
    known = [(share, value) for share, value in zip(shares, argmax, strict=True) if value is not None]
    weight = sum(share for share, _ in known)
    return Difference(
        elements=total,
        largest_absolute=max(part.largest_absolute for part in parts),
        largest_relative=max(part.largest_relative for part in parts),
        mean_absolute=sum(share * part.mean_absolute for share, part in zip(shares, parts, strict=True)),
        close=sum(share * part.close for share, part in zip(shares, parts, strict=True)),
        cosine=min(part.cosine for part in parts),
        mean_cosine=sum(share * part.mean_cosine for share, part in zip(shares, parts, strict=True)),
        argmax=sum(share * value for share, value in known) / weight if weight else None,
        finite=all(part.finite for part in parts),
    )


def _equal(a: Array, b: Array) -> Array:
    return np.asarray((a == b) | (np.isnan(a) & np.isnan(b)))


def _rows(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(1, -1)


def _cosines(a: Array, b: Array) -> tuple[float, float]:
    """Smallest and mean cosine between rows along the last axis; rows that are both zero agree, NaN with nothing."""
    x, y = _rows(a), _rows(b)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    products = np.einsum("ij,ij->i", x, y)
    same = (np.abs(x) + np.abs(y)).sum(axis=1) == 0
    cosines = np.where(same, 1.0, np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0))
    cosines = np.where(np.isnan(cosines), -1.0, np.minimum(cosines, 1.0))
    return float(cosines.min()), float(cosines.mean())


def _argmax(a: Array, b: Array) -> float | None:
    if a.ndim < 2 or a.shape[-1] < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    return float((_rows(a).argmax(axis=1) == _rows(b).argmax(axis=1)).mean())
