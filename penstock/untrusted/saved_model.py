"""A SavedModel's graph, cut down to what one signature computes, so that loading it runs nothing (pure).

TensorFlow's own loader is not for files that somebody else wrote: a graph may hold operators that read and write any
file, and loading one runs its initialisers and restores its checkpoint by operators that take names of files from it.
So the loader is never called. Here the graph is read from its bytes; what the signature's outputs need is kept, the
rest (initialisers, saving, restoring, training, assets) is left behind; every operator that is kept is on an allow
list (tensorflow_operators.py). Which tensor of the checkpoint belongs to which variable is read from the part that
restores, which is looked at and not run.

A node of the answer has the bytes that it has in the file. So that TensorFlow's parser cannot see another one in them,
a node that says a thing twice is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from penstock.errors import InvalidArgument

from .protobuf import LENGTH, damaged, fields
from .tensorflow_operators import ALLOWED, CALLING, refused

MAX_NODES: Final = 1_000_000
MAX_DEPTH: Final = 16
SERVE: Final = b"serve"
WHAT: Final = "a SavedModel"
_TEXT_MOST: Final = 1024


@dataclass(frozen=True)
class Program:
    """graph: a GraphDef. inputs, outputs: name in the signature → tensor. variables: node → name in the checkpoint."""

    graph: bytes
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    variables: Mapping[str, str]


@dataclass
class _Node:
    raw: bytes
    name: str = ""
    operator: str = ""
    inputs: list[str] = field(default_factory=list)
    calls: set[str] = field(default_factory=set)
    texts: list[str] = field(default_factory=list)


@dataclass
class _Function:
    raw: bytes
    name: str
    arguments: list[str]
    nodes: list[_Node]


def read(data: bytes, signature: str) -> Program:
    """The program of a signature; raises InvalidArgument with public words, among them the operator's name."""
    return _Graph(data, *_meta_graph(data)).program(signature)


class _Graph:
    """A meta graph: its nodes, its functions, its signatures."""

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self._data = data
        self.nodes: dict[str, _Node] = {}
        self.functions: dict[str, _Function] = {}
        self.signatures: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
        self.versions = b""
        self.restore = ""
        for number, at, size in _messages(data, start, end):
            if number == 2:
                self._read_graph(at, at + size)
            elif number == 3:
                self.restore = _text(data, _one(data, at, at + size, 3))
            elif number == 5:
                self._read_signature(at, at + size)

    def program(self, signature: str) -> Program:
        if signature not in self.signatures:
            known = ", ".join(sorted(name for name in self.signatures if not name.startswith("__"))) or "none"
            raise InvalidArgument(f"there is no signature {signature[:60]!r}; there are {known[:200]}")
        inputs, outputs = self.signatures[signature]
        if not outputs:
            raise InvalidArgument(f"the signature {signature[:60]!r} gives nothing")
        nodes = self._needed({_node_of(tensor) for tensor in outputs.values()}, set(map(_node_of, inputs.values())))
        functions = self._called(nodes)
        for node in nodes:
            self._check(node, functions)
        for function in functions.values():
            for node in function.nodes:
                self._check(node, functions, inside=True)
        variables = {node.name: "" for node in nodes if node.operator == "VarHandleOp"}
        if variables:
            known_keys = self._checkpoint()
            for name in variables:
                if name not in known_keys:
                    raise InvalidArgument(f"nothing in the file says what the variable {name[:60]!r} is restored from")
                variables[name] = known_keys[name]
        graph = b"".join(_field(1, node.raw) for node in nodes)
        library = b"".join(_field(1, function.raw) for function in functions.values())
        return Program(graph + _field(2, library) + _field(4, self.versions), inputs, outputs, variables)

    # --- reading --------------------------------------------------------------------------------------------------

    def _read_graph(self, start: int, end: int) -> None:
        data = self._data
        for number, at, size in _messages(data, start, end):
            if number == 1:
                node = _node(data, at, at + size)
                if node.name in self.nodes or len(self.nodes) > MAX_NODES:
                    raise InvalidArgument("the graph names a node twice, or has too many")
                self.nodes[node.name] = node
            elif number == 2:
                for inner, place, length in _messages(data, at, at + size):
                    if inner == 1:
                        self._read_function(place, place + length)
            elif number == 4:
                self.versions = data[at : at + size]

    def _read_function(self, start: int, end: int) -> None:
        data = self._data
        name, arguments = "", []
        place, length = _one(data, start, end, 1)
        for number, at, size in _messages(data, place, place + length):
            if number == 1:
                name = _text(data, (at, size))
            elif number == 2:
                arguments.append(_text(data, _one(data, at, at + size, 1)))
        nodes = [_node(data, at, at + size) for number, at, size in _messages(data, start, end) if number == 3]
        # An operator's name begins so and has nothing but letters and digits; a function's has a number after a line.
        if name in self.functions or (name[:1].isupper() and name.isalnum()):
            raise InvalidArgument(f"the graph names a function {name[:60]!r}, which is taken")
        self.functions[name] = _Function(data[start:end], name, arguments, nodes)

    def _read_signature(self, start: int, end: int) -> None:
        """An entry of a map: name → SignatureDef, which maps names to TensorInfo."""
        data = self._data
        name = _text(data, _one(data, start, end, 1))
        place, length = _one(data, start, end, 2)
        found: tuple[dict[str, str], dict[str, str]] = ({}, {})
        for number, at, size in _messages(data, place, place + length):
            if number in (1, 2):
                key = _text(data, _one(data, at, at + size, 1))
                inside, inner = _one(data, at, at + size, 2)
                found[number - 1][key] = _text(data, _one(data, inside, inside + inner, 1))
        self.signatures[name] = found

    # --- what is needed -------------------------------------------------------------------------------------------

    def _needed(self, wanted: set[str], given: set[str]) -> list[_Node]:
        """The nodes that these depend on, in the file's order; what is given depends on nothing."""
        seen: set[str] = set()
        pending = sorted(wanted)
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            if name not in self.nodes:
                raise InvalidArgument(f"the graph names a node {name[:60]!r} that it does not hold")
            seen.add(name)
            if name not in given:
                pending.extend(_node_of(each) for each in self.nodes[name].inputs)
        return [node for name, node in self.nodes.items() if name in seen]

    def _called(self, nodes: list[_Node]) -> dict[str, _Function]:
        """The functions that these nodes call, and those that they call."""
        found: dict[str, _Function] = {}
        pending = list(nodes)
        while pending:
            node = pending.pop()
            for name in {*node.calls, node.operator} & self.functions.keys():
                if name not in found:
                    found[name] = self.functions[name]
                    pending.extend(found[name].nodes)
        return found

    @staticmethod
    def _check(node: _Node, functions: Mapping[str, _Function], inside: bool = False) -> None:
        if node.operator in functions:
            return
        if node.operator not in ALLOWED or (inside and node.operator == "VarHandleOp"):
            raise InvalidArgument(f"the operator {node.operator[:60]!r} {refused(node.operator)}")
        if node.calls and (node.operator not in CALLING or node.calls - functions.keys()):
            raise InvalidArgument(f"the operator {node.operator[:60]!r} calls a function that the file does not hold")

    def _checkpoint(self) -> dict[str, str]:
        """Variable → its name in the checkpoint, as the graph would restore it: in a function, or in TensorFlow 1's
        way among the nodes themselves."""
        found = _assigned(list(self.nodes.values()))
        node = self.nodes.get(_node_of(self.restore))
        for name in node.calls & self.functions.keys() if node else ():
            function = self.functions[name]
            places = dict(zip(function.arguments, node.inputs if node else (), strict=False))
            for argument, key in _assigned(function.nodes).items():
                if argument in places:
                    found[_node_of(places[argument])] = key
        return found


def _assigned(nodes: list[_Node]) -> dict[str, str]:
    """Target of every assignment → name of the tensor of a checkpoint that is assigned to it."""
    named = {node.name: node for node in nodes}
    found = {}
    for node in nodes:
        if node.operator != "AssignVariableOp" or len(node.inputs) < 2:
            continue
        value, steps = node.inputs[1], 0
        while (source := named.get(_node_of(value))) and source.operator == "Identity" and source.inputs and steps < 8:
            value, steps = source.inputs[0], steps + 1
        if source is None or source.operator != "RestoreV2" or len(source.inputs) < 2:
            continue
        keys = named.get(_node_of(source.inputs[1]))
        last = value.rpartition(":")[2]
        index = int(last) if ":" in value and last.isdecimal() and len(last) < 8 else 0
        if keys is not None and index < len(keys.texts):
            found[_node_of(node.inputs[0])] = keys.texts[index]
    return found


# --- messages ---------------------------------------------------------------------------------------------------------


def _meta_graph(data: bytes) -> tuple[int, int]:
    """Where the graph for serving lies: the one with that tag, or the only one."""
    graphs = [(at, at + size) for number, at, size in _messages(data, 0, len(data)) if number == 2]
    for start, end in graphs:
        for number, at, size in _messages(data, start, end):
            if number == 1 and SERVE in _all(data, at, at + size, 4):
                return start, end
    if len(graphs) != 1:
        raise InvalidArgument("the SavedModel has no graph with the tag `serve`")
    return graphs[0]


def _node(data: bytes, start: int, end: int) -> _Node:
    node = _Node(data[start:end])
    seen = set()
    for number, at, size in _messages(data, start, end):
        if number in (1, 2):
            if number in seen:
                raise InvalidArgument("a node of the graph has two names or operators")
            seen.add(number)
        if number == 1:
            node.name = _text(data, (at, size))
        elif number == 2:
            node.operator = _text(data, (at, size))
        elif number == 3:
            node.inputs.append(_text(data, (at, size)))
        elif number == 5:
            for inner, place, length in _messages(data, at, at + size):
                if inner == 2:
                    _look_into(data, place, place + length, node, 0)
    return node


def _look_into(data: bytes, start: int, end: int, node: _Node, depth: int) -> None:
    """Notes the functions that an AttrValue names, and the texts of a tensor."""
    if depth > MAX_DEPTH:
        raise InvalidArgument(f"the graph nests attributes deeper than {MAX_DEPTH}")
    for number, at, size in _messages(data, start, end):
        if number == 1:  # a list, whose functions are field 9
            for inner, place, length in _messages(data, at, at + size):
                if inner == 9:
                    _name_function(data, place, place + length, node, depth)
        elif number == 8 and node.operator in ("", "Const"):
            node.texts.extend(text.decode("utf-8", "replace") for text in _all(data, at, at + size, 8))
        elif number == 10:
            _name_function(data, at, at + size, node, depth)


def _name_function(data: bytes, start: int, end: int, node: _Node, depth: int) -> None:
    """NameAttrList: a function's name and attributes, which may name functions."""
    for number, at, size in _messages(data, start, end):
        if number == 1:
            node.calls.add(_text(data, (at, size)))
        elif number == 2:
            for inner, place, length in _messages(data, at, at + size):
                if inner == 2:
                    _look_into(data, place, place + length, node, depth + 1)


def _messages(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, offset and size of every field that has a length."""
    for number, wire, value, size in fields(data, start, end, WHAT):
        if wire == LENGTH:
            yield number, value, size


def _all(data: bytes, start: int, end: int, number: int) -> list[bytes]:
    return [data[at : at + size] for found, at, size in _messages(data, start, end) if found == number]


def _one(data: bytes, start: int, end: int, number: int) -> tuple[int, int]:
    """Offset and size of a field that is there once at most; an empty one where it is not."""
    found = [(at, size) for each, at, size in _messages(data, start, end) if each == number]
    if len(found) > 1:
        raise damaged(WHAT)
    return found[0] if found else (start, 0)


def _text(data: bytes, place: tuple[int, int]) -> str:
    at, size = place
    if size > _TEXT_MOST:
        raise InvalidArgument("the graph holds a name that is longer than any name is")
    try:
        return data[at : at + size].decode("utf-8")
    except UnicodeDecodeError:
        raise damaged(WHAT) from None


def _node_of(tensor: str) -> str:
    """`^name` and `name:0` as `name`."""
    return tensor.removeprefix("^").partition(":")[0]


def _field(number: int, content: bytes) -> bytes:
    size, length = len(content), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((number << 3 | LENGTH,)) + bytes(length) + bytes((size,)) + content
