"""The OpenAPI 3.1 document, made from the route table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from . import shapes
from .events import MEDIA_TYPE
from .fields import FLAG, TEXT, Field, value_schema
from .head import TIMEOUT
from .operations import Operation, Schema
from .replies import JSON, Dialect

_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_DESCRIBED: Final = {
    "model": "Model name.",
    "version": "Version number, or an alias where one is read.",
    "alias": "Alias: a letter, then letters, digits, `-` or `_`.",
    "digest": "`sha256:` and 64 lower-case hex digits.",
    "repository": "Name of a repository.",
    "region": "Name of a shared memory region.",
    "build": "Id of a build, 32 hex digits.",
    "worker": "Id of a worker.",
    "tenant": "A caller's name, or `default`.",
}
_INTRODUCTION: Final = (
    "The Open Inference Protocol v2 with Triton's extensions under /v2, management under /api/v1. "
    'Errors under /v2 are `{"error": "<text>"}`, under /api/v1 an object with code, message and request id.'
)


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The whole document, ready for JSON. version: of the server."""
    messages = shapes.MessageSchemas()
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, messages)
    components = {"InferenceError": shapes.PLAIN_ERROR, "ManagementError": shapes.ERROR, **messages.components}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": version, "description": _INTRODUCTION, "license": _LICENSE},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in operations)],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}],
    }


_LICENSE: Final = {"name": "Apache-2.0", "identifier": "Apache-2.0"}


def _operation(operation: Operation, messages: shapes.MessageSchemas) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "operationId": _identifier(operation),
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": _parameters(operation),
        "responses": _responses(operation, messages),
    }
    if operation.body is not None:
        schema = _schema(operation.body, messages)
        entry["requestBody"] = {"content": {kind: {"schema": _as(kind, schema)} for kind in operation.accepts}}
    if operation.open:
        entry["security"] = []
    return entry


def _identifier(operation: Operation) -> str:
    words = re.findall(r"\w+", operation.path)
    return "_".join([operation.method.lower(), *words, *(["root"] if operation.path.endswith("/") else [])])


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "description": _DESCRIBED[name], "schema": {"type": "string"}}
        for name in _PARAMETER.findall(operation.path)
    ]
    for place, fields in (("query", operation.query), ("header", operation.headers)):
        parameters += [_parameter(field, place) for field in fields]
    if not operation.open and operation.status != 501:
        text = "Milliseconds until the caller gives up; the default is the server's."
        parameters.append(_parameter(Field(TIMEOUT, TEXT, text), "header"))
    return parameters


def _parameter(field: Field, place: str) -> dict[str, Any]:
    schema = {"type": "string", "enum": ["true", "false"]} if field.kind == FLAG else value_schema(field)
    if field.name == "tag":
        schema = {"type": "array", "items": schema}
    return {
        "name": field.name,
        "in": place,
        "required": field.required,
        "description": field.description,
        "schema": schema,
    }


def _responses(operation: Operation, messages: shapes.MessageSchemas) -> dict[str, Any]:
    error = "ManagementError" if operation.dialect is Dialect.MANAGEMENT else "InferenceError"
    failed = {
        "description": "An error; the statuses are in docs/rest.md.",
        "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{error}"}}},
    }
    if operation.status == 501:
        return {"501": failed}
    success: dict[str, Any] = {"description": "Done." if operation.result is None else "The answer."}
    if operation.result is not None:
        schema = _schema(operation.result, messages)
        success["content"] = {kind: {"schema": _as(kind, schema)} for kind in operation.returns}
    return {str(operation.status): success, "default": failed}


def _schema(schema: Schema, messages: shapes.MessageSchemas) -> dict[str, Any]:
    if isinstance(schema, type):
        return messages.of(schema)
    return schema or {}


def _as(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return schema if kind in (JSON, MEDIA_TYPE) else shapes.OCTETS
