"""The scan and protobuf's own reader agree on random damage: what the library would read as external never passes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from penstock.errors import InvalidArgument
from penstock.untrusted.onnx_scan import refuse_external


def seed() -> bytes:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.external_data.add(key="location", value="canary")
    branch = onnx.GraphProto(name="b", initializer=[TensorProto(name="v", data_location=TensorProto.EXTERNAL)])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor),
        helper.make_node("If", ["x"], ["y"], then_branch=branch),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    return bytes(model.SerializeToString())


SEED = seed()


def tensors(message: Message) -> Iterator[Message]:
    """Every TensorProto that the library sees, by walking whatever it parsed."""
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            repeated = not isinstance(value, Message)
            for inner in value if repeated else [value]:
                if isinstance(inner, Message):
                    if inner.DESCRIPTOR.name == "TensorProto":
                        yield inner
                    yield from tensors(inner)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), max_size=6), st.binary(max_size=12))
def test_nothing_external_passes(changes: list[tuple[int, int]], tail: bytes) -> None:
    data = bytearray(SEED)
    for at, value in changes:
        data[at] = value
    data += tail
    try:
        model = onnx.ModelProto.FromString(bytes(data))
    except DecodeError:
        return
    try:
        refuse_external(bytes(data))
    except InvalidArgument:
        return
    for tensor in tensors(model):
        assert not tensor.external_data  # type: ignore[attr-defined]
        assert tensor.data_location == TensorProto.DEFAULT  # type: ignore[attr-defined]
