"""The compiled plans among a version's files, each verified before anything of it is used (penstock/plans.py).

Plans lie in roles that begin with `plan`, so that a version can hold one for every target; `model` is what they were,
or will be, compiled from, or, where a version has no source beside it, a plan itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock.errors import InvalidArgument, InvalidManifest
from penstock.plans import PlanHeader, is_plan, unwrap
from penstock.untrusted.onnx_scan import refuse_external

from .engine import open_model


def plans(files: Mapping[str, Path], trusted_keys: Sequence[bytes]) -> list[tuple[PlanHeader, memoryview]]:
    """Headers and plans in the order of their roles, `model` first.

    Raises InvalidManifest for a file that should be a plan and is none that a trusted builder signed.
    """
    roles = sorted(role for role in files if role.startswith("plan"))
    found = []
    for role in ["model", *roles] if "model" in files else roles:
        with open_model(files[role]) as file:
            head = file.read(8)
            if role == "model" and not is_plan(head):
                continue  # the source, of which plans are made
            file.seek(0)
            data = file.read()
        try:
            found.append(unwrap(data, trusted_keys))
        except InvalidArgument as error:
            raise InvalidManifest(f"files.{role}: {error.message}", field=f"files.{role}") from None
    return found


def check_source(files: Mapping[str, Path]) -> None:
    """Raises InvalidManifest where `model` is neither a plan nor an ONNX file that one could be compiled from."""
    with open_model(files["model"]) as file:
        data = file.read()
    if is_plan(data[:8]):
        return
    try:
        refuse_external(data)
    except InvalidArgument as error:
        raise InvalidManifest(f"files.model: {error.message}", field="files.model") from None
