"""A `.pt2` archive of torch.export, rewritten so that loading it runs nothing (pure; knows no torch).

`torch.export.load` of torch 2.13 is not safe on a file that somebody else wrote. Reading its loader shows these ways
from a file to code: a weight or constant flagged `use_pickle` goes to torch.load(weights_only=False); custom and opaque
constants are unpickled; sample inputs are read with weights_only=True and, when that fails, *again with False*; an old
layout of the archive goes the same way; compiled AOTInductor libraries are dlopened; shape expressions reach sympy's
`sympify`, which evaluates Python; `guards_code` is Python; names are pasted into generated code; operator names are
looked up as attributes of the `torch` module, which has `torch.os.system`; tree specs may import any module.

So nothing of the file is passed on as it is. The members that a plain program needs are read, checked against an allow
list and written to a new archive, and only that one is loaded. Sample inputs, metadata, guards and call graphs of
submodules are not needed to run a program and are left out.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Callable
from typing import IO, Any, Final

from penstock.errors import InvalidArgument

from .archives import DAMAGED
from .torch_expressions import check_expression

MAX_JSON: Final = 256 << 20
MAX_MEMBERS: Final = 100_000

Json = dict[str, Any]

# Bytes per element by torch's ScalarType number; the complex and float8 kinds have no datatype in the protocol, but a
# model may hold them inside.
_SIZES: Final = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 9: 4, 10: 8, 11: 16, 12: 1, 13: 2, 28: 2,
    29: 1, 30: 1, 31: 1, 32: 1, 33: 1, 34: 4, 35: 8,
}  # fmt: skip
_STRIDED, _CPU = 7, "cpu"

_NAME = re.compile(r"[A-Za-z0-9_.]*")
# What an operator takes as text: an einsum equation, a rounding mode. No brackets and no quotes: nothing can be called.
_TEXT = re.compile(r"[A-Za-z0-9_ .,:>+*/-]*")
_OPERATOR = re.compile(r"torch\.ops\.(?:aten|prims)\.(?!__)\w+\.(?!__)\w+")
_DUNDERS = {f"torch.ops.aten.__{name}__" for name in ("and", "or", "xor", "lshift", "rshift")}
_PLAIN: Final = {
    *(f"_operator.{name}" for name in (
        "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "eq", "ne", "lt", "le", "gt", "ge",
        "and_", "or_", "not_", "getitem",
    )),
    *(f"math.{name}" for name in ("trunc", "ceil", "floor", "sqrt")),
    *(f"torch.sym_{name}" for name in (
        "int", "float", "max", "min", "not", "sum", "ite", "sqrt", "fresh_size",
    )),
    "torch.ops.higher_order.cond",
    "torch.ops.higher_order.while_loop",
    "torch.ops.higher_order.wrap_with_set_grad_enabled",
}  # fmt: skip
# Operators that reach outside the program: files, and memory at an address.
_REACHING = ("from_file", "from_blob", "_resize_output", "set_", "set", "resize_storage_bytes_")
_FLOATS = {"Infinity", "-Infinity", "NaN"}  # how numbers that JSON lacks are written
_TREES = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", None}


def rewrite(source: IO[bytes], target: IO[bytes]) -> None:
    """Writes the checked archive to `target`; raises InvalidArgument with a public reason where it is not plain.

    Weights are copied in pieces, so that no second copy of them lies in memory here.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            _rewrite(_Members(archive), target)
    except DAMAGED as error:
        raise InvalidArgument("the file is not a torch.export archive (.pt2), or it is damaged") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidArgument("the archive does not hold an exported program of a known layout") from error


class _Members:
    """The archive's members without their common folder, each name once."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.infos: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            name = info.filename.partition("/")[2]
            if name in self.infos or len(self.infos) > MAX_MEMBERS:
                raise InvalidArgument("the archive names a member twice, or has too many")
            self.infos[name] = info

    def json(self, name: str) -> Json:
        info = self.infos.get(name)
        if info is None:
            raise InvalidArgument(f"the archive has no {name}; save it with torch.export.save of torch 2.9 or newer")
        if info.file_size > MAX_JSON:
            raise InvalidArgument(f"{name} of the archive is larger than {MAX_JSON >> 20} MiB")
        value = json.loads(self.archive.read(info))
        if not isinstance(value, dict):
            raise InvalidArgument(f"{name} of the archive is not an object")
        return value


def _rewrite(members: _Members, target: IO[bytes]) -> None:
    if any(name.startswith(("data/aotinductor/", "data/executorch/")) for name in members.infos):
        raise InvalidArgument("the archive holds compiled code; publish the exported program (torch.export.save) alone")
    program = _program(members.json("models/model.json"))
    weights, weight_files = _payloads(members, "data/weights/", "weights", "weight_")
    constants, constant_files = _payloads(members, "data/constants/", "constants", "tensor_")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as made:
        for name, text in (
            ("archive_format", "pt2"),
            ("archive_version", "0"),
            ("byteorder", "little"),
            (".data/version", "6\n"),
            ("models/model.json", json.dumps(program)),
            ("data/weights/model_weights_config.json", json.dumps(weights)),
            ("data/constants/model_constants_config.json", json.dumps(constants)),
            ("data/sample_inputs/model.pt", ""),
        ):
            made.writestr(f"model/{name}", text)
        for name in [*weight_files, *constant_files]:
            _copy(members, name, made)


def _copy(members: _Members, name: str, made: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo(f"model/{name}")
    info.file_size = members.infos[name].file_size
    with members.archive.open(members.infos[name]) as source, made.open(info, "w") as target:
        while piece := source.read(1 << 20):
            target.write(piece)


def _payloads(members: _Members, folder: str, kind: str, prefix: str) -> tuple[Json, list[str]]:
    """The checked table of weights or constants, and the members that it names."""
    table: Json = {}
    files: set[str] = set()
    for name, entry in members.json(f"{folder}model_{kind}_config.json")["config"].items():
        path = entry["path_name"]
        if entry["use_pickle"] is not False or not re.fullmatch(re.escape(prefix) + r"[0-9]+", path):
            raise InvalidArgument(
                f"{kind}: {_shown(name)} is stored as a pickle or custom object, which is never loaded"
            )
        info = members.infos[folder + path]
        meta = _checked(entry["tensor_meta"], f"{kind}.{_shown(name)}")
        _check_payload(name, meta, info.file_size, kind)
        table[_plain(name, kind)] = {
            "path_name": path, "is_param": bool(entry["is_param"]), "use_pickle": False, "tensor_meta": meta,
        }  # fmt: skip
        files.add(folder + path)
    return {"config": table}, sorted(files)


def _check_payload(name: str, meta: Json, size: int, kind: str) -> None:
    """A tensor must lie within its member: torch would make an empty member's tensor of any size out of nothing."""
    sizes, strides = ([_natural(dim["as_int"]) for dim in meta[key]] for key in ("sizes", "strides"))
    offset = _natural(meta["storage_offset"]["as_int"])
    if meta["layout"] != _STRIDED or len(sizes) != len(strides):
        raise InvalidArgument(f"{kind}: {_shown(name)} is not a dense tensor")
    if meta["device"]["type"] != _CPU:
        raise InvalidArgument(
            f"{kind}: {_shown(name)} lies on a {_shown(meta['device']['type'])} device; export on the CPU"
        )
    last = offset + sum((dim - 1) * step for dim, step in zip(sizes, strides, strict=True))
    if math.prod(sizes) and (last + 1) * _SIZES[meta["dtype"]] > size:
        raise InvalidArgument(f"{kind}: {_shown(name)} is larger than what the archive holds of it")


def _program(model: Json) -> Json:
    module = model["graph_module"]
    calls = module["module_call_graph"]
    root = next(call for call in calls if call["fqn"] == "")
    signature = root["signature"]
    return {
        "graph_module": {
            "graph": _checked(module["graph"], "graph"),
            "signature": _checked(module["signature"], "signature"),
            "module_call_graph": [
                {
                    "fqn": "",
                    "signature": {
                        "inputs": [],
                        "outputs": [],
                        "in_spec": _tree(signature["in_spec"]),
                        "out_spec": _tree(signature["out_spec"]),
                        "forward_arg_names": _checked(signature.get("forward_arg_names"), "forward_arg_names"),
                    },
                }
            ],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
        "opset_version": {_plain(name, "opset"): _natural(number) for name, number in model["opset_version"].items()},
        "range_constraints": {
            _plain(name, "range_constraints"): {
                "min_val": _bound(limits["min_val"]), "max_val": _bound(limits["max_val"]),
            }
            for name, limits in model["range_constraints"].items()
        },
        "schema_version": {key: _natural(model["schema_version"][key]) for key in ("major", "minor")},
        "verifiers": [_plain(name, "verifiers") for name in model.get("verifiers", [])],
        "torch_version": "checked",
        "guards_code": [],
    }  # fmt: skip


def _checked(value: Any, where: str) -> Any:
    """The same JSON, every text in it harmless; raises InvalidArgument where one is not."""
    if isinstance(value, dict):
        return {_plain(key, where): _member(key, inner, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_checked(inner, where) for inner in value]
    return _plain(value, where) if isinstance(value, str) and value not in _FLOATS else value


def _member(key: str, value: Any, where: str) -> Any:
    if key == "as_custom_obj":
        raise InvalidArgument("the program uses a custom object, which would have to be unpickled")
    if key == "metadata" and isinstance(value, dict) and all(isinstance(inner, str) for inner in value.values()):
        return {}  # stack traces and the like, of a node; a tensor may bear this name too
    check = _TEXTS.get(key)
    if check is None or (key == "target" and isinstance(value, dict)):  # so may a tensor be named
        return _checked(value, f"{where}.{key}" if len(where) < 60 else where)
    if not isinstance(value, str):
        raise InvalidArgument(f"{where}: {key} is not text")
    check(value)
    return value


def _operator(target: str) -> None:
    packet, _, overload = target.rpartition(".")
    if target in _PLAIN or (packet in _DUNDERS and overload.isidentifier() and not overload.startswith("_")):
        return
    if not _OPERATOR.fullmatch(target) or target.split(".")[3] in _REACHING:
        raise InvalidArgument(f"the program calls {_shown(target)}, which is not among the operators that are run here")


def _no_operator(target: str) -> None:
    raise InvalidArgument("the program passes an operator as a value, which is not run here")


def _text(value: str) -> None:
    if not _TEXT.fullmatch(value):
        raise InvalidArgument(f"the program holds the text {_shown(value)}, which is not taken here")


_TEXTS: Final[dict[str, Callable[[str], None]]] = {
    "target": _operator,
    "as_operator": _no_operator,
    "as_string": _text,
    "expr_str": check_expression,
}


def _tree(text: str) -> str:
    """A tree spec of plain containers, written anew."""
    protocol, spec = json.loads(text)
    return json.dumps([_natural(protocol), _node(spec)])


def _node(spec: Json) -> Json:
    if spec["type"] not in _TREES:
        raise InvalidArgument("the program takes or gives something other than tuples, lists and dicts of tensors")
    context = spec["context"]
    if context is not None:
        keys = json.loads(context)
        if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
            raise InvalidArgument("the program takes or gives a dict whose keys are not text")
        context = json.dumps(keys)
    return {
        "type": spec["type"], "context": context, "children_spec": [_node(child) for child in spec["children_spec"]],
    }  # fmt: skip


def _plain(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidArgument(f"{where}: {_shown(value)} is not a plain name")
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise InvalidArgument("the archive holds a size that is not a natural number")
    return value


def _bound(value: Any) -> int | None:
    if value is not None and type(value) is not int:
        raise InvalidArgument("range_constraints: a bound is not a whole number")
    return value


def _shown(value: Any) -> str:
    return repr(str(value)[:60])
