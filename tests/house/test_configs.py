"""The configurations that are shipped are the ones that work."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from deploy.local.ports import Ports
from deploy.local.suite import Suite
from penstock.kit.config import ServiceConfig, load

from .source import ROOT

SERVICES = ("gateway", "registry", "scheduler", "worker")
FOLDER = ROOT / "deploy" / "config"


def config_class(service: str) -> type[ServiceConfig]:
    """The one config class of a service."""
    module = importlib.import_module(f"services.{service}.config")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ServiceConfig) and value is not ServiceConfig
    )
    return found


def test_there_is_a_file_for_each_service_and_no_other() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == [f"{service}.toml" for service in SERVICES]


@pytest.mark.parametrize("service", SERVICES)
def test_the_shipped_file_loads_strictly(service: str) -> None:
    config = load(config_class(service), service, [f"--config={FOLDER / service}.toml"], {})
    assert config.host == "127.0.0.1", "the shipped files are for one machine"


@pytest.mark.parametrize("service", SERVICES)
def test_every_field_is_explained(service: str) -> None:
    for field in dataclasses.fields(config_class(service)):
        assert field.metadata.get("help"), f"{service}.{field.name} has no help"
        assert field.default is not dataclasses.MISSING, f"{service}.{field.name} has no default"


@pytest.mark.parametrize("service", SERVICES)
def test_every_default_fulfils_its_own_rules(service: str) -> None:
    flags = []
    for field in dataclasses.fields(config_class(service)):
        default = field.default
        text = ",".join(default) if isinstance(default, tuple) else str(default)
        flags.append(f"--{field.name.replace('_', '-')}={text}")
    assert load(config_class(service), service, flags, {}) == config_class(service)()


def test_the_suite_passes_only_flags_that_exist(tmp_path: Path) -> None:
    for row in Suite(tmp_path, Ports.read({})).table():
        module = next((word for word in row.command if word.startswith("services.")), None)
        if module is not None:
            service = module.removeprefix("services.")
            flags = row.command[row.command.index(module) + 1 :]
            assert load(config_class(service), service, flags, {}).id == row.name


def test_documents_name_only_targets_of_make_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    wrong = {
        f"{path.relative_to(ROOT)}: make {target}"
        for path in documents
        for target in re.findall(r"(?:`|^\s{4}|\$ |&& )make ([a-z][a-z-]*)", path.read_text(), re.MULTILINE)
        if target not in targets
    }
    assert documents and not wrong


def test_every_target_of_make_is_phony_and_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony and set(phony[1].split()) == targets
    assert set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE)) == targets


def test_links_between_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in documents
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text())
        if "://" not in target and not (path.parent / target).exists()
    ]
    assert not broken
