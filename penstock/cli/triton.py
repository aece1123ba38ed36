"""A Triton model configuration as our manifest (pure): what carries over, what does not, and what has no meaning here.

Fields by https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto. What would change
the model's answers and cannot be kept is an error with its name; what only tunes Triton is a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from penstock.cli.pbtxt import Message
from penstock.errors import InvalidArgument, Unsupported

PLATFORMS: Final = {
    "onnxruntime_onnx": "onnx", "onnxruntime": "onnx", "pytorch_libtorch": "torch-export", "pytorch": "torch-export",
    "tensorrt_plan": "tensorrt", "tensorrt": "tensorrt",
}  # fmt: skip
FILES: Final = {"onnx": "model.onnx", "torch-export": "model.pt2", "tensorrt": "model.plan"}
"""The artifact in a version's folder, where the configuration names no other."""

MAX_INSTANCES: Final = 16
"""Of one replica, as the registry takes it."""

_DATATYPES: Final = {
    f"TYPE_{name}": name
    for name in (
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
        "FP16", "FP32", "FP64", "BF16",
    )
} | {"TYPE_STRING": "BYTES"}  # fmt: skip
_KNOWN: Final = frozenset(
    ("name", "platform", "backend", "max_batch_size", "input", "output", "dynamic_batching", "instance_group",
     "version_policy", "default_model_filename")
)  # fmt: skip
_REFUSED: Final = {
    "sequence_batching": "requests of one sequence would not meet the same model",
    "ensemble_scheduling": "an ensemble is several models; publish its parts",
    "model_ensembling": "an ensemble is several models; publish its parts",
    "batch_input": "the model takes inputs that Triton makes of the batch",
    "batch_output": "outputs are cut in a way of Triton's own",
    "runtime": "the model brings a backend of its own",
}
_BATCHING: Final = frozenset(
    ("preferred_batch_size", "max_queue_delay_microseconds", "default_queue_policy", "priority_levels",
     "default_priority_level")
)  # fmt: skip


@dataclass(slots=True)
class Imported:
    """manifest: a model.yaml as a mapping, without `files`. filename: the artifact in each version's folder. notes:
    what was left out."""

    manifest: dict[str, Any]
    filename: str
    notes: list[str] = field(default_factory=list)


def convert(config: Message, folder: str) -> Imported:
    """The manifest of a configuration in a folder of that name; raises Unsupported or InvalidArgument."""
    for name, why in _REFUSED.items():
        if name in config:
            raise Unsupported(f"{name} is not supported: {why}")
    if _message(config, "model_transaction_policy").get("decoupled") == [True]:
        raise Unsupported("model_transaction_policy.decoupled is not supported: a request has one answer here")
    kind = _format(config)
    most = _integer(config, "max_batch_size", 0)
    made: dict[str, Any] = {
        "schema": "penstock/v1",
        "name": _text(config, "name") or folder,
        "description": "Imported from a Triton model repository.",
        "framework": kind.split("-")[0],
        "format": kind,
        "inputs": [_tensor(entry, "input") for entry in _messages(config, "input")],
        "outputs": [_tensor(entry, "output") for entry in _messages(config, "output")],
    }
    for side in ("inputs", "outputs"):
        if not made[side]:
            raise Unsupported(
                f"{side[:-1]} is missing: Triton read it from the model; write it out, or use `penstock init`"
            )
    imported = Imported(made, _text(config, "default_model_filename") or FILES[kind])
    if "/" in imported.filename or imported.filename.startswith("."):
        raise InvalidArgument("default_model_filename: must be a file in the version's folder")
    made["batching"] = {"max_batch_size": most, **_batching(config, imported.notes)} if most else {"max_batch_size": 0}
    if most and "dynamic_batching" not in config:
        imported.notes.append("requests are put together up to max_batch_size, as if dynamic_batching were there")
    _instances(config, imported)
    for entry in (*_messages(config, "input"), *_messages(config, "output")):
        for name in ("label_filename",):
            if name in entry:
                imported.notes.append(f"{name} is left out: answers carry no labels; see postprocess.top_k")
    imported.notes += [f"{name} is left out" for name in sorted(config.keys() - _KNOWN - {"model_transaction_policy"})]
    return imported


def chosen(config: Message, have: Iterable[int]) -> list[int]:
    """The versions that Triton would serve, oldest first; raises InvalidArgument for one that is not there."""
    numbers = sorted(have)
    policy = _message(config, "version_policy")
    if "all" in policy:
        return numbers
    if "specific" in policy:
        wanted = [number for number in _message(policy, "specific").get("versions", []) if isinstance(number, int)]
        if missing := sorted(set(wanted) - set(numbers)):
            raise InvalidArgument(f"version_policy names version {missing[0]}, which has no folder")
        return sorted(set(wanted))
    return numbers[-max(1, _integer(_message(policy, "latest"), "num_versions", 1)) :]


def _format(config: Message) -> str:
    name = _text(config, "platform") or _text(config, "backend")
    if name in PLATFORMS:
        return PLATFORMS[name]
    if name == "python":
        raise Unsupported(
            "the backend `python` is not supported: Triton's model.py uses Triton's own API; see format `python` in "
            "docs/engines.md"
        )
    known = ", ".join(PLATFORMS)
    raise Unsupported(f"the platform or backend {name[:60]!r} is not supported; these are: {known}")


def _tensor(entry: Message, side: str) -> dict[str, Any]:
    name = _text(entry, "name")
    for refused in ("reshape", "is_shape_tensor", "allow_ragged_batch", "optional", "is_non_linear_format_io"):
        if refused in entry and entry[refused] != [False]:
            raise Unsupported(f"{side} {name!r}: {refused} is not supported")
    layout = entry.get("format", ["FORMAT_NONE"])
    if layout not in (["FORMAT_NONE"], ["FORMAT_NCHW"], ["FORMAT_NHWC"]):
        raise Unsupported(f"{side} {name!r}: format {layout[0]} is not supported")
    datatype = entry.get("data_type", [""])[0]
    if not isinstance(datatype, str) or datatype not in _DATATYPES:
        raise Unsupported(f"{side} {name!r}: data_type {datatype!s:.40} is not supported")
    return {"name": name, "datatype": _DATATYPES[datatype], "shape": _integers(entry, "dims")}


def _batching(config: Message, notes: list[str]) -> dict[str, Any]:
    given = _message(config, "dynamic_batching")
    policy = _message(given, "default_queue_policy")
    notes += [f"dynamic_batching.{name} is left out" for name in sorted(given.keys() - _BATCHING)]
    if policy.get("timeout_action") == ["DELAY"]:
        notes.append("default_queue_policy.timeout_action DELAY is left out: a request whose time is up is refused")
    found = {
        "preferred_batch_size": _integers(given, "preferred_batch_size"),
        "max_queue_delay_microseconds": _integer(given, "max_queue_delay_microseconds", 0),
        "priority_levels": _integer(given, "priority_levels", 0),
        "default_priority_level": _integer(given, "default_priority_level", 0),
        "max_queue_size": _integer(policy, "max_queue_size", 0),
        "default_timeout_microseconds": _integer(policy, "default_timeout_microseconds", 0),
    }
    return {name: value for name, value in found.items() if value}


def _instances(config: Message, imported: Imported) -> None:
    groups = _messages(config, "instance_group")
    kinds = {str(group.get("kind", ["KIND_AUTO"])[0]) for group in groups}
    count = sum(max(1, _integer(group, "count", 1)) for group in groups)
    if count > MAX_INSTANCES:
        imported.notes.append(
            f"Triton ran {count} instances, a replica has {MAX_INSTANCES} at most: deploy with more --replicas"
        )
    if count > 1:
        imported.manifest["instances"] = min(count, MAX_INSTANCES)
    if "KIND_GPU" in kinds or (imported.manifest["format"] == "tensorrt"):
        imported.manifest["resources"] = {"devices": {"kind": "gpu", "count": 1}}
    if any("gpus" in group for group in groups):
        imported.notes.append("instance_group.gpus is left out: the scheduler chooses devices")


def _text(message: Message, name: str) -> str:
    value = message.get(name, [""])[-1]
    if not isinstance(value, str):
        raise InvalidArgument(f"{name}: must be text")
    return str(value)


def _integer(message: Message, name: str, default: int) -> int:
    value = message.get(name, [default])[-1]
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(f"{name}: must be an integer")
    return value


def _integers(message: Message, name: str) -> list[int]:
    values: Sequence[Any] = message.get(name, [])
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise InvalidArgument(f"{name}: must be integers")
    return list(values)


def _message(message: Message, name: str) -> Message:
    value = message.get(name, [{}])[-1]
    if not isinstance(value, dict):
        raise InvalidArgument(f"{name}: must be a message")
    return value


def _messages(message: Message, name: str) -> list[Message]:
    found = []
    for value in message.get(name, []):
        if not isinstance(value, dict):
            raise InvalidArgument(f"{name}: must be messages")
        found.append(value)
    return found
