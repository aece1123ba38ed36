"""Compiled modules are found if they were built from the sources that are there, and never otherwise."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.kit import compiled

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


def extension() -> Path:
    """One of Python's own that nobody has linked into it, as some distributions do with most."""
    for name in ("_bisect", "_queue", "_json", "_testbuffer", "xxlimited"):
        spec = importlib.util.find_spec(name)
        if spec is not None and str(spec.origin).endswith(SUFFIX):
            return Path(str(spec.origin))
    pytest.skip("this Python has no extension of its own", allow_module_level=True)


SHARED = extension()
NAME = f"penstock_test_compiled.{SHARED.name.removesuffix(SUFFIX)}"


@pytest.fixture(autouse=True)
def _finders() -> Iterator[None]:
    before = sys.meta_path[:]
    yield
    sys.meta_path[:] = before


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one module."""
    for part in compiled.SOURCES:
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "penstock" / "core.py").write_text("x = 1\n")
    return tmp_path


def built(root: Path) -> Path:
    """As if it had been compiled; an extension of Python's own stands for what was made of it."""
    folder = root / "build"
    into = folder / compiled.fingerprint(root)
    into.mkdir(parents=True)
    (into / compiled.LIST).write_text(json.dumps({NAME: SHARED.name}))
    shutil.copy(SHARED, into)
    return folder


def importable() -> bool:
    sys.modules.pop(NAME, None)
    sys.modules["penstock_test_compiled"] = type(sys)("penstock_test_compiled")
    sys.modules["penstock_test_compiled"].__path__ = []
    try:
        return str(importlib.import_module(NAME).__file__).endswith(SUFFIX)
    except ModuleNotFoundError:
        return False
    finally:
        sys.modules.pop(NAME, None)
        del sys.modules["penstock_test_compiled"]


def test_what_was_built_from_these_sources_is_found(root: Path) -> None:
    assert not importable()
    assert compiled.activate(built(root), root=root) == compiled.Found(True)
    assert importable()


def test_nothing_is_found_where_nothing_was_built(root: Path) -> None:
    assert compiled.activate(root / "build", root=root).reason == "nothing was compiled"
    assert not importable()


@pytest.mark.parametrize("part", compiled.SOURCES)
def test_a_source_that_is_edited_added_or_removed_makes_it_stale(root: Path, part: str) -> None:
    folder, core = built(root), root / "penstock" / "core.py"
    new = root / part / "new.py"
    new.write_text("")
    assert compiled.activate(folder, root=root).reason == "the sources are not those that were compiled"
    new.unlink()
    assert compiled.activate(folder, root=root).compiled
    core.write_text("x = 2\n")
    assert not compiled.activate(folder, root=root).compiled
    core.unlink()
    assert not compiled.activate(folder, root=root).compiled


def test_a_build_that_was_not_finished_is_not_found(root: Path) -> None:
    folder = built(root)
    (folder / compiled.fingerprint(root) / compiled.LIST).unlink()
    assert not compiled.activate(folder, root=root).compiled
    assert not importable()


def test_another_python_finds_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = built(root)
    monkeypatch.setattr(sys, "version", "3.11.99 (another)")
    assert not compiled.activate(folder, root=root).compiled


def test_what_was_imported_before_stays_as_it_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = built(root)
    monkeypatch.setitem(sys.modules, NAME, type(sys)(NAME))
    assert compiled.activate(folder, root=root).reason == f"{NAME} was imported too early"
    assert not isinstance(sys.meta_path[0], compiled._Finder)


def test_the_environment_turns_it_off_or_says_where(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.VARIABLE, "off")
    assert not compiled.look().compiled
    assert compiled.activate(root=root).reason == "PENSTOCK_COMPILED is off"
    monkeypatch.setenv(compiled.VARIABLE, str(built(root)))
    assert compiled.activate(root=root).compiled
