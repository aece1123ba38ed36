"""Our own Python: which files are hand-written, and their syntax trees."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOP = ("penstock", "services", "deploy", "examples", "protos", "tests")
PRODUCT = ("penstock", "services")


@cache
def files(*tops: str) -> tuple[Path, ...]:
    """Hand-written modules below these folders of the repository, generated code left out."""
    found = (path for top in tops or TOP for path in (ROOT / top).rglob("*.py"))
    own = (path for path in found if "node_modules" not in path.parts)
    return tuple(sorted(path for path in own if not path.stem.endswith(("_pb2", "_pb2_grpc"))))


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(path.read_text(), filename=str(path))


def shown(path: Path, node: ast.AST | None = None) -> str:
    """`penstock/names.py:12`."""
    where = path.relative_to(ROOT).as_posix()
    return f"{where}:{getattr(node, 'lineno', 0)}" if node is not None else where


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or attribute; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""
