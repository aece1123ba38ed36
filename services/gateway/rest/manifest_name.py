"""The name in a manifest's text, as far as a gateway needs it: to refuse what is sent to another model's path. Pure.

The registry reads the manifest; here only the top-level `name` of block YAML or of JSON is looked for. What says its
name in any other way is refused, so that nothing is published under another name than the path says.
"""

from __future__ import annotations

import re
from typing import Final

import orjson

from penstock.errors import InvalidManifest

_LINE: Final = re.compile(r"""^(?:name|"name"|'name')[ \t]*:[ \t]*(["']?)([^\s"'#]+)\1[ \t]*(?:#.*)?$""", re.MULTILINE)


def check_name(manifest: str, name: str) -> None:
    """Raises InvalidManifest unless the manifest names the model `name`."""
    found = _names(manifest)
    if not found:
        raise InvalidManifest("name: missing; the manifest must say `name: <model>` on a line of its own", field="name")
    other = found - {name}
    if other:
        message = f"name: the manifest names {min(other)[:64]!r}, the path {name[:64]!r}"
        raise InvalidManifest(message, field="name")


def _names(manifest: str) -> set[str]:
    if not manifest.lstrip().startswith("{"):
        return {match[2] for match in _LINE.finditer(manifest)}
    try:
        document = orjson.loads(manifest)
    except orjson.JSONDecodeError:
        return set()
    name = document.get("name")
    return {name} if isinstance(name, str) else set()
