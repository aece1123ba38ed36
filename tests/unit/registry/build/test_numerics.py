"""How far outputs are apart, against hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

from services.registry.build.numerics import TOLERANCES, Tolerance, difference, merged, verdict

FP32, FP16 = TOLERANCES["fp32"], TOLERANCES["fp16"]


def test_the_same_is_near_enough_for_everything() -> None:
    a = np.array([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    for tolerance in TOLERANCES.values():
        found = difference(a, a.copy(), tolerance)
        assert (found.largest_absolute, found.close, found.argmax) == (0, 1, 1)
        assert verdict(found, tolerance) == []


def test_distances_are_what_they_say() -> None:
    a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 2.5], [4.5, 4.0]])
    found = difference(a, b, Tolerance(0.1, 0.2, 1, 0))
    assert found.largest_absolute == 1.5
    assert found.largest_relative == 0.5
    assert found.mean_absolute == 0.5
    assert found.close == 0.75  # 0.5 is within 0.1 + 0.2 * 2, and 1.5 is not within 0.1 + 0.2 * 3
    assert found.cosine == pytest.approx(float(a[1] @ b[1] / np.linalg.norm(a[1]) / np.linalg.norm(b[1])))
    assert found.argmax == 0.5


def test_a_number_that_is_not_finite_fails_only_where_the_source_had_one() -> None:
    a = np.array([[1.0, np.inf], [np.nan, 2.0]])
    assert difference(a, a.copy(), FP32).largest_absolute == 0
    found = difference(np.ones((2, 2)), np.array([[1.0, np.nan], [1.0, 1.0]]), FP32)
    assert not found.finite
    assert "not finite" in verdict(found, FP32)[0]


def test_another_shape_is_not_near() -> None:
    found = difference(np.ones((2, 3)), np.ones((2, 4)), TOLERANCES["lossy"])
    assert verdict(found, TOLERANCES["lossy"])


def test_made_up_inputs_are_judged_by_the_mean_cosine() -> None:
    a = np.eye(4, dtype=np.float32).repeat(25, axis=0)
    b = a.copy()
    b[0] = [0, 1, 0, 0]  # one row of a hundred turned by a right angle
    limit = Tolerance(0.1, 0.1, 0.9, 0.97, argmax=1.0)
    found = difference(a, b, limit)
    assert len(verdict(found, limit)) == 2
    assert verdict(found, limit, made_up=True) == []


def test_batches_merge_to_the_whole() -> None:
    chance = np.random.default_rng(0)
    a, b = chance.normal(size=(10, 5)), chance.normal(size=(10, 5))
    whole = difference(a, b, FP16)
    parts = merged([difference(a[:4], b[:4], FP16), difference(a[4:], b[4:], FP16)])
    for name in ("elements", "largest_absolute", "mean_absolute", "close", "cosine", "mean_cosine", "argmax", "finite"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name))
