"""init: a first model.yaml, read from an ONNX file."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from penstock import names
from penstock.cli.show import Screen
from penstock.errors import AlreadyExists, InvalidArgument


def init(args: argparse.Namespace, screen: Screen) -> int:
    """Reads the file's inputs and outputs (never its weights) and writes a commented manifest."""
    try:
        from penstock.cli import onnx_manifest
    except ImportError:
        raise InvalidArgument("reading ONNX files needs an extra: pip install 'penstock[init]'") from None
    model = Path(args.file)
    if not model.is_file():
        raise InvalidArgument(f"{model}: no such file")
    output = Path(args.output) if args.output else model.parent / "model.yaml"
    if output.exists() and not args.force:
        raise AlreadyExists(f"{output} exists; --force overwrites it, -o names another")
    folder = output.resolve().parent
    if not model.resolve().is_relative_to(folder):
        raise InvalidArgument(f"{model} is not below {folder}: files lie beside their manifest or below it")
    name = args.name or model_name(model.stem)
    draft = onnx_manifest.describe(model)
    text = onnx_manifest.render(draft, name, model.resolve().relative_to(folder).as_posix())
    output.write_text(text, "utf-8")
    if screen.as_json:
        screen.data(
            {
                "manifest": str(output),
                "name": name,
                "max_batch_size": draft.max_batch_size,
                "inputs": [tensor.name for tensor in draft.inputs],
                "outputs": [tensor.name for tensor in draft.outputs],
                "notes": list(draft.notes),
            }
        )
        return 0
    columns = ("", "NAME", "DATATYPE", "SHAPE")
    rows = [
        (kind, tensor.name, tensor.datatype, str(list(tensor.shape)))
        for kind, tensors in (("input", draft.inputs), ("output", draft.outputs))
        for tensor in tensors
    ]
    screen.table(columns, rows)
    for note in draft.notes:
        screen.note(f"note: {note}")
    screen.line(f"wrote {output}; next: fill in what it cannot know, then penstock publish {output}")
    return 0


def model_name(stem: str) -> str:
    """A model name made from a file's name; raises InvalidArgument when nothing of it can stay."""
    name = re.sub(r"\.{2,}", ".", re.sub(r"[^a-z0-9._-]+", "-", stem.lower())).strip("._-")[:64].rstrip("._-")
    try:
        return names.model(name)
    except InvalidArgument:
        raise InvalidArgument(f"no model name can be made from {stem!r}: give --name") from None
