"""The pipeline around an engine: which rows reach it, and that every answer is at its own row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from penstock.errors import Internal, InvalidArgument, InvalidManifest
from penstock.v1 import manifest_pb2 as pb
from services.worker.host.samples import png
from services.worker.processors.image import NOT_AN_IMAGE
from services.worker.processors.pipeline import Pipeline
from tests.harness.engines import spec

IMAGE = pb.Processor(
    image=pb.ImageProcessor(input="image", output="pixels", width=2, height=2, mode="L", scale=1.0, layout="FLAT")
)


def items(*values: bytes) -> np.ndarray[Any, Any]:
    array = np.empty((len(values), 1), dtype=object)
    array[:, 0] = values
    return array


def classifier(max_batch_size: int = 8) -> pb.Manifest:
    return pb.Manifest(
        inputs=[spec("scale", "FP32", 1), spec("image", "BYTES", 1)],
        outputs=[spec("sum", "FP32"), spec("label", "BYTES", 1)],
        preprocess=[IMAGE],
        postprocess=[pb.Processor(top_k=pb.TopKProcessor(input="pixels_out", output_labels="label"))],
        batching=pb.Batching(max_batch_size=max_batch_size),
    )


def test_bad_rows_do_not_reach_the_engine_and_answers_keep_their_rows() -> None:
    pipeline = Pipeline(classifier(), {})
    scale = np.array([[1], [2], [3], [4]], np.float32)
    batch = pipeline.pre({"scale": scale, "image": items(b"?", png(4, 4), b"", png(4, 4))}, 4)
    assert {row: error.message for row, error in batch.failures.items()} == dict.fromkeys(
        (0, 2), f"inputs[1] (image): {NOT_AN_IMAGE}"
    )
    assert all(isinstance(error, InvalidArgument) and error.field == "inputs[1]" for error in batch.failures.values())
    assert "image" not in batch.tensors
    assert batch.tensors["scale"].tolist() == [[2], [4]]
    assert batch.tensors["pixels"].tolist() == [[128] * 4] * 2
    scored = batch.tensors["pixels"] * [[0, 1, 0, 0], [0, 0, 0, 1]]
    answers = pipeline.post(batch, {"sum": batch.tensors["scale"][:, 0], "pixels_out": scored})
    assert answers["sum"].tolist() == [0, 2, 0, 4]
    assert answers["label"].tolist() == [[b""], [b"1"], [b""], [b"3"]]


def test_a_model_without_batch_dimension() -> None:
    pipeline = Pipeline(classifier(0), {})
    one = items(png(4, 4))[0]
    batch = pipeline.pre({"scale": np.array([2], np.float32), "image": one}, 0)
    assert batch.failures == {}
    assert batch.tensors["pixels"].shape == (4,)
    answers = pipeline.post(batch, {"sum": np.array(2, np.float32), "pixels_out": np.array([0, 0, 5, 0], np.float32)})
    assert answers["label"].tolist() == [b"2"]
    failed = pipeline.pre({"scale": np.array([2], np.float32), "image": items(b"?")[0]}, 0)
    assert list(failed.failures) == [0]


def test_text_for_the_model_itself_must_be_utf8() -> None:
    manifest = pb.Manifest(
        inputs=[spec("x", "BYTES", 2)], outputs=[spec("y", "FP32")], batching=pb.Batching(max_batch_size=4)
    )
    tensors = np.array([[b"a", b"b"], [b"a", b"\xff"]], dtype=object)
    batch = Pipeline(manifest, {}).pre({"x": tensors}, 2)
    assert [*batch.failures] == [1]
    assert batch.failures[1].message == "inputs[0] (x): not UTF-8 text, and the model takes text"
    assert batch.tensors["x"].tolist() == [[b"a", b"b"]]


def test_what_the_model_gives_is_checked() -> None:
    pipeline = Pipeline(classifier(), {})
    tensors = {"scale": np.ones((2, 1), np.float32), "image": items(png(4, 4), png(4, 4))}
    batch = pipeline.pre(tensors, 2)
    good = {"sum": np.ones(2, np.float32), "pixels_out": np.ones((2, 4), np.float32)}
    assert pipeline.post(batch, good)["sum"].tolist() == [1, 1]
    with pytest.raises(Internal, match=r"'sum' with shape \[3\] for a batch of 2"):
        pipeline.post(batch, {**good, "sum": np.ones(3, np.float32)})
    with pytest.raises(Internal, match="'sum' as float64"):
        pipeline.post(batch, {**good, "sum": np.ones(2)})


def test_one_item_per_row() -> None:
    pipeline = Pipeline(classifier(), {})
    with pytest.raises(InvalidArgument, match="image: 2 items for 1 rows"):
        pipeline.pre({"scale": np.ones((1, 1), np.float32), "image": items(b"", b"")}, 1)


def test_processors_in_the_wrong_place_and_files_that_are_missing() -> None:
    with pytest.raises(InvalidManifest, match="top_k does not go before"):
        Pipeline(pb.Manifest(preprocess=[pb.Processor(top_k=pb.TopKProcessor())]), {})
    with pytest.raises(InvalidManifest, match="image does not go after"):
        Pipeline(pb.Manifest(postprocess=[IMAGE]), {})
    text = pb.Processor(text=pb.TextProcessor(input="t", tokenizer="tok", input_ids="ids"))
    with pytest.raises(InvalidManifest, match="no file of the role 'tok'"):
        Pipeline(pb.Manifest(preprocess=[text]), {})
