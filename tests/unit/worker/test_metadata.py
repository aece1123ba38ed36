"""Metadata and configuration follow Triton's rule about the batch dimension."""

from __future__ import annotations

import pytest

from penstock.oip import inference_pb2 as oip
from penstock.tensors import DATATYPES
from penstock.v1 import manifest_pb2 as pb
from services.worker.metadata import data_type, model_config, model_metadata


def manifest(max_batch_size: int) -> pb.Manifest:
    return pb.Manifest(
        name="m",
        format="onnx",
        files={"model": "weights/model.onnx"},
        inputs=[pb.TensorSpec(name="x", datatype="FP32", shape=[-1, 3])],
        outputs=[pb.TensorSpec(name="y", datatype="BYTES", shape=[1])],
        batching=pb.Batching(
            max_batch_size=max_batch_size,
            preferred_batch_size=[4],
            max_queue_delay_microseconds=100,
            max_queue_size=7,
            priority_levels=2,
            default_priority_level=1,
            default_timeout_microseconds=5,
        ),
    )


@pytest.mark.parametrize(("batch", "x", "y"), [(8, [-1, -1, 3], [-1, 1]), (0, [-1, 3], [1])])
def test_metadata_shows_the_batch_dimension(batch: int, x: list[int], y: list[int]) -> None:
    metadata = model_metadata("m", [1, 3], manifest(batch))
    assert list(metadata.versions) == ["1", "3"]
    assert metadata.platform == "penstock_onnx"
    assert [(each.name, each.datatype, list(each.shape)) for each in (*metadata.inputs, *metadata.outputs)] == [
        ("x", "FP32", x),
        ("y", "BYTES", y),
    ]


def test_the_configuration_leaves_the_batch_dimension_out() -> None:
    config = model_config("m", manifest(8)).config
    assert (config.name, config.platform, config.backend) == ("m", "penstock_onnx", "onnxruntime")
    assert config.max_batch_size == 8
    assert list(config.input[0].dims) == [-1, 3]
    assert config.output[0].data_type == oip.TYPE_STRING
    assert config.default_model_filename == "model.onnx"
    batching = config.dynamic_batching
    assert list(batching.preferred_batch_size) == [4]
    assert (batching.max_queue_delay_microseconds, batching.priority_levels) == (100, 2)
    assert batching.default_queue_policy.max_queue_size == 7
    assert batching.default_queue_policy.default_timeout_microseconds == 5


def test_a_model_without_batch_dimension_has_no_dynamic_batching() -> None:
    assert not model_config("m", manifest(0)).config.HasField("dynamic_batching")


def test_every_datatype_has_its_number() -> None:
    assert len({data_type(name) for name in DATATYPES}) == len(DATATYPES)
    assert data_type("BF16") == oip.TYPE_BF16
