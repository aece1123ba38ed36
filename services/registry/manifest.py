"""Is this model well described? From the text of a model.yaml to a checked penstock.v1.Manifest (pure).

Every problem is told with its field and with what would be right: `inputs[0].datatype: 'FLOAT' is not known; use one
of BOOL, ...`. `python -m services.registry.manifest` prints the JSON schema that docs/model.schema.json holds.
"""

from __future__ import annotations

import json
import re
import sys
import typing
from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from penstock.errors import InvalidManifest
from penstock.sources import CONVERTING
from penstock.v1 import manifest_pb2 as pb

from . import document
from .crosschecks import Problem, check, nearest
from .document import path_text, shown
from .fields import Model, SourceModel

MAX_PROBLEMS: Final = 10
# A message of more than penstock.channel.MAX_TEXT_BYTES would be cut on the wire; whole lines are left out instead.
_MAX_LINE, _MAX_MESSAGE = 400, 1000

ENGINES: Final = {"onnx": "onnx", "torch-export": "torch", "tensorrt": "tensorrt", "python": "python"}
"""The engine that runs a format; those of penstock/sources.py have none."""


def parse(text: str) -> pb.Manifest:
    """The manifest with its defaults filled in; raises InvalidManifest with the first problems, ten at most.

    resources.memory_bytes stays 0 when it is not said: the estimate needs the sizes of the files (catalog.py).
    """
    data = document.read(text)
    try:
        described = SourceModel if data.get("format") in list(CONVERTING) else Model
        model = described.model_validate(data)
    except ValidationError as error:
        raise _invalid([problem(detail) for detail in error.errors(include_url=False)]) from None
    problems = list(check(model))
    if problems:
        raise _invalid(problems)
    return _message(model)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a model.yaml (draft 2020-12): everything but the checks between fields."""
    schema = SourceModel.model_json_schema(by_alias=True)
    tensors = ("inputs", "outputs")
    served = {"required": list(tensors), "properties": {name: {"minItems": 1} for name in tensors}}
    source = {"properties": {"format": {"enum": sorted(CONVERTING)}}, "required": ["format"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Penstock model.yaml",
        **{key: value for key, value in schema.items() if key != "title"},
        "description": "A model.yaml.",
        "if": source,
        "else": served,
    }


def _message(model: Model) -> pb.Manifest:
    manifest = pb.Manifest(**model.model_dump(by_alias=True, exclude_none=True))
    largest = model.batching.max_batch_size
    if largest and not model.warmup.batch_sizes:
        manifest.warmup.batch_sizes.extend(sorted({1, largest}))
    devices = model.resources.devices
    if devices is not None and not devices.memory_bytes and not devices.percent:
        manifest.resources.devices.exclusive = True
    return manifest


def _invalid(problems: Sequence[Problem]) -> InvalidManifest:
    lines: list[str] = []
    for field, text in problems[:MAX_PROBLEMS]:
        line = f"{field}: {text}"[:_MAX_LINE]
        if lines and len(line) + sum(map(len, lines)) > _MAX_MESSAGE - 80:
            break
        lines.append(line)
    if len(problems) > len(lines):
        lines.append(f"and {len(problems) - len(lines)} more")
    head = "" if len(problems) == 1 else f"the manifest has {len(problems)} problems:\n"
    return InvalidManifest(head + "\n".join(lines), field=problems[0][0])


# --- pydantic's errors in our words -----------------------------------------------------------------------------------

_KINDS: Final = {
    "string_type": "text",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_BOUNDS: Final = {"greater_than_equal": ("ge", "at least"), "less_than_equal": ("le", "at most")}
_LENGTHS: Final = {
    "string_too_short": ("min_length", "at least", "character(s)"),
    "string_too_long": ("max_length", "at most", "characters"),
    "too_short": ("min_length", "at least", "entry"),
    "too_long": ("max_length", "at most", "entries"),
}
# What a required field looks like.
_EXAMPLES: Final = {
    "schema": "penstock/v1",
    "name": "digits",
    "format": "onnx",
    "files": "{model: model.onnx}",
    "inputs": "[{name: x, datatype: FP32, shape: [16]}]",
    "outputs": "[{name: y, datatype: FP32, shape: [16]}]",
    "datatype": "FP32",
    "shape": "[16]",
    "input": "x",
    "output": "y",
    "width": "224",
    "height": "224",
    "tokenizer": "tokenizer",
    "input_ids": "input_ids",
    "output_labels": "label",
}
# Where a step of either kind stands on the wrong side of the engine.
_OTHER_SIDE: Final = {"image": "preprocess", "text": "preprocess", "top_k": "postprocess", "pool": "postprocess"}


def problem(detail: ErrorDetails) -> Problem:
    """Where pydantic found something wrong, and what, in our words."""
    # pydantic adds a step of its own where the key of a mapping is wrong rather than its value.
    location = tuple(step for step in detail["loc"] if step != "[key]")
    return path_text(location), _text(detail, location)


def _text(detail: ErrorDetails, location: Sequence[str | int]) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "penstock":
        return str(context["text"])
    if kind == "missing":
        name = str(location[-1])
        return f"is missing; add `{name}: {_EXAMPLES.get(name, '...')}`"
    if kind == "extra_forbidden":
        return _unknown(location)
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(context["expected"]))
        hint = nearest(value, allowed) or nearest(value.upper(), allowed) if isinstance(value, str) else ""
        return f"{_told(value)} is not known; use {_one_of(allowed)}{hint}"
    if kind in _KINDS:
        return _mistyped(_KINDS[kind], value)
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"is {_told(value)}; it must be {words} {context[key]}"
    if kind in _LENGTHS:
        key, words, unit = _LENGTHS[kind]
        length = len(value) if hasattr(value, "__len__") else 0
        return f"has {length} {unit}; it must have {words} {context[key]}"
    if kind == "string_unicode":
        return "holds half of a surrogate pair, which is not text"
    if kind == "finite_number":
        return "must be a finite number"
    return detail["msg"][:1].lower() + detail["msg"][1:]


def _told(value: object) -> str:
    """A value as the manifest shows it: text in quotes, numbers bare."""
    return (
        shown(value) if isinstance(value, str) else shown(value)[1:-1].replace("True", "true").replace("False", "false")
    )


def _one_of(allowed: Sequence[str]) -> str:
    return f"`{allowed[0]}`" if len(allowed) == 1 else "one of " + ", ".join(allowed)


def _mistyped(wanted: str, value: object) -> str:
    if value is None:
        return f"is empty; give {wanted} or take the line out"
    found = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    hint = "; put it in quotes" if wanted == "text" and isinstance(value, bool | int | float) else ""
    shown_value = f" ({_told(value)})" if isinstance(value, str | bool | int | float) else ""
    return f"must be {wanted}, not {found.get(type(value), 'this')}{shown_value}{hint}"


def _unknown(location: Sequence[str | int]) -> str:
    word = str(location[-1])
    if word in _OTHER_SIDE and location[0] in ("preprocess", "postprocess"):
        return f"is not a processor for {location[0]}; put it under `{_OTHER_SIDE[word]}`"
    known = _known(location[:-1])
    hint = nearest(word, known)
    return f"is not a field of a manifest{hint or '; known here: ' + ', '.join(known)}"


def _known(location: Sequence[str | int]) -> list[str]:
    """Names of the fields that the part at that place has."""
    part: type[BaseModel] = Model
    for step in location:
        if isinstance(step, str) and step in part.model_fields:
            part = _part_in(part.model_fields[step].annotation) or part
    return [info.alias or name for name, info in part.model_fields.items()]


def _part_in(annotation: Any) -> type[BaseModel] | None:
    """The part inside `list[Part]`, `Part | None` or `Part`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((part for inner in typing.get_args(annotation) if (part := _part_in(inner)) is not None), None)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
