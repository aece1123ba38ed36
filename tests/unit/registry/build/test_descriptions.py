"""Every step describes itself so that a runner can check, order and cache it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from penstock.errors import InvalidArgument, Unsupported
from services.registry.build.numerics import TOLERANCES
from services.registry.build.step import StepContext, installed
from services.registry.build.steps import catalogue

ROOT = Path(__file__).parents[4]
NEEDED = {"convert-trees": {"library": "sklearn"}}


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_a_step_describes_itself(name: str) -> None:
    step = catalogue.find(name)
    assert step.name == name
    assert step.version >= 1
    assert step.text
    parameters = step.read(NEEDED.get(name, {}))
    assert step.canonical(parameters) == step.canonical(step.read(NEEDED.get(name, {})))
    assert dataclasses.is_dataclass(parameters)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(parameters, "anything", 1)  # noqa: B010 (no type knows it)
    with pytest.raises(InvalidArgument, match=f"{name}.never_heard_of"):
        step.read({"never_heard_of": 1})
    with pytest.raises(InvalidArgument, match="never-heard-of"):
        step.check_inputs({*(role.name for role in step.inputs), "never-heard-of"})
    for role in step.inputs:
        if role.required:
            with pytest.raises(InvalidArgument, match=f"needs the file {role.name}"):
                step.check_inputs({other.name for other in step.inputs} - {role.name})
    try:
        assert all(step.tools(parameters).values())
    except Unsupported as error:
        assert "penstock[" in error.message


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_the_page_lists_every_step_and_parameter(name: str) -> None:
    page = (ROOT / "docs" / "build-steps.md").read_text(encoding="utf-8")
    step = catalogue.find(name)
    section = page.partition(f"\n### `{name}`")[2].partition("\n### ")[0]
    assert section, f"docs/build-steps.md has no section for {name}"
    for field in dataclasses.fields(step.parameters):
        assert f"`{field.name}`" in section, field.name
    for role in (*step.inputs, *step.outputs):
        assert f"`{role.name}`" in section, role.name


def test_the_page_has_the_tolerances_of_the_code() -> None:
    page = (ROOT / "docs" / "build-steps.md").read_text(encoding="utf-8")
    for name, limit in TOLERANCES.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        if name != "lossy":
            numbers = [float(number) for number in re.findall(r"\d[\d.e-]*", row.partition("` |")[2])]
            assert numbers == [limit.close, limit.absolute, limit.relative, limit.cosine], name


def test_there_is_no_other_step() -> None:
    with pytest.raises(InvalidArgument, match="there are convert-torch"):
        catalogue.find("os")


def test_a_missing_library_is_named_with_its_extra() -> None:
    with pytest.raises(Unsupported, match=r"no-such-library.*penstock\[build\]"):
        installed("build", "no-such-library")


def test_files_of_a_role_that_may_be_several_come_in_order(tmp_path: Path) -> None:
    inputs = {name: tmp_path / name for name in ("weights", "weights-2", "weights-3", "config")}
    work: StepContext[None] = StepContext(None, inputs, tmp_path, print, print)
    assert [path.name for path in work.several("weights")] == ["weights", "weights-2", "weights-3"]
    step = catalogue.find("convert-huggingface")
    step.check_inputs(inputs)
    with pytest.raises(InvalidArgument, match="weights-4"):
        step.check_inputs({"config", "weights", "weights-2", "weights-4"})
