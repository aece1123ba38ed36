"""Formats that no engine runs: a version of one is where a build starts from, and the step that makes it servable.

The registry takes them at publish and refuses to deploy them; `penstock publish` says what to do next. Pure.
"""

from __future__ import annotations

from typing import Final

CONVERTING: Final = {
    "huggingface": "convert-huggingface",
    "sklearn": "convert-trees library=sklearn",
    "xgboost": "convert-trees library=xgboost",
    "lightgbm": "convert-trees library=lightgbm",
    "tflite": "convert-tflite",
    "torchscript": "convert-torch",
    "savedmodel": "convert-savedmodel",
    "keras": "convert-keras",
}
"""Format → the step that makes ONNX of it, as `penstock build --step` takes it."""


def command(name: str, version: int, format: str) -> str:
    """What makes a servable version of this one."""
    step = CONVERTING[format]
    return f"penstock build {name}@{version} --step " + (f"'{step}'" if " " in step else step)
