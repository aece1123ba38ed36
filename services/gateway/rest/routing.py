"""Which operations a path has: a dictionary for fixed paths, a tree of segments for those with parameters. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from .operations import Operation

Methods: TypeAlias = dict[str, Operation]
"""The operations of one path by method; where there is a GET, HEAD is it too."""


class _Node:
    """A place in the tree. methods: of the path that ends here; any: where a parameter leads."""

    def __init__(self) -> None:
        self.next: dict[str, _Node] = {}
        self.any: _Node | None = None
        self.methods: Methods | None = None
        self.names: tuple[str, ...] = ()


class Router:
    """Finds what is at a decoded path. A parameter is one segment, never empty; a fixed path goes before it."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.paths: dict[str, Methods] = {}
        for operation in operations:
            self.paths.setdefault(operation.path, {})[operation.method] = operation
        for methods in self.paths.values():
            if "GET" in methods:
                methods.setdefault("HEAD", methods["GET"])
        self._fixed = {path: methods for path, methods in self.paths.items() if "{" not in path}
        self._root = _Node()
        for path, methods in self.paths.items():
            if "{" in path:
                self._plant(path, methods)

    def find(self, path: str) -> tuple[Methods, Mapping[str, str]] | None:
        """The path's operations and its parameters; None where there is nothing."""
        fixed = self._fixed.get(path)
        if fixed is not None:
            return fixed, {}
        if not path.startswith("/"):
            return None
        values: list[str] = []
        node = _follow(self._root, path[1:].split("/"), 0, values)
        if node is None or node.methods is None:
            return None
        return node.methods, dict(zip(node.names, values, strict=True))

    def _plant(self, path: str, methods: Methods) -> None:
        node, names = self._root, []
        for segment in path[1:].split("/"):
            if segment.startswith("{"):
                names.append(segment[1:-1])
                node.any = node.any or _Node()
                node = node.any
            else:
                node = node.next.setdefault(segment, _Node())
        node.methods, node.names = methods, tuple(names)


def _follow(node: _Node, segments: Sequence[str], at: int, values: list[str]) -> _Node | None:
    """The end of the path from here on. The tree is as deep as the table's longest path, however long the path."""
    if at == len(segments):
        return node if node.methods is not None else None
    segment = segments[at]
    following = node.next.get(segment)
    if following is not None and (found := _follow(following, segments, at + 1, values)) is not None:
        return found
    if node.any is not None and segment:
        values.append(segment)
        if (found := _follow(node.any, segments, at + 1, values)) is not None:
            return found
        values.pop()
    return None
