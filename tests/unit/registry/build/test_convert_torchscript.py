"""TorchScript: what was converted answers as it did; an archive that does more than compute is refused, and not run."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import InvalidArgument, InvalidManifest
from services.registry.build.steps import torchscript
from services.registry.build.steps.session import Session

from .conftest import Run

MISSING = [name for name in ("torch", "onnxscript") if importlib.util.find_spec(name) is None]
NEEDS_TORCH = [
    pytest.mark.torch,
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} is not installed (penstock[build-torch])"),
    pytest.mark.filterwarnings("ignore"),  # of torch, about TorchScript
]


def scripted(path: Path, source: str, **more: Any) -> Path:
    """Saves a scripted module whose class is in `source`, under the name M."""
    import torch

    (path.parent / "written_module.py").write_text("import torch\nfrom typing import Tuple\n\n\n" + source)
    spec = importlib.util.spec_from_file_location("written_module", path.parent / "written_module.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    torch.jit.script(module.M().eval()).save(str(path))
    return path


BRANCH = """
class M(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x, ids):
        y = self.linear(x)
        if bool(y.sum() > 0):
            y = y * 2
        return torch.softmax(y, -1), (y + ids, )
"""
READS = """
class M(torch.nn.Module):
    def forward(self, x):
        return x + torch.from_file({path!r}, shared=False, size=4, dtype=torch.float32)
"""
RUNS = """
class M(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = 1.0

    @torch.jit.export
    def __getstate__(self) -> Tuple[float, bool]:
        return (self.scale, self.training)

    @torch.jit.export
    def __setstate__(self, state: Tuple[float, bool]) -> None:
        print("the archive's code runs")
        self.scale = state[0]
        self.training = state[1]

    def forward(self, x):
        return x * self.scale
"""
HOOKED = """
class M(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_forward_hook(hook)

    def forward(self, x):
        return x + 1


def hook(self, given: Tuple[torch.Tensor], answer: torch.Tensor):
    return answer * torch.from_file({path!r}, shared=False, size=4, dtype=torch.float32)
"""
WITHOUT = """
class M(torch.nn.Module):
    def forward(self, x):
        return torch.real(torch.linalg.eigvals(x))
"""


class TestWithTorch:
    pytestmark = NEEDS_TORCH

    def test_a_scripted_module_answers_the_same_as_onnx(self, tmp_path: Path, step: Run) -> None:
        import torch

        path = scripted(tmp_path / "m.pt", BRANCH)
        inputs, names = {"x": [-1, 4], "ids": [-1, 1]}, ["scores", "sums"]
        result = step("convert-torch", {"model": path}, inputs=inputs, datatypes={"ids": "INT64"}, outputs=names)
        assert (result.report["inputs"], result.report["outputs"]) == (["x", "ids"], names)
        assert result.report["largest_difference"] < 1e-5
        session, module = Session(result.files["model"].read_bytes(), 1), torch.jit.load(str(path))
        for rows, sign in ((5, 1), (1, -1)):  # both branches, and batches of more than one size
            x = sign * np.abs(np.random.default_rng(rows).normal(size=(rows, 4))).astype(np.float32) * 3
            ids = np.arange(rows).reshape(rows, 1)
            scores, (sums,) = module(torch.from_numpy(x), torch.from_numpy(ids))
            found = session.run({"x": x, "ids": ids})
            np.testing.assert_allclose(found["scores"], scores.detach().numpy(), atol=1e-5)
            np.testing.assert_allclose(found["sums"], sums.detach().numpy(), atol=1e-5)

    def test_what_it_takes_must_be_said(self, tmp_path: Path, step: Run) -> None:
        path = scripted(tmp_path / "m.pt", BRANCH)
        wrong: list[tuple[dict[str, Any], str]] = [
            ({}, r"give the shape of each argument: \{x: \[-1, ...\], ids: \[-1, ...\]\}"),
            ({"inputs": {"x": [-1, 4]}}, "give the shape of each argument"),
            ({"inputs": {"x": [0], "ids": [1]}}, "x needs sizes, -1 for any"),
            ({"inputs": {"x": [1], "ids": [1]}, "datatypes": {"x": "BYTES"}}, "and a datatype of FP32"),
        ]
        for parameters, words in wrong:
            with pytest.raises(InvalidArgument, match=words):
                step("convert-torch", {"model": path}, **parameters)

    @pytest.mark.parametrize("source", [READS, HOOKED])
    def test_an_operator_that_reaches_out_is_refused_wherever_it_stands(
        self, source: str, tmp_path: Path, step: Run
    ) -> None:
        (tmp_path / "secret").write_bytes(bytes(16))
        path = scripted(tmp_path / "m.pt", source.format(path=str(tmp_path / "secret")))
        with pytest.raises(InvalidManifest, match="it calls the operator aten::from_file, which is not run here"):
            step("convert-torch", {"model": path}, inputs={"x": [-1, 4]})

    def test_code_that_loading_would_run_is_refused_before(
        self, tmp_path: Path, step: Run, capfd: pytest.CaptureFixture[str]
    ) -> None:
        path = scripted(tmp_path / "m.pt", RUNS)
        capfd.readouterr()
        with pytest.raises(InvalidManifest, match="has a __setstate__, which loading would run"):
            step("convert-torch", {"model": path}, inputs={"x": [-1, 4]})
        assert "runs" not in capfd.readouterr().out

    def test_an_operator_without_conversion_is_named_with_what_to_do(self, tmp_path: Path, step: Run) -> None:
        path = scripted(tmp_path / "m.pt", WITHOUT)
        with pytest.raises(InvalidManifest, match=r"aten::linalg_eigvals has no conversion.*torch\.export\.export"):
            step("convert-torch", {"model": path}, inputs={"x": [-1, 3, 3]})

    @pytest.mark.parametrize("name", [b"posix\nsystem", b"builtins\nexec", b"os\nunlink"])
    def test_a_pickle_that_calls_python_calls_nothing(self, name: bytes, tmp_path: Path, step: Run) -> None:
        with zipfile.ZipFile(scripted(tmp_path / "m.pt", BRANCH)) as archive:
            members = {each: archive.read(each) for each in archive.namelist()}
        marker = tmp_path / "pwned"
        with zipfile.ZipFile(tmp_path / "forged.pt", "w") as forged:
            for member, content in members.items():
                planted = b"\x80\x02c" + name + b"\n(S'touch " + str(marker).encode() + b"'\ntR."
                forged.writestr(member, planted if member.endswith("/data.pkl") else content)
        with pytest.raises(InvalidManifest, match=r"Unknown type name '(posix|builtins|os)\."):
            step("convert-torch", {"model": tmp_path / "forged.pt"}, inputs={"x": [-1, 4], "ids": [-1, 1]})
        assert not marker.exists()


@pytest.mark.parametrize("operator", ["aten::add", "aten::conv2d", "prim::If", "prim::Constant"])
def test_operators_that_compute_pass(operator: str) -> None:
    torchscript.check(operator)


@pytest.mark.parametrize(
    "operator",
    [
        "aten::save", "aten::from_file", "aten::set_", "prim::PythonOp", "prim::rpc_sync", "prim::CallMethod",
        "c10d::send", "quantized::linear", "profiler::_record_function_enter", "mine::operator", "add",
    ],
)  # fmt: skip
def test_operators_that_do_more_do_not(operator: str) -> None:
    with pytest.raises(InvalidManifest, match="which is not run here"):
        torchscript.check(operator)
