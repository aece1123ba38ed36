"""top_k and pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import InvalidManifest
from penstock.v1 import manifest_pb2 as pb
from services.worker.processors.pool import PoolStep
from services.worker.processors.top_k import TopKStep


def top_k(labels: Path | None = None, **fields: Any) -> TopKStep:
    return TopKStep(pb.TopKProcessor(**{"input": "scores", "output_labels": "label", **fields}), labels)


def labels_file(folder: Path, text: str) -> Path:
    path = folder / "labels.txt"
    path.write_text(text)
    return path


SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.5, 0.1], [np.nan, -np.inf, -1.0]], dtype=np.float32)


def test_the_best_come_first_and_equal_ones_keep_their_order(tmp_path: Path) -> None:
    made = top_k(labels_file(tmp_path, "red\ngrün\r\nblue\n"), k=2, output_scores="score")({"scores": SCORES})
    assert made["label"].tolist() == [["grün".encode(), b"blue"], [b"red", "grün".encode()], [b"blue", b"red"]]
    np.testing.assert_array_equal(made["score"][:2], np.array([[0.7, 0.2], [0.5, 0.5]], np.float32))
    assert made["score"].dtype == np.float32


def test_without_labels_the_index_is_the_text() -> None:
    made = top_k()({"scores": SCORES})
    assert made == {"label": made["label"]}
    assert made["label"].tolist() == [[b"1"], [b"0"], [b"2"]]


def test_labels_and_k_must_fit_the_scores(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match="2 labels for 3 scores"):
        top_k(labels_file(tmp_path, "a\nb"))({"scores": SCORES})
    with pytest.raises(InvalidManifest, match="4 is more than the 3 scores"):
        top_k(k=4)({"scores": SCORES})


VECTORS = np.array([[[1, 2], [3, 6], [np.nan, 9]], [[-1, -2], [-5, -6], [-3, 0]], [[1, 1], [1, 1], [1, 1]]], np.float32)
MASK = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]], np.int64)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("mean", [[2, 4], [-4, -3], [0, 0]]), ("max", [[3, 6], [-3, 0], [0, 0]]), ("first", [[1, 2], [-5, -6], [0, 0]])],
)
def test_pooling_sees_only_the_tokens_that_count(mode: str, expected: list[list[float]]) -> None:
    made = PoolStep(pb.PoolProcessor(input="v", mask="m", output="o", mode=mode))({"v": VECTORS, "m": MASK})
    np.testing.assert_allclose(made["o"], expected)
    assert made["o"].dtype == np.float32


def test_without_a_mask_every_token_counts() -> None:
    made = PoolStep(pb.PoolProcessor(input="v", output="o", mode="mean"))({"v": VECTORS[1:]})
    np.testing.assert_allclose(made["o"], np.array([[-3.0, -8 / 3], [1.0, 1.0]]), rtol=1e-6)


def test_vectors_are_scaled_to_length_one_and_zeros_stay_zeros() -> None:
    made = PoolStep(pb.PoolProcessor(input="v", mask="m", output="o", mode="mean", normalize=True))
    pooled = made({"v": VECTORS, "m": MASK})["o"]
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), [1, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(pooled[1], [-0.8, -0.6], rtol=1e-6)


def test_a_mask_of_another_width_is_refused() -> None:
    with pytest.raises(InvalidManifest, match=r"\[tokens, width\] and \[tokens\]"):
        PoolStep(pb.PoolProcessor(input="v", mask="m", output="o"))({"v": VECTORS, "m": MASK[:, :2]})
