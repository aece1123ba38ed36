"""From the text of a model.yaml to plain data, for text that anybody may send (pure).

YAML or JSON, at most 1 MiB. Refused, each with the place: duplicate keys, anchors and aliases (an alias can multiply a
small text into gigabytes), tags, several documents, keys that are not text, nesting deeper than 16, more than 20 000
values. Nothing but text, numbers, true, false, null, lists and mappings comes out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

import yaml

from penstock.errors import InvalidManifest

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 16
MAX_VALUES: Final = 20_000

Path = tuple[str | int, ...]


def shown(value: object, limit: int = 40) -> str:
    """A value as it may stand in an error text: quoted, cut, plain ASCII."""
    text = value if isinstance(value, str) else repr(value)
    return ascii(text[:limit] + ("..." if len(text) > limit else ""))


def path_text(path: Sequence[str | int]) -> str:
    """`("inputs", 0, "datatype")` as `inputs[0].datatype`; keys that a stranger chose are made harmless."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + shown(step, 64)[1:-1]
    return text


def read(text: str) -> dict[str, Any]:
    """The mapping that the text holds; raises InvalidManifest."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidManifest("the manifest is not valid Unicode text") from None
    if size > MAX_BYTES:
        raise InvalidManifest(f"the manifest has {size} bytes; at most {MAX_BYTES} are read")
    data = _read_json(text) if text.lstrip()[:1] == "{" else _read_yaml(text)
    if not isinstance(data, dict):
        raise InvalidManifest("the manifest must be a mapping that begins with `schema: penstock/v1`")
    return data


# --- JSON -------------------------------------------------------------------------------------------------------------


def _read_json(text: str) -> Any:
    try:
        data = json.loads(text, object_pairs_hook=_Pairs, parse_constant=_no_constant)
    except json.JSONDecodeError:
        return _read_yaml(text)  # YAML's flow style begins with a brace too.
    except (RecursionError, ValueError):
        raise InvalidManifest(f"the manifest is nested deeper than {MAX_DEPTH} or holds a number too long") from None
    return _plain_json(data, (), _Budget())


class _Pairs(list[tuple[str, Any]]):
    """A JSON object before its keys are known to be unique."""


def _no_constant(name: str) -> Any:
    raise InvalidManifest(f"the manifest holds {name}, which is not a number that JSON knows")


def _plain_json(value: Any, path: Path, budget: _Budget) -> Any:
    budget.spend(path)
    if isinstance(value, _Pairs):
        mapping: dict[str, Any] = {}
        for key, item in value:
            if key in mapping:
                raise _duplicate((*path, key))
            mapping[key] = _plain_json(item, (*path, key), budget)
        return mapping
    if isinstance(value, list):
        return [_plain_json(item, (*path, index), budget) for index, item in enumerate(value)]
    return value


# --- YAML -------------------------------------------------------------------------------------------------------------


def _read_yaml(text: str) -> Any:
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _plain_yaml(loader, node, (), _Budget())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = ascii(error.problem or error.context or "it cannot be read")[1:-1]
        raise InvalidManifest(f"the manifest is neither YAML nor JSON: {place}{problem[:200]}") from None
    except yaml.YAMLError:
        raise InvalidManifest("the manifest holds characters that YAML does not allow") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that stops at aliases, anchors and depth while it composes, before anything grows."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            line = event.start_mark.line + 1
            raise InvalidManifest(f"line {line}: anchors (&) and aliases (*) are not read; write the value out")
        if self.depth >= MAX_DEPTH:
            raise InvalidManifest(f"line {event.start_mark.line + 1}: nested deeper than {MAX_DEPTH}")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_TAG: Final = "tag:yaml.org,2002:"
# YAML 1.1 takes 1e-3 for text; people mean the number.
_Loader.add_implicit_resolver(
    _TAG + "float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)
_SCALARS: Final = {_TAG + kind for kind in ("str", "int", "float", "bool", "null")}


def _plain_yaml(loader: _Loader, node: yaml.Node, path: Path, budget: _Budget) -> Any:
    budget.spend(path)
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _key(key_node, path)
            if key in mapping:
                raise _duplicate((*path, key), key_node.start_mark.line + 1)
            mapping[key] = _plain_yaml(loader, value_node, (*path, key), budget)
        return mapping
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return [_plain_yaml(loader, item, (*path, index), budget) for index, item in enumerate(node.value)]
    field = path_text(path)
    if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
        try:
            return loader.construct_object(node)
        except ValueError:  # such as an integer of ten thousand digits
            raise InvalidManifest(
                f"{field}: {shown(node.value)} is not a number that can be read", field=field
            ) from None
    if node.tag == _TAG + "timestamp":
        raise InvalidManifest(f"{field}: YAML reads {shown(node.value)} as a date; put it in quotes", field=field)
    kind = shown(node.tag.removeprefix(_TAG))
    raise InvalidManifest(f"{field or 'the manifest'}: YAML tag {kind} is not read; use plain values", field=field)


def _key(node: yaml.Node, path: Path) -> str:
    if isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "str":
        return str(node.value)
    field, line = path_text(path), node.start_mark.line + 1
    what = shown(node.value) if isinstance(node, yaml.ScalarNode) else "a list or mapping"
    raise InvalidManifest(
        f"{field or 'the manifest'}: line {line}: key {what} is not text; put it in quotes", field=field
    )


class _Budget:
    """Counts values, so that work stays bounded whatever the text holds."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def spend(self, path: Path) -> None:
        self._left -= 1
        if self._left < 0:
            raise InvalidManifest(f"the manifest holds more than {MAX_VALUES} values")
        if len(path) > MAX_DEPTH:
            field = path_text(path[:3])
            raise InvalidManifest(f"{field}: nested deeper than {MAX_DEPTH}", field=field)


def _duplicate(path: Path, line: int = 0) -> InvalidManifest:
    field = path_text(path)
    where = f" again on line {line}" if line else " twice"
    return InvalidManifest(f"{field}: stands there{where}; keep one", field=field)
