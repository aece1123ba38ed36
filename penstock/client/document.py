"""JSON and YAML of the caller's own, by the name of the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from penstock.errors import InvalidArgument


def parse(text: str, path: Path) -> Any:
    """The plain values of a .json file, or of YAML; raises InvalidArgument with the line."""
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidArgument(f"{path}: line {error.lineno}: {error.msg}") from None
    try:
        import yaml
    except ImportError:
        raise InvalidArgument(
            f"{path}: reading YAML needs PyYAML: pip install 'penstock[cli]', or write the file as JSON, named .json"
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise InvalidArgument(f"{path}: {where}{getattr(error, 'problem', None) or 'not YAML'}") from None
