"""Of a SavedModel nothing passes but what one signature computes, and that only by operators that compute."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence

import pytest

from penstock.errors import InvalidArgument
from penstock.untrusted import saved_model
from penstock.untrusted.tensorflow_operators import ALLOWED

# --- a SavedModel, message by message (meta_graph.proto, graph.proto, function.proto, node_def.proto) -----------------


def part(number: int, content: bytes | str) -> bytes:
    """A field that has a length."""
    data = content.encode() if isinstance(content, str) else content
    length, size = bytearray(), len(data)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((number << 3 | 2,)) + bytes(length) + bytes((size,)) + data


def node(
    name: str, operator: str, *inputs: str, calls: str = "", texts: Sequence[str] = (), extra: bytes = b""
) -> bytes:
    made = part(1, name) + part(2, operator) + b"".join(part(3, each) for each in inputs)
    if calls:
        made += part(5, part(1, "f") + part(2, part(10, part(1, calls))))
    if texts:
        made += part(5, part(1, "value") + part(2, part(8, b"".join(part(8, text) for text in texts))))
    return made + extra


def function(name: str, arguments: Sequence[str], *nodes: bytes) -> bytes:
    signature = part(1, name) + b"".join(part(2, part(1, each)) for each in arguments)
    return part(1, signature) + b"".join(part(3, each) for each in nodes)


def saved(
    nodes: Sequence[bytes], functions: Sequence[bytes] = (), restore: str = "", tags: Sequence[str] = ("serve",)
) -> bytes:
    library = b"".join(part(1, each) for each in functions)
    graph = b"".join(part(1, each) for each in nodes) + part(2, library) + part(4, b"\x08\x01")

    def tensors(number: int, name: str, tensor: str) -> bytes:
        return part(number, part(1, name) + part(2, part(1, tensor)))

    signature = tensors(1, "x", "x:0") + tensors(2, "y", "out:0")
    meta = part(1, b"".join(part(4, tag) for tag in tags)) + part(2, graph) + part(3, part(3, restore))
    return b"\x08\x01" + part(2, meta + part(5, part(1, "serving_default") + part(2, signature)))


X = node("x", "Placeholder")
RESTORE = function(
    "restore_9",
    ["prefix", "w_argument"],
    node("names", "Const", texts=["other", "w/.ATTRIBUTES/VARIABLE_VALUE"]),
    node("RestoreV2", "RestoreV2", "prefix", "names:output:0", "names:output:0"),
    node("Identity_1", "Identity", "RestoreV2:tensors:1"),
    node("Assign", "AssignVariableOp", "w_argument", "Identity_1:output:0"),
)
CALLED = function("call_7", ["x", "w"], node("r", "ReadVariableOp", "w"), node("m", "MatMul", "x", "r:value:0"))
MODEL = [
    X, node("w", "VarHandleOp"), node("out", "StatefulPartitionedCall", "x", "w", calls="call_7"),
    node("file", "Placeholder"), node("back", "StatefulPartitionedCall", "file", "w", calls="restore_9"),
    node("init", "WriteFile", "file", "file"),
]  # fmt: skip


def test_what_the_signature_computes_is_kept_and_nothing_else() -> None:
    program = saved_model.read(saved(MODEL, [CALLED, RESTORE], restore="back"), "serving_default")
    assert (program.inputs, program.outputs) == ({"x": "x:0"}, {"y": "out:0"})
    assert program.variables == {"w": "w/.ATTRIBUTES/VARIABLE_VALUE"}
    assert all(word in program.graph for word in (b"call_7", b"MatMul", b"VarHandleOp"))
    assert not any(word in program.graph for word in (b"restore_9", b"RestoreV2", b"WriteFile", b"back"))


def test_what_is_kept_is_a_graph_with_its_version() -> None:
    program = saved_model.read(saved([X, node("out", "Relu", "x")]), "serving_default")
    assert program.graph == part(1, X) + part(1, node("out", "Relu", "x")) + part(2, b"") + part(4, b"\x08\x01")


def test_variables_are_found_as_tensorflow_1_wrote_them() -> None:
    nodes = [
        X, node("w", "VarHandleOp"), node("r", "ReadVariableOp", "w"), node("out", "MatMul", "x", "r"),
        node("names", "Const", texts=["dense/w"]), node("save/RestoreV2", "RestoreV2", "file", "names"),
        node("save/Identity", "Identity", "save/RestoreV2"),
        node("save/Assign", "AssignVariableOp", "w", "save/Identity"),
    ]  # fmt: skip
    assert saved_model.read(saved(nodes), "serving_default").variables == {"w": "dense/w"}


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        ("ReadFile", "reaches files or data outside"),
        ("WriteFile", "reaches files or data outside"),
        ("MatchingFiles", "reaches files or data outside"),
        ("SaveV2", "reaches files or data outside"),
        ("RestoreV2", "reaches files or data outside"),
        ("MergeV2Checkpoints", "reaches files or data outside"),
        ("PyFunc", "calls Python"),
        ("EagerPyFunc", "calls Python"),
        ("HashTableV2", "look words up before the model"),
        ("LookupTableFindV2", "look words up before the model"),
        ("StringSplitV2", "works on text"),
        ("DecodeJpeg", "decodes files"),
        ("VariableV2", "a variable of TensorFlow 1"),
        ("AssignVariableOp", "no conversion to ONNX"),
        ("XlaLaunch", "no conversion to ONNX"),
        ("RemoteCall", "no conversion to ONNX"),
    ],
)
def test_an_operator_that_does_more_than_compute_is_refused_wherever_it_is_needed(operator: str, words: str) -> None:
    bad = node("bad", operator, "x")
    places = {
        "in the graph": saved([X, bad, node("out", "Relu", "bad")]),
        "by its order alone": saved([X, bad, node("out", "Relu", "x", "^bad")]),
        "in a function": saved(
            [X, node("out", "PartitionedCall", "x", calls="f_1")], [function("f_1", ["x"], node("bad", operator, "x"))]
        ),
        "in a function of a function": saved(
            [X, node("out", "PartitionedCall", "x", calls="f_1")],
            [
                function("f_1", ["x"], node("c", "While", "x", calls="f_2")),
                function("f_2", ["x"], node("bad", operator, "x")),
            ],
        ),
        "in a function that is called by its name": saved(
            [X, node("out", "f_1", "x")], [function("f_1", ["x"], node("bad", operator, "x"))]
        ),
    }
    for place, data in places.items():
        with pytest.raises(InvalidArgument, match=f"the operator '{operator}' .*{words}"):
            saved_model.read(data, "serving_default")
            pytest.fail(place)


@pytest.mark.parametrize(
    ("nodes", "functions", "words"),
    [
        ([X, node("out", "Relu", "x") + part(2, "ReadFile")], [], "two names or operators"),
        ([X, node("out", "Relu", "x") + part(1, "other")], [], "two names or operators"),
        ([X, X, node("out", "Relu", "x")], [], "a node twice"),
        ([X, node("out", "Relu", "gone")], [], "'gone' that it does not hold"),
        ([X, node("out", "ReadFile", "x")], [function("ReadFile", ["x"])], "'ReadFile', which is taken"),
        ([X, node("out", "PartitionedCall", "x", calls="gone_1")], [], "calls a function that the file does not hold"),
        ([X, node("out", "Relu", "x", calls="f_1")], [function("f_1", ["x"])], "calls a function"),
        ([X, node("w", "VarHandleOp"), node("out", "ReadVariableOp", "w")], [], "what the variable 'w' is restored"),
        (
            [X, node("out", "PartitionedCall", "x", calls="f_1")], [function("f_1", ["x"], node("w", "VarHandleOp"))],
            "the operator 'VarHandleOp'",
        ),
    ],
)  # fmt: skip
def test_a_graph_that_could_be_read_in_two_ways_is_refused(
    nodes: list[bytes], functions: list[bytes], words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        saved_model.read(saved(nodes, functions), "serving_default")


def test_functions_in_lists_and_inside_attributes_are_seen() -> None:
    inner = part(10, part(1, "outer_1") + part(2, part(1, "g") + part(2, part(1, part(9, part(1, "inner_2"))))))
    caller = node("out", "Case", "x", extra=part(5, part(1, "branches") + part(2, inner)))
    functions = [function("outer_1", ["x"]), function("inner_2", ["x"], node("bad", "ReadFile", "x"))]
    with pytest.raises(InvalidArgument, match="'ReadFile'"):
        saved_model.read(saved([X, caller], functions), "serving_default")


def test_attributes_without_end_are_refused() -> None:
    value = part(10, part(1, "f_1"))
    for _ in range(40):
        value = part(10, part(1, "f_1") + part(2, part(1, "g") + part(2, value)))
    caller = node("out", "Case", "x", extra=part(5, part(1, "branches") + part(2, value)))
    with pytest.raises(InvalidArgument, match="deeper than"):
        saved_model.read(saved([X, caller], [function("f_1", ["x"])]), "serving_default")


def test_the_graph_for_serving_is_the_one_with_the_tag() -> None:
    training, serving = saved([X, node("out", "ReadFile", "x")], tags=["train"]), saved([X, node("out", "Tanh", "x")])
    assert b"Tanh" in saved_model.read(training + serving[2:], "serving_default").graph
    with pytest.raises(InvalidArgument, match="no graph with the tag `serve`"):
        saved_model.read(training + training[2:], "serving_default")
    with pytest.raises(InvalidArgument, match="no signature 'other'; there are serving_default"):
        saved_model.read(serving, "other")


def test_damaged_bytes_are_refused() -> None:
    whole = saved(MODEL, [CALLED, RESTORE], restore="back")
    for end in range(3, len(whole), 7):
        with pytest.raises(InvalidArgument):
            saved_model.read(whole[:end], "serving_default")
    chance = random.Random(0)
    for _ in range(1000):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        with contextlib.suppress(InvalidArgument):
            saved_model.read(bytes(changed), "serving_default")


def test_no_operator_on_the_list_is_one_that_has_reached_out_before() -> None:
    reaching = {
        "ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc", "SaveV2", "RestoreV2",
        "MergeV2Checkpoints", "ShardedFilename", "LoadAndRemapMatrix", "ImmutableConst", "TextLineReader", "Assert",
        "DebugIdentity", "PrintV2", "RpcCall", "XlaLaunch", "RemoteCall", "LoadLibrary", "WriteGraphSummary",
    }  # fmt: skip
    assert not reaching & ALLOWED
