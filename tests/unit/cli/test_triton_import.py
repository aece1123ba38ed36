"""A Triton model repository as ours: the text form of its configurations, and what each field becomes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from google.protobuf import struct_pb2, text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cli import pbtxt, triton
from penstock.errors import InvalidArgument, PenstockError, Unsupported

RESNET = """
# As NVIDIA's guide writes it, more or less.
name: "resnet"
platform: "onnxruntime_onnx"   # a comment
max_batch_size : 32
input [
  { name: "image" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 224, 224 ] },
  { name: 'text', data_type: TYPE_STRING, dims: 1 dims: -1; }
]
output < name: "probabilities" data_type: TYPE_FP16 dims: [ 1000 ] label_filename: "labels.txt" >
instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] } ]
dynamic_batching {
  preferred_batch_size: [ 8, 16 ]
  max_queue_delay_microseconds: 100
  preserve_ordering: true
  default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 5000 max_queue_size: 64 }
}
version_policy: { latest: { num_versions: 2 } }
parameters { key: "x" value: { string_value: "a\\tb\\x41" "\\101c" } }
"""


def minimal(extra: str = "", **changed: str) -> str:
    fields = {
        "platform": '"onnxruntime_onnx"',
        "input": '{ name: "x" data_type: TYPE_FP32 dims: [ 4 ] }',
        "output": '{ name: "y" data_type: TYPE_FP32 dims: [ 4 ] }',
        **changed,
    }
    return "\n".join(f"{name}: {value}" for name, value in fields.items() if value) + "\n" + extra


def convert(text: str) -> triton.Imported:
    return triton.convert(pbtxt.parse(text), "folder")


def test_a_configuration_becomes_a_manifest() -> None:
    imported = convert(RESNET)
    assert imported.manifest == {
        "schema": "penstock/v1",
        "name": "resnet",
        "description": "Imported from a Triton model repository.",
        "framework": "onnx",
        "format": "onnx",
        "inputs": [
            {"name": "image", "datatype": "FP32", "shape": [3, 224, 224]},
            {"name": "text", "datatype": "BYTES", "shape": [1, -1]},
        ],
        "outputs": [{"name": "probabilities", "datatype": "FP16", "shape": [1000]}],
        "batching": {
            "max_batch_size": 32,
            "preferred_batch_size": [8, 16],
            "max_queue_delay_microseconds": 100,
            "max_queue_size": 64,
            "default_timeout_microseconds": 5000,
        },
        "instances": 2,
        "resources": {"devices": {"kind": "gpu", "count": 1}},
    }
    assert imported.filename == "model.onnx"
    assert {note.split(" ")[0] for note in imported.notes} == {
        "dynamic_batching.preserve_ordering", "instance_group.gpus", "label_filename", "parameters",
    }  # fmt: skip
    assert triton.chosen(pbtxt.parse(RESNET), [1, 10, 2]) == [2, 10]


def test_the_text_form_is_read_as_protobuf_reads_it() -> None:
    value = pbtxt.parse(RESNET)["parameters"][0]["value"][0]["string_value"][0]  # type: ignore[index]
    assert value == "a\tbAAc"
    text = "fields { key: 'a' value { number_value: -1.5e2 } } fields { key: \"b\" value { list_value { } } }"
    message = text_format.Parse(text, struct_pb2.Struct())
    ours: Any = pbtxt.parse(text)["fields"]
    assert [entry["key"] for entry in ours] == [["a"], ["b"]]
    assert ours[0]["value"][0]["number_value"] == [message.fields["a"].number_value]


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(-1e6, 1e6) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=8,
    )
)
def test_what_protobuf_prints_is_read_back(value: Any) -> None:
    message = struct_pb2.Struct()
    message.update({"a": value})
    read = pbtxt.parse(text_format.MessageToString(message, as_utf8=True))
    assert plain(read["fields"][0]["value"][0]) == plain_of(message.fields["a"])  # type: ignore[index]


def plain(value: Any) -> Any:
    ((kind, (content,)),) = value.items()
    if kind == "list_value":
        return [plain(entry) for entry in content.get("values", [])]
    return float(content) if kind == "number_value" else content


def plain_of(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return [plain_of(entry) for entry in value.list_value.values]
    if kind == "null_value":
        return "NULL_VALUE"
    return getattr(value, str(kind))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name 'x'", "line 1: ':' or '{' is missing"),
        ("\n\ninput [ { name: 'x' ", "line 3: a field's name is missing"),
        ("a: [1 2]", "a list's ']' or ',' is missing"),
        ("a: @", "line 1: '@' is not understood"),
        ("a: 'x\ny'", "is not understood"),
        ("a:", "a value is missing"),
        ("}", "a field's name is missing"),
        ("a {" * 40, "more than 32 deep"),
        ("a: 12abc", "is not understood"),
        ("#" * 1_100_000, "longer than"),
    ],
)
def test_what_is_no_message_is_told_with_its_line(text: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says.replace("[", r"\[").replace("{", r"\{").replace("]", r"\]")):
        pbtxt.parse(text)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab1 .:{}[]<>,;\"'\\\n#-_x", max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    with suppress(PenstockError):
        triton.convert(pbtxt.parse(text), "folder")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (minimal(platform='"tensorflow_savedmodel"'), "'tensorflow_savedmodel' is not supported; these are: onnx"),
        (minimal(platform="", extra='backend: "python"'), "the backend `python` is not supported"),
        (minimal("sequence_batching { }"), "sequence_batching is not supported"),
        (minimal("ensemble_scheduling { }"), "ensemble_scheduling is not supported"),
        (minimal("model_transaction_policy { decoupled: true }"), "decoupled is not supported"),
        (minimal(input=""), "input is missing"),
        (minimal(input='{ name: "x" data_type: TYPE_FP32 dims: 1 reshape { shape: [ ] } }'), "'x': reshape is not"),
        (minimal(input='{ name: "x" data_type: TYPE_FP32 dims: 1 optional: true }'), "'x': optional is not"),
        (minimal(input='{ name: "x" data_type: TYPE_FP128 dims: 1 }'), "data_type TYPE_FP128 is not supported"),
        (minimal('default_model_filename: "../x"'), "must be a file in the version's folder"),
        (minimal("max_batch_size: 'x'"), "max_batch_size: must be an integer"),
        (minimal("dynamic_batching: 3 max_batch_size: 4"), "dynamic_batching: must be a message"),
    ],
)
def test_what_cannot_be_kept_is_named(text: str, says: str) -> None:
    with pytest.raises((Unsupported, InvalidArgument), match=says):
        convert(text)


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [("", [5]), ("latest { }", [5]), ("all { }", [1, 3, 5]), ("specific { versions: [ 5, 1 ] }", [1, 5])],
)
def test_versions_that_triton_would_serve(policy: str, wanted: list[int]) -> None:
    text = minimal(f"version_policy {{ {policy} }}" if policy else "")
    assert triton.chosen(pbtxt.parse(text), [3, 5, 1]) == wanted


def test_a_version_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidArgument, match="version 7, which has no folder"):
        triton.chosen(pbtxt.parse("version_policy { specific { versions: 7 } }"), [1])


def test_instances_of_all_groups_are_those_of_a_replica_as_far_as_it_may_have_them() -> None:
    several = convert(minimal("instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_CPU } ]"))
    assert (several.manifest["instances"], several.notes) == (3, [])
    many = convert(minimal("instance_group { count: 40 }"))
    assert many.manifest["instances"] == 16
    assert many.notes == ["Triton ran 40 instances, a replica has 16 at most: deploy with more --replicas"]


def test_defaults_and_other_platforms() -> None:
    imported = convert(minimal())
    assert imported.manifest["name"] == "folder"
    assert imported.manifest["batching"] == {"max_batch_size": 0}
    assert imported.notes == []
    assert not {"resources", "instances"} & imported.manifest.keys()
    torch = convert(minimal(platform='"pytorch_libtorch"', extra="max_batch_size: 4"))
    assert (torch.manifest["format"], torch.filename) == ("torch-export", "model.pt2")
    assert torch.notes == ["requests are put together up to max_batch_size, as if dynamic_batching were there"]
    plan = convert(minimal(platform='"tensorrt_plan"', extra='default_model_filename: "model.onnx"'))
    assert (plan.manifest["format"], plan.filename) == ("tensorrt", "model.onnx")
    assert plan.manifest["resources"] == {"devices": {"kind": "gpu", "count": 1}}
