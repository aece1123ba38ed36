"""Which steps there are. A step's module is imported when it is asked for, its libraries when it runs."""

from __future__ import annotations

import importlib
from typing import Any, Final

from penstock.errors import InvalidArgument, Unsupported

from ..step import Step

NAMES: Final = (
    "convert-torch",
    "convert-trees",
    "convert-tflite",
    "convert-savedmodel",
    "convert-keras",
    "convert-huggingface",
    "quantise",
    "halve",
    "prune",
    "distil",
    "share",
    "compile",
    "compile-torch",
    "gate",
)


def find(name: str) -> Step[Any]:
    """The step of this name; raises InvalidArgument where there is none, Unsupported where numpy is missing."""
    if name not in NAMES:
        raise InvalidArgument(f"there is no step {name[:40]!r}; there are {', '.join(NAMES)}", field="step")
    try:
        module = importlib.import_module(f"{__package__}.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("services"):
            raise
        raise Unsupported(f"{error.name} is not installed on this builder (install penstock[build])") from None
    step: Step[Any] = module.STEP
    return step
