"""Models that are Python code: what they may be, what becomes of them when they break, and what is left behind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import DeadlineExceeded, Internal, InvalidManifest
from penstock.v1 import manifest_pb2 as pb
from services.worker.engines import python
from services.worker.engines.engine import NOTHING, Means, OutOfMemory
from services.worker.engines.foreign import bundle
from tests.harness.engines import spec
from tests.harness.processes import children_of

MEANS = Means(python=sys.executable)
X = np.arange(6, dtype=np.float32).reshape(3, 2)


def manifest(datatype: str = "FP32", **files: str) -> pb.Manifest:
    sides: Any = {"inputs": [spec("x", datatype, 2)], "outputs": [spec("y", datatype, 2)]}
    return pb.Manifest(name="m", format="python", batching=pb.Batching(max_batch_size=8), files=files, **sides)


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Folders of models and their processes are gone in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before, processes = len(os.listdir("/proc/self/fd")), children_of(os.getpid())
    yield
    assert list(folder.iterdir()) == []
    # Fewer may be there than before: what tests of earlier left to the collector goes when it likes.
    assert len(os.listdir("/proc/self/fd")) <= before
    assert set(children_of(os.getpid())) <= set(processes)


def load(
    folder: Path, source: str | bytes, means: Means = MEANS, made: pb.Manifest | None = None, **files: Path
) -> Any:
    path = folder / "artifact"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return python.load({"model": path, **files}, made or manifest(), 1, means)


def model(run: str, load: str = "pass") -> str:
    return (
        "import os, time, numpy as np\n"
        "class Model:\n"
        f"    def load(self, files, manifest): {load}\n"
        f"    def run(self, inputs):\n        x = inputs['x']\n        {run}\n"
    )


def archive(files: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as written:
        for name, text in files.items():
            written.writestr(name, text)
    return made.getvalue()


def test_an_archive_brings_modules_and_data_of_its_own(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    np.array([10, 20], "<f4").tofile(weights)
    source = model(
        "return {'y': helper.add(x, self.weights) * scale.VALUE}",
        "self.weights = np.fromfile(files['weights'], '<f4'); assert manifest['name'] == 'm' and 'model' not in files",
    )
    data = archive(
        {
            "model.py": "import helper\nfrom parts import scale\n" + source,
            "helper.py": "def add(a, b): return a + b\n",
            "parts/__init__.py": "",
            "parts/scale.py": "VALUE = 2\n",
        }
    )
    engine = load(tmp_path, data, weights=weights)
    np.testing.assert_array_equal(engine.run({"x": X})["y"], (X + np.array([10, 20])) * 2)
    engine.close()


def test_text_goes_both_ways(tmp_path: Path) -> None:
    source = model("return {'y': np.array([[b[::-1] for b in row] for row in x], dtype=object)}")
    engine = load(tmp_path, source, made=manifest("BYTES"))
    x = np.array([[b"", b"ab"], [b"x" * 70_000 + b"y", b"a\0b"]], dtype=object)
    assert engine.run({"x": x})["y"].tolist() == [[b"", b"ba"], [b"y" + b"x" * 70_000, b"b\0a"]]
    engine.close()


def test_answers_grow_with_their_batches(tmp_path: Path) -> None:
    made = manifest()
    made.outputs[0].shape[0] = -1
    engine = load(tmp_path, model("return {'y': np.full((len(x), int(x[0, 0])), 7, 'f4')}"), made=made)
    kept = []
    for size in (1, 100_000, 3, 300_000):
        y = engine.run({"x": np.full((2, 2), size, np.float32)})["y"]
        assert y.shape == (2, size)
        kept.append(y)
    assert all((y == 7).all() for y in kept)  # an answer is the caller's own
    engine.close()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "AttributeError: module 'model' has no attribute 'Model'"),
        ("class Model:\n  def", "SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        (model("return {}", "raise ValueError('no weights\\nin /secret/place/file')"), "ValueError: no weights in …"),
        (model("return {}", "os._exit(3)"), "the model's process ended while it loaded"),
        (model("return {}", "np.zeros(1 << 40, 'u1').fill(1)"), "memory"),
        (b"\0\1\2", "neither a zip archive nor Python source"),
        (b"PK\3\4 and nothing", "the archive is damaged"),
        (archive({"other.py": ""}), "no model.py at its top"),
    ],
)
def test_code_that_does_not_load_says_why(source: str | bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest) as caught:
        load(tmp_path, source)
    assert caught.value.message.startswith("files.model: ")
    assert says in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    ("run", "error", "says"),
    [
        ("raise ValueError('secret')", Internal, "failed on these inputs"),
        ("return {}", Internal, "failed on these inputs"),
        ("return {'y': x[:, :1]}", Internal, r"gave 'y' the shape \[3, 1\], promised is \[-1, 2\]"),
        ("return {'y': np.zeros(1 << 33, 'u1') + 1}", OutOfMemory, "more memory than a python model may take"),
        ("x[0, 0] = 1 / 0", Internal, "failed on these inputs"),
        ("os._exit(0)", Internal, "process ended on this batch; it is started anew"),
        ("os.kill(os.getpid(), 9)", Internal, "process ended on this batch"),
        (
            "[os.write(n, b'rubbish' * 9) for n in range(3, 99) if os.path.exists(f'/proc/self/fd/{n}')]",
            Internal,
            "ended",
        ),
    ],
)
def test_a_run_that_breaks_is_one_batchs_trouble(run: str, error: type[Exception], says: str, tmp_path: Path) -> None:
    engine = load(tmp_path, model(f"if x[0, 0] == 0: {run}\n        return {{'y': x}}"))
    for _ in range(2):
        with pytest.raises(error, match=says) as caught:
            engine.run({"x": X})
        assert "secret" not in str(caught.value)
        np.testing.assert_array_equal(engine.run({"x": X + 1})["y"], X + 1)
    engine.close()


def test_a_run_that_takes_too_long_is_ended_and_the_next_one_served(tmp_path: Path) -> None:
    source = model("time.sleep(3600) if x[0, 0] == 0 else None\n        return {'y': x}")
    engine = load(tmp_path, source, Means(python=sys.executable, python_seconds=2))
    with pytest.raises(DeadlineExceeded, match=r"took longer than 2 s"):
        engine.run({"x": X})
    # The new process needs longer than that to start, which is not the batch's time.
    np.testing.assert_array_equal(engine.run({"x": X + 1})["y"], X + 1)
    engine.close()


def test_the_code_sees_no_secrets_and_no_packages_but_its_interpreters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    said = (
        "raise ValueError(repr((sorted(os.environ), os.environ['HOME'] in __import__('sys').path, "
        "len(__import__('sys').path) < 7, os.getcwd() == os.environ['HOME'])))"
    )
    with pytest.raises(InvalidManifest) as caught:
        load(tmp_path, model("return {}", said))
    assert "TOKEN" not in caught.value.message and "PYTHONPATH" not in caught.value.message
    assert "True, True, True" in caught.value.message


def test_folders_of_processes_that_were_killed_are_swept(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, living = temporary / f"penstock-python-{dead.pid}-abc", temporary / f"penstock-python-{os.getpid()}-abc"
    for folder in (left, living):
        folder.mkdir()
    engine = load(tmp_path, model("return {'y': x}"))
    assert not left.exists() and living.exists()
    engine.close()
    living.rmdir()


def test_no_worker_runs_code_unless_its_operator_says_so() -> None:
    assert "python_engine" in (python.probe(NOTHING) or "")
    assert "is not there" in (python.probe(Means(python="/no/such/python")) or "")
    assert python.probe(MEANS) is None


# --- archives that lie ------------------------------------------------------------------------------------------------


def entry(name: str, mode: int = 0o100600, content: bytes = b"x") -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as written, warnings.catch_warnings(action="ignore"):
        written.writestr("model.py", "")
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        written.writestr(info, content)
    return made.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (entry("../out.py"), "not a plain file below it"),
        (entry("/out.py"), "not a plain file below it"),
        (entry("a//b.py"), "not a plain file below it"),
        (entry("a\\b.py"), "not a plain file below it"),
        (entry("link", 0o120777, b"/etc/passwd"), "not a plain file below it"),
        (entry("fifo", 0o010600), "not a plain file below it"),
        (entry("model.py"), "twice"),
        (entry("model.py/inner.py"), "twice, or as a file and a folder"),
    ],
)
def test_an_archive_cannot_write_outside_of_its_folder(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "artifact").write_bytes(data)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(InvalidManifest, match=says):
        bundle.unpack(tmp_path / "artifact", folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "folder", "temporary"]


def test_an_archive_that_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "artifact").write_bytes(entry("a.py", content=bytes(1000)))
    monkeypatch.setattr(bundle, "MAX_BYTES", 999)
    with pytest.raises(InvalidManifest, match="more than"):
        bundle.unpack(tmp_path / "artifact", tmp_path)
    monkeypatch.setattr(bundle, "MAX_BYTES", 2000)
    monkeypatch.setattr(bundle, "MAX_ENTRIES", 1)
    with pytest.raises(InvalidManifest, match="more than"):
        bundle.unpack(tmp_path / "artifact", tmp_path)
