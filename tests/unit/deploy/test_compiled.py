"""What may be compiled, and what runs then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local import compiled
from penstock.kit.compiled import ROOT, VARIABLE

SUITES = (
    "tests/unit/wire",
    "tests/unit/gateway/test_admission.py",
    "tests/unit/gateway/test_inference.py",
    "tests/unit/gateway/test_inference_admission.py",
    "tests/unit/worker/test_batcher.py",
)
"""What runs against compiled code too: above all the promises of the transport."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that everything was compiled into."""
    missing = compiled.lacking()
    if missing:
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("compiled")
    compiled.build(folder, level="0")
    return folder


def run(built: Path, *arguments: str) -> str:
    environment = {**os.environ, VARIABLE: str(built)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


def test_no_listed_class_has_a_base_that_would_crash() -> None:
    assert not list(compiled.unsafe())


def test_such_a_base_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # It derives from threading.local: compiled, its first attribute ends the process.
    monkeypatch.setattr(compiled, "GROUPS", {"group": ("penstock.wire.http2.gathering",)})
    assert list(compiled.unsafe()) == ["penstock.wire.http2.gathering.Kept derives from threading.local"]
    with pytest.raises(compiled.CannotCompile, match=r"threading\.local"):
        compiled.build(Path("nowhere"), level="0")


@pytest.mark.timeout(600)
def test_compiled_code_keeps_the_promises_of_interpreted_code(built: Path) -> None:
    said = run(built, "-m", "pytest", "-q", "-p", "tests.harness.compiled", *SUITES)
    assert " passed" in said


def test_both_hops_answer_from_compiled_code(built: Path) -> None:
    said = run(built, "-m", "tests.bench.in_process", "--rounds", "10")
    assert said.split()[:2] == ["code", "compiled"]


def test_it_is_built_once(built: Path) -> None:
    (folder,) = built.iterdir()
    before = folder.stat().st_mtime_ns
    assert compiled.build(built, level="0") == folder
    assert folder.stat().st_mtime_ns == before
