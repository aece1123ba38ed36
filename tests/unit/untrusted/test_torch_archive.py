"""What gets through the rewriting of a .pt2 archive, and what does not. Needs no torch: the archive is made by hand."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from penstock.errors import InvalidArgument
from penstock.untrusted.torch_archive import rewrite
from penstock.untrusted.torch_expressions import check_expression

SYMBOL = {"as_expr": {"expr_str": "Symbol('s77', positive=True, integer=True)", "hint": {"as_int": 2}}}
EVIL = "__import__('os').system('true')"


def meta(*sizes: Any) -> dict[str, Any]:
    dims = [size if isinstance(size, dict) else {"as_int": size} for size in sizes]
    return {
        "dtype": 7, "sizes": dims, "requires_grad": False, "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": 1}] * len(sizes), "storage_offset": {"as_int": 0}, "layout": 7,
    }  # fmt: skip


def tensor(name: str) -> dict[str, Any]:
    return {"as_tensor": {"name": name}}


def tree(kind: str | None, context: str | None, *children: Any) -> dict[str, Any]:
    return {"type": kind, "context": context, "children_spec": list(children)}


LEAF = tree(None, None)


def payload(path: str, size: int) -> dict[str, Any]:
    return {"path_name": path, "is_param": True, "use_pickle": False, "tensor_meta": meta(size)}


def parts() -> dict[str, Any]:
    """y = x + w, as torch.export.save of torch 2.13 writes it, with what it writes besides."""
    node = {
        "target": "torch.ops.aten.add.Tensor",
        "inputs": [
            {"name": "self", "arg": tensor("x"), "kind": 1},
            {"name": "other", "arg": tensor("p_w"), "kind": 1},
            {"name": "mode", "arg": {"as_string": "ij,jk->ik"}, "kind": 2},
        ],
        "outputs": [tensor("add")],
        "metadata": {"stack_trace": 'File "a.py", line 1, in forward', "nn_module_stack": "L__self__,,__main__.M"},
        "is_hop_single_tensor_return": None,
        "name": "add",
    }
    graph = {
        "inputs": [tensor("p_w"), tensor("x")],
        "outputs": [tensor("add")],
        "nodes": [node],
        "tensor_values": {"p_w": meta(3), "x": meta(SYMBOL, 3), "add": meta(SYMBOL, 3)},
        "sym_int_values": {}, "sym_bool_values": {}, "is_single_tensor_return": False, "custom_obj_values": {},
        "sym_float_values": {},
    }  # fmt: skip
    signature = {
        "input_specs": [
            {"parameter": {"arg": {"name": "p_w"}, "parameter_name": "w"}},
            {"user_input": {"arg": tensor("x")}},
        ],
        "output_specs": [{"user_output": {"arg": tensor("add")}}],
    }
    call = {
        "fqn": "",
        "signature": {
            "inputs": [],
            "outputs": [],
            "in_spec": json.dumps(
                [1, tree("builtins.tuple", "null", tree("builtins.tuple", "null", LEAF), tree("builtins.dict", "[]"))]
            ),
            "out_spec": json.dumps([1, tree("builtins.dict", '["y"]', LEAF)]),
            "forward_arg_names": ["x"],
        },
    }
    return {
        "models/model.json": {
            "graph_module": {
                "graph": graph, "signature": signature, "metadata": {}, "treespec_namedtuple_fields": {},
                "module_call_graph": [call, {"fqn": "sub", "signature": None}],
            },
            "opset_version": {"aten": 10},
            "range_constraints": {"s77": {"min_val": 1, "max_val": 64}},
            "schema_version": {"major": 8, "minor": 20},
            "verifiers": ["TRAINING"],
            "torch_version": "2.13.0+cpu",
            "guards_code": [EVIL],
        },
        "data/weights/model_weights_config.json": {"config": {"w": payload("weight_0", 3)}},
        "data/weights/weight_0": b"\0" * 12,
        "data/constants/model_constants_config.json": {"config": {}},
        "data/sample_inputs/model.pt": b"\x80\x02cos\nsystem\n",
        "archive_format": b"pt2",
        "archive_version": b"0",
    }  # fmt: skip


def packed(members: dict[str, Any]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"m/{name}", content if isinstance(content, bytes) else json.dumps(content))
    buffer.seek(0)
    return buffer


def rewritten(members: dict[str, Any]) -> dict[str, bytes]:
    target = io.BytesIO()
    rewrite(packed(members), target)
    with zipfile.ZipFile(target) as archive:
        return {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}


def test_a_plain_program_passes_without_what_could_run() -> None:
    made = rewritten(parts())
    assert made["data/sample_inputs/model.pt"] == b""
    assert made["data/weights/weight_0"] == b"\0" * 12
    program = json.loads(made["models/model.json"])
    assert program["guards_code"] == []
    expected = copy.deepcopy(parts()["models/model.json"]["graph_module"])
    expected["graph"]["nodes"][0]["metadata"] = {}
    expected["module_call_graph"] = expected["module_call_graph"][:1]
    assert program["graph_module"] == expected
    assert EVIL.encode() not in b"".join(made.values())


def test_a_tensor_may_be_named_like_a_part_of_the_layout() -> None:
    members = json.loads(json.dumps({"m": parts()["models/model.json"]}).replace('"x"', '"target"'))
    assert b'"target": {"dtype"' in rewritten({**parts(), "models/model.json": members["m"]})["models/model.json"]


Change = Callable[[dict[str, Any]], object]


def graph_of(members: dict[str, Any]) -> dict[str, Any]:
    graph: dict[str, Any] = members["models/model.json"]["graph_module"]["graph"]
    return graph


def node_of(members: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = graph_of(members)["nodes"][0]
    return node


def weight_of(members: dict[str, Any]) -> dict[str, Any]:
    weight: dict[str, Any] = members["data/weights/model_weights_config.json"]["config"]["w"]
    return weight


def constant(members: dict[str, Any], path: str) -> None:
    members["data/constants/model_constants_config.json"]["config"]["c"] = {**payload(path, 3), "use_pickle": False}
    members[f"data/constants/{path}"] = b"\0" * 12


def root_signature(members: dict[str, Any]) -> dict[str, Any]:
    signature: dict[str, Any] = members["models/model.json"]["graph_module"]["module_call_graph"][0]["signature"]
    return signature


ENUM = json.dumps([1, tree("builtins.dict", json.dumps([{"__enum__": True, "fqn": "os:environ", "name": "x"}]), LEAF)])

ATTACKS: dict[str, tuple[Change, str]] = {
    "pickled weight": (lambda m: weight_of(m).update(use_pickle=True), "stored as a pickle"),
    "flag that is not false": (lambda m: weight_of(m).update(use_pickle=0), "stored as a pickle"),
    "custom constant": (lambda m: constant(m, "custom_obj_0"), "stored as a pickle or custom object"),
    "opaque constant": (lambda m: constant(m, "opaque_obj_0"), "stored as a pickle or custom object"),
    "member elsewhere": (lambda m: weight_of(m).update(path_name="../sample_inputs/model.pt"), "stored as a pickle"),
    "compiled code": (lambda m: m.update({"data/aotinductor/model/a.so": b""}), "compiled code"),
    "weight past its member": (lambda m: weight_of(m)["tensor_meta"].update(sizes=[{"as_int": 4}]), "larger than"),
    "weight out of nothing": (lambda m: m.update({"data/weights/weight_0": b""}), "larger than"),
    "weight on a GPU": (lambda m: weight_of(m)["tensor_meta"]["device"].update(type="cuda"), "export on the CPU"),
    "sparse weight": (lambda m: weight_of(m)["tensor_meta"].update(layout=1), "not a dense tensor"),
    "os.system": (lambda m: node_of(m).update(target="torch.os.system"), "not among the operators"),
    "attribute of an operator": (lambda m: node_of(m).update(target="torch.ops.aten.add.__globals__"), "not among"),
    "dunder": (lambda m: node_of(m).update(target="torch.ops.aten.__init__.x"), "not among the operators"),
    "reads a file": (lambda m: node_of(m).update(target="torch.ops.aten.from_file.default"), "not among the operators"),
    "loads a library": (lambda m: node_of(m).update(target="torch.ops.load_library"), "not among the operators"),
    "attrgetter": (lambda m: node_of(m).update(target="_operator.attrgetter"), "not among the operators"),
    "extension": (lambda m: node_of(m).update(target="#x:y"), "not among the operators"),
    "target of another type": (lambda m: node_of(m).update(target=[EVIL]), "target is not text"),
    "operator as a value": (lambda m: node_of(m)["inputs"][0].update(arg={"as_operator": "torch.os.system"}), "value"),
    "custom object": (lambda m: node_of(m)["inputs"][0].update(arg={"as_custom_obj": {"name": "x"}}), "custom object"),
    "code as a name": (lambda m: graph_of(m)["inputs"][1].update(tensor(f"x={EVIL}")), "not a plain name"),
    "code as a node's name": (lambda m: node_of(m).update(name="a\nimport os"), "not a plain name"),
    "code as a key": (lambda m: graph_of(m)["tensor_values"].update({EVIL: meta(1)}), "not a plain name"),
    "code as text": (lambda m: node_of(m)["inputs"][2].update(arg={"as_string": EVIL}), "which is not taken"),
    "code as a number": (lambda m: graph_of(m)["tensor_values"]["x"].update(dtype=EVIL), "not a plain name"),
    "code as a shape": (lambda m: graph_of(m)["tensor_values"].update(x=meta(shape(EVIL), 3)), "not plain arithmetic"),
    "shape of another type": (lambda m: graph_of(m)["tensor_values"].update(x=meta(shape([EVIL]), 3)), "not text"),
    "code as a bound": (lambda m: m["models/model.json"].update(range_constraints={"s": bounds(EVIL)}), "bound is not"),
    "code as a keyword": (lambda m: root_signature(m).update(forward_arg_names=[EVIL]), "not a plain name"),
    "import by enum": (lambda m: root_signature(m).update(in_spec=ENUM), "keys are not text"),
    "another container": (
        lambda m: root_signature(m).update(out_spec=json.dumps([1, tree("os.environ", "null", LEAF)])),
        "something other than tuples",
    ),
    "old layout": (lambda m: m.pop("models/model.json"), "save it with torch.export.save"),
}


def shape(expression: Any) -> dict[str, Any]:
    return {"as_expr": {"expr_str": expression, "hint": None}}


def bounds(value: Any) -> dict[str, Any]:
    return {"min_val": value, "max_val": None}


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_way_from_a_file_to_code_is_closed(attack: str) -> None:
    change, says = ATTACKS[attack]
    members = parts()
    change(members)
    with pytest.raises(InvalidArgument, match=says):
        rewritten(members)


def test_a_name_that_two_members_have_is_refused() -> None:
    buffer = packed(parts())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("other/models/model.json", "{}")
    with pytest.raises(InvalidArgument, match="names a member twice"):
        rewrite(buffer, io.BytesIO())


def test_what_is_missing_or_of_another_shape_is_an_error_of_the_file() -> None:
    for path in (["graph_module"], ["graph_module", "graph"], ["schema_version"], ["range_constraints"]):
        members = parts()
        inner = members["models/model.json"]
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        with pytest.raises(InvalidArgument, match="known layout"):
            rewritten(members)


@pytest.mark.parametrize(
    "expression",
    [
        "Symbol('s0', positive=True, integer=True)",
        "Add(Mul(Integer(2), Symbol('s0', integer=True)), Integer(-1))",
        "FloorDiv(Symbol('s1', positive=True), Integer(2))",
        "Max(1, s0) + 2*u3 // 4",
        "Float('2.0', precision=53)",
        "Piecewise((Integer(1), Symbol('s0') < 3), (2, true))",
    ],
)
def test_arithmetic_passes(expression: str) -> None:
    check_expression(expression)


@pytest.mark.parametrize(
    "expression",
    [
        EVIL, "().__class__", "Symbol('s0').__class__", "[x for x in (1,)]", "lambda: 1", "exec('1')", "s0.x", "os",
        f"Add({EVIL!r}, 1)", f"Symbol({EVIL!r})", f"Symbol('s', integer={EVIL!r})", f"Integer({EVIL!r})", "f'{1}'",
        f"Float({EVIL!r})", "Symbol(*('a',))", "Add(**{})", "Symbol", "1 if 1 else 2", "a := 1", "x[0]", "'s0'", "(",
        "1 + " * 3000 + "1", "-" * 4000 + "1",
    ],
)  # fmt: skip
def test_anything_else_does_not(expression: str) -> None:
    with pytest.raises(InvalidArgument, match="not plain arithmetic"):
        check_expression(expression)
