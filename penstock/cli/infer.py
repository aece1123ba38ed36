"""infer: one call of a model from the command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from penstock.cli.connect import connected
from penstock.cli.show import Screen
from penstock.client import AsyncClient, InferResult, Tensor
from penstock.client.payload import Specs, to_tensor
from penstock.client.result import nested
from penstock.errors import InvalidArgument
from penstock.oip import inference_pb2 as oip

_SHOWN = 72


async def infer(args: argparse.Namespace, screen: Screen) -> int:
    """Builds the inputs, calls, shows the outputs."""
    name, version = args.reference
    async with connected(args) as client:
        parameters: dict[str, Any] = {}
        outputs, request_id = args.only, args.id
        if args.request is not None:
            document = _read_request(args.request)
            inputs = request_inputs(document)
            parameters = dict(document.get("parameters") or {})
            outputs = outputs or [entry["name"] for entry in document.get("outputs") or ()] or None
            request_id = request_id or document.get("id")
        else:
            inputs = await _typed_inputs(client, name, version, args.input)
        begun = time.perf_counter()
        result = await client.infer(
            name,
            inputs,
            version=version,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
            priority=args.priority,
        )
        milliseconds = (time.perf_counter() - begun) * 1000
    if screen.as_json:
        screen.data(response(result))
        return 0
    rows = [
        (
            output,
            result.datatype(output),
            "×".join(map(str, result.shape(output))) or "1",
            preview(values(result, output)),
        )
        for output in result
    ]
    screen.table(("OUTPUT", "DATATYPE", "SHAPE", "VALUE"), rows, empty="no outputs")
    served = f" by {result.trailers.worker}, batch of {result.trailers.batch_size}" if result.trailers.worker else ""
    screen.note(f"{result.model}@{result.version}{served}, {milliseconds:.1f} ms")
    return 0


def input_tensor(name: str, text: str, specs: Specs) -> Tensor:
    """What NAME=VALUE means for the model's input of that name.

    `@FILE` is the file's content: bytes for a BYTES input, JSON for any other. A BYTES input takes text, or a JSON list
    of texts; any other takes JSON, a bare number standing for a tensor of one element. Raises InvalidArgument.
    """
    if name not in specs:
        raise InvalidArgument(f"no input is called {name!r}; the model has: {', '.join(specs) or 'none'}", field=name)
    spec = specs[name]
    content = _file(text[1:]) if text.startswith("@") else text.encode()
    if spec.datatype == "BYTES":
        items: list[str] | list[bytes] = _texts(text) or [content]
        rest = [1] * (len(spec.shape) - 1)
        return Tensor.of("BYTES", items, [len(items), *rest] if spec.shape else [])
    try:
        value = json.loads(content)
    except ValueError:
        raise InvalidArgument(
            f"{name} is {spec.datatype} {list(spec.shape)}: give JSON, such as {name}=[1,2,3] or {name}=@values.json",
            field=name,
        ) from None
    if not isinstance(value, list):
        for _ in spec.shape:
            value = [value]
        return Tensor.of(spec.datatype, value, [1] * len(spec.shape))
    return to_tensor(name, value, specs)


def request_inputs(document: Any) -> dict[str, Tensor]:
    """The inputs of a request in the protocol's JSON; raises InvalidArgument with the field."""
    entries = document.get("inputs") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InvalidArgument(
            'the request needs inputs: {"inputs": [{"name", "datatype", "shape", "data"}]}', field="inputs"
        )
    inputs = {}
    for index, entry in enumerate(entries):
        field = f"inputs[{index}]"
        missing = [key for key in ("name", "datatype", "shape", "data") if key not in entry]
        if missing:
            raise InvalidArgument(f"{field} lacks {', '.join(missing)}", field=field)
        try:
            inputs[entry["name"]] = Tensor.of(entry["datatype"], entry["data"], entry["shape"])
        except InvalidArgument as error:
            raise InvalidArgument(f"{field}: {error.message}", field=field) from None
    return inputs


def response(result: InferResult) -> dict[str, Any]:
    """The answer in the protocol's JSON, with how it was served beside it. BYTES as text."""
    trailers = result.trailers
    return {
        "model_name": result.model,
        "model_version": result.version,
        "id": result.id,
        "parameters": result.parameters,
        "outputs": [
            {
                "name": output,
                "datatype": result.datatype(output),
                "shape": list(result.shape(output)),
                "data": values(result, output),
            }
            for output in result
        ],
        "served": {"worker": trailers.worker, "batch_size": trailers.batch_size, "queue_us": trailers.queue_us},
    }


def values(result: InferResult, output: str) -> Any:
    """An output as nested lists; bytes as text, with escapes where they are not UTF-8."""
    return _as_text(nested(result.datatype(output), result.shape(output), result.raw(output)))


def preview(value: Any, width: int = _SHOWN) -> str:
    """A value on one line, shortened."""
    text = json.dumps(_rounded(value), ensure_ascii=False)
    return text if len(text) <= width else text[: width - 1] + "…"


async def _typed_inputs(
    client: AsyncClient, name: str, version: int | str | None, pairs: list[tuple[str, str]]
) -> dict[str, Tensor]:
    metadata = await client.model_metadata(name, version)
    specs: dict[str, oip.ModelMetadataResponse.TensorMetadata] = {spec.name: spec for spec in metadata.inputs}
    return {key: input_tensor(key, text, specs) for key, text in pairs}


def _read_request(path: str) -> dict[str, Any]:
    text = sys.stdin.read() if path == "-" else _file(path).decode(errors="replace")
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"the request is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidArgument("the request is not a JSON object")
    return document


def _texts(text: str) -> list[str] | None:
    """The texts of a JSON list; None when it is not one."""
    if not text.startswith("["):
        return None
    try:
        items = json.loads(text)
    except ValueError:
        return None
    return items if all(isinstance(item, str) for item in items) else None


def _file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror or 'cannot be read'}") from None


def _as_text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return [_as_text(item) for item in value] if isinstance(value, list) else value


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return [_rounded(item) for item in value] if isinstance(value, list) else value
