"""What a model says of itself over the inference protocol: ModelMetadata and ModelConfig, made from its manifest.

Triton's rule: with `max_batch_size` > 0 the manifest's shapes leave the batch dimension out; metadata shows it as a
leading -1, the configuration leaves it out. A client can therefore build a request from the metadata alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.oip import inference_pb2 as oip
from penstock.v1 import manifest_pb2 as pb

_PLATFORMS = {"onnx": "penstock_onnx", "torch-export": "penstock_torch", "tensorrt": "penstock_tensorrt"}
_BACKENDS = {"onnx": "onnxruntime", "torch-export": "torch", "tensorrt": "tensorrt"}


def platform(manifest: pb.Manifest) -> str:
    """What runs the model, in the form that Triton uses (`onnxruntime_onnx`), under our own name."""
    return _PLATFORMS.get(manifest.format, f"penstock_{manifest.format}")


def full_shape(manifest: pb.Manifest, spec: pb.TensorSpec) -> list[int]:
    """The shape that travels: with a leading -1 where requests have a batch dimension."""
    return [-1, *spec.shape] if manifest.batching.max_batch_size > 0 else list(spec.shape)


def model_metadata(name: str, versions: Sequence[int], manifest: pb.Manifest) -> oip.ModelMetadataResponse:
    """The answer to ModelMetadata. versions: those that serve here."""

    def tensors(specs: Sequence[pb.TensorSpec]) -> list[oip.ModelMetadataResponse.TensorMetadata]:
        return [
            oip.ModelMetadataResponse.TensorMetadata(
                name=spec.name, datatype=spec.datatype, shape=full_shape(manifest, spec)
            )
            for spec in specs
        ]

    return oip.ModelMetadataResponse(
        name=name,
        versions=[str(version) for version in versions],
        platform=platform(manifest),
        inputs=tensors(manifest.inputs),
        outputs=tensors(manifest.outputs),
    )


def model_config(name: str, manifest: pb.Manifest) -> oip.ModelConfigResponse:
    """The answer to ModelConfig."""
    config = oip.ModelConfig(
        name=name,
        platform=platform(manifest),
        backend=_BACKENDS.get(manifest.format, manifest.format),
        max_batch_size=manifest.batching.max_batch_size,
        input=[
            oip.ModelInput(name=spec.name, data_type=data_type(spec.datatype), dims=spec.shape)
            for spec in manifest.inputs
        ],
        output=[
            oip.ModelOutput(name=spec.name, data_type=data_type(spec.datatype), dims=spec.shape)
            for spec in manifest.outputs
        ],
        default_model_filename=manifest.files["model"].rpartition("/")[2] if "model" in manifest.files else "",
    )
    if manifest.batching.max_batch_size > 0:
        config.dynamic_batching.CopyFrom(_dynamic_batching(manifest.batching))
    return oip.ModelConfigResponse(config=config)


def data_type(name: str) -> oip.DataType.ValueType:
    """Number of a datatype in ModelConfig, where BYTES is called STRING."""
    return oip.DataType.Value("TYPE_STRING" if name == "BYTES" else f"TYPE_{name}")


def _dynamic_batching(batching: pb.Batching) -> oip.ModelDynamicBatching:
    return oip.ModelDynamicBatching(
        preferred_batch_size=batching.preferred_batch_size,
        max_queue_delay_microseconds=batching.max_queue_delay_microseconds,
        priority_levels=batching.priority_levels,
        default_priority_level=batching.default_priority_level,
        default_queue_policy=oip.ModelQueuePolicy(
            timeout_action=oip.ModelQueuePolicy.REJECT,
            default_timeout_microseconds=batching.default_timeout_microseconds,
            allow_timeout_override=True,
            max_queue_size=batching.max_queue_size,
        ),
    )
