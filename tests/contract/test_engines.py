"""One suite for every engine: a model that it loads keeps the contract of services/worker/engines/engine.py."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock.errors import Internal, InvalidManifest, PenstockError, Unsupported
from penstock.v1 import manifest_pb2 as pb
from services.worker.engines import catalogue
from services.worker.engines.contract import validate
from services.worker.engines.engine import Engine, Means, dtype
from tests.harness import fake_cuda, fake_tensorrt
from tests.harness.engines import spec
from tests.harness.models import ONNX_TYPES, OPSET

WEIGHT, BIAS = fake_tensorrt.WEIGHT, fake_tensorrt.BIAS
MEANS = Means(plan_keys=(fake_tensorrt.PUBLIC,), python=sys.executable)
OPENED: list[Engine] = []
NUMBERS = [name for name in ONNX_TYPES if name != "BYTES"]

NO_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
FORMATS = [
    pytest.param("onnx"),
    pytest.param("torch-export", marks=[NO_TORCH, pytest.mark.torch]),
    # Over a device that is none, by the rules of the real one: see fake_tensorrt.
    pytest.param("tensorrt"),
]
# Whose files do not say what they take: the manifest is believed.
EVERY = [*FORMATS, pytest.param("python")]
TENSORRT = {
    "BOOL": "BOOL", "UINT8": "UINT8", "INT8": "INT8", "INT32": "INT32", "INT64": "INT64",
    "FP16": "HALF", "BF16": "BF16", "FP32": "FLOAT",
}  # fmt: skip
KINDS = [
    pytest.param(*each.values, datatype, marks=each.marks)
    for each in EVERY
    for datatype in NUMBERS
    if each.values[0] != "tensorrt" or datatype in TENSORRT
]
pytestmark = pytest.mark.filterwarnings(
    # torch's own habits, on Python 3.11 and as it exports
    "ignore::DeprecationWarning:torch.*",
    "ignore::FutureWarning:torch.*",
)


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a TensorRT engine runs on; in the end it has seen nothing that a real one would not forgive."""
    gpu = fake_cuda.Gpu()
    if hasattr(request.node, "callspec") and request.node.callspec.params.get("artifact_format") == "tensorrt":
        fake_cuda.install(gpu, monkeypatch, tensorrt=fake_tensorrt.module(gpu))
    yield
    while OPENED:
        OPENED.pop().close()
    assert not gpu.violations


def save_onnx(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], initial: Any = ()) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initial))
    onnx.save(helper.make_model(graph, opset_imports=OPSET, ir_version=10), path)
    return path


def affine(artifact_format: str, folder: Path) -> Path:
    """y = x @ WEIGHT + BIAS, FP32 [n, 4] to [n, 3]; and total, the sum of each row of x."""
    if artifact_format == "onnx":
        return save_onnx(
            folder / "affine.onnx",
            [
                helper.make_node("Gemm", ["x", "w", "b"], ["y"]),
                helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=0),
            ],
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [
                helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3]),
                helper.make_tensor_value_info("total", TensorProto.FLOAT, ["n"]),
            ],
            [
                numpy_helper.from_array(WEIGHT, "w"),
                numpy_helper.from_array(BIAS, "b"),
                numpy_helper.from_array(np.array([1], np.int64), "axes"),
            ],
        )
    if artifact_format == "tensorrt":
        return save_plan(folder, fake_tensorrt.affine())
    if artifact_format == "python":
        return save_source(
            folder, f"{{'y': x @ np.array({WEIGHT.tolist()}, 'f4') + {BIAS.tolist()}, 'total': x.sum(1)}}"
        )
    import torch

    class Affine(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.from_numpy(WEIGHT))
            self.bias = torch.from_numpy(BIAS)

        def forward(self, x: Any) -> dict[str, Any]:
            return {"y": x @ self.weight + self.bias, "total": x.sum(1)}

    return save_torch(folder / "affine.pt2", Affine(), torch.ones(2, 4))


def identity(artifact_format: str, folder: Path, datatype: str) -> Path:
    """y = x of one datatype, [n, 2]."""
    if artifact_format == "onnx":
        kind = ONNX_TYPES[datatype]
        return save_onnx(
            folder / "identity.onnx",
            [helper.make_node("Identity", ["x"], ["y"])],
            [helper.make_tensor_value_info("x", kind, ["n", 2])],
            [helper.make_tensor_value_info("y", kind, ["n", 2])],
        )
    if artifact_format == "tensorrt":
        return save_plan(folder, fake_tensorrt.identity(TENSORRT[datatype]))
    if artifact_format == "python":
        return save_source(folder, "{'y': x}")
    import torch

    class Identity(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x.clone()

    kinds = {"FP16": "float16", "BF16": "bfloat16", "FP32": "float32", "FP64": "float64"}
    kind = getattr(torch, kinds.get(datatype, datatype.lower()))
    return save_torch(folder / "identity.pt2", Identity(), torch.zeros(2, 2).to(kind))


def save_plan(folder: Path, plan: bytes) -> Path:
    path = folder / "model.plan"
    path.write_bytes(plan)
    return path


def save_source(folder: Path, answer: str) -> Path:
    path = folder / "model.py"
    path.write_text(
        "import numpy as np\n\nclass Model:\n    def run(self, inputs):\n        x = inputs['x']\n"
        f"        return {answer}\n"
    )
    return path


def save_torch(path: Path, module: Any, *example: Any) -> Path:
    import torch

    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = tuple({0: batch} for _ in example)
    torch.export.save(torch.export.export(module, example, dynamic_shapes=shapes), path)
    return path


def manifest(artifact_format: str, inputs: Any, outputs: Any, most: int = 8) -> pb.Manifest:
    return pb.Manifest(
        name="m", format=artifact_format, inputs=inputs, outputs=outputs, batching=pb.Batching(max_batch_size=most)
    )


def affine_manifest(artifact_format: str) -> pb.Manifest:
    return manifest(artifact_format, [spec("x", "FP32", 4)], [spec("y", "FP32", 3), spec("total", "FP32")])


def load(path: Path, made: pb.Manifest, threads: int = 1) -> Engine:
    engine = catalogue.by_format(made.format).load({"model": path}, made, threads, MEANS)
    OPENED.append(engine)
    validate(made, engine)
    return engine


@pytest.mark.parametrize("artifact_format", EVERY)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_says_what_it_takes_and_computes_it(artifact_format: str, threads: int, tmp_path: Path) -> None:
    engine = load(affine(artifact_format, tmp_path), affine_manifest(artifact_format), threads)
    assert {name: str(info) for name, info in engine.inputs.items()} == {"x": "x FP32 [-1, 4]"}
    assert {name: str(info) for name, info in engine.outputs.items()} == {
        "y": "y FP32 [-1, 3]",
        "total": "total FP32 [-1]",
    }
    for rows in (1, 2, 7):
        x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
        x.flags.writeable = False
        given = engine.run({"x": x, "another": x})
        assert given.keys() == {"y", "total"}
        np.testing.assert_allclose(given["y"], x @ WEIGHT + BIAS, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(given["total"], x.sum(1), rtol=1e-5, atol=1e-5)
    engine.close()


@pytest.mark.parametrize(("artifact_format", "datatype"), KINDS)
def test_every_number_passes_bit_for_bit(artifact_format: str, datatype: str, tmp_path: Path) -> None:
    made = manifest(artifact_format, [spec("x", datatype, 2)], [spec("y", datatype, 2)])
    engine = load(identity(artifact_format, tmp_path, datatype), made)
    kind = dtype(datatype)
    bits = np.random.default_rng(7).integers(0, 256, 4 * 2 * kind.itemsize, dtype=np.uint8)
    x = (bits & 1 if datatype == "BOOL" else bits).view(kind).reshape(4, 2)
    y = engine.run({"x": x})["y"]
    assert y.dtype == kind
    assert y.tobytes() == x.tobytes()


def test_text_passes_through_onnx(tmp_path: Path) -> None:
    made = manifest("onnx", [spec("x", "BYTES", 2)], [spec("y", "BYTES", 2)])
    engine = load(identity("onnx", tmp_path, "BYTES"), made)
    x = np.array([[b"", "grün".encode()], [b"a\0b", b"x" * 70_000]], dtype=object)
    y = engine.run({"x": x})["y"]
    assert y.tolist() == x.tolist()


@pytest.mark.parametrize("artifact_format", FORMATS)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda made: made.inputs[0].MergeFrom(spec("z", "FP32")),
            r"the model takes no 'z'; it takes x FP32 \[-1, 4\]",
        ),
        (lambda made: made.inputs.append(spec("z", "FP32", 4)), "the model takes no 'z'"),
        (lambda made: made.inputs.pop(), "the model also takes 'x'"),
        (
            lambda made: made.inputs[0].MergeFrom(pb.TensorSpec(datatype="FP64")),
            r"'x' is FP64 in the manifest; .* FP32",
        ),
        (lambda made: made.inputs[0].shape.append(2), r"'x' has 3 dimensions \[-1, 4, 2\] by the manifest"),
        (lambda made: made.inputs[0].shape.__setitem__(0, 5), r"'x' is 5 in dimension 1 .* takes x FP32 \[-1, 4\]"),
        (lambda made: made.inputs[0].shape.__setitem__(0, -1), "'x' may have any size in dimension 1"),
        (
            lambda made: made.outputs[0].MergeFrom(spec("q", "FP32")),
            r"the model gives no 'q'; it gives y FP32 \[-1, 3\]",
        ),
        (lambda made: made.outputs[0].MergeFrom(pb.TensorSpec(datatype="INT64")), "'y' is INT64 in the manifest"),
        (lambda made: made.outputs[0].shape.__setitem__(0, 4), r"'y' is 4 in dimension 1 .* gives y FP32 \[-1, 3\]"),
        (lambda made: made.batching.Clear(), "'x' has 1 dimensions"),
    ],
)
def test_a_manifest_that_does_not_fit_is_told_what_the_model_has(
    artifact_format: str, change: Callable[[pb.Manifest], object], says: str, tmp_path: Path
) -> None:
    made = affine_manifest(artifact_format)
    change(made)
    with pytest.raises(InvalidManifest, match=says) as caught:
        load(affine(artifact_format, tmp_path), made)
    assert caught.value.field in ("inputs", "outputs")


@pytest.mark.parametrize("artifact_format", FORMATS)
@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "zip"])
def test_a_damaged_file_is_refused_without_showing_paths(artifact_format: str, damage: str, tmp_path: Path) -> None:
    path = affine(artifact_format, tmp_path)
    data = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "cut": data[: len(data) // 2], "garbage": b"\x08\x0a" * 99, "zip": b"PK\5\6" + bytes(18)}[damage]
    )
    with pytest.raises(InvalidManifest, match=r"^files\.model: ") as caught:
        load(path, affine_manifest(artifact_format))
    assert str(tmp_path) not in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("artifact_format", EVERY)
def test_a_link_in_place_of_the_file_is_not_followed(artifact_format: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(affine(artifact_format, tmp_path))
    with pytest.raises(PenstockError, match="the model file cannot be opened"):
        load(link, affine_manifest(artifact_format))


@pytest.mark.parametrize("artifact_format", EVERY)
def test_a_model_that_breaks_says_so_and_lives_on(artifact_format: str, tmp_path: Path) -> None:
    engine = load(affine(artifact_format, tmp_path), affine_manifest(artifact_format))
    with pytest.raises(PenstockError, match=r"refuses the inputs|failed on these inputs") as caught:
        engine.run({"x": np.zeros((1, 5), np.float32)})
    assert str(tmp_path) not in caught.value.message
    assert engine.run({"x": np.zeros((1, 4), np.float32)})["y"].tolist() == [BIAS.tolist()]


def test_a_model_with_a_fixed_batch_takes_no_other(tmp_path: Path) -> None:
    fixed = save_onnx(
        tmp_path / "fixed.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
    )
    sides: tuple[Any, Any] = ([spec("x", "FP32", 2)], [spec("y", "FP32", 2)])
    load(fixed, manifest("onnx", *sides, most=1))
    with pytest.raises(InvalidManifest, match="must take any batch up to 8 in dimension 0"):
        load(fixed, manifest("onnx", *sides, most=8))


@NO_TORCH
@pytest.mark.torch
def test_a_program_is_not_given_a_larger_batch_than_it_was_exported_for(tmp_path: Path) -> None:
    made = affine_manifest("torch-export")
    made.batching.max_batch_size = 65
    with pytest.raises(InvalidManifest, match="65 is more than the 64 that the program was exported for"):
        load(affine("torch-export", tmp_path), made)


@NO_TORCH
@pytest.mark.torch
def test_outputs_without_names_take_them_from_the_manifest(tmp_path: Path) -> None:
    path = identity("torch-export", tmp_path, "FP32")
    engine = load(path, manifest("torch-export", [spec("x", "FP32", 2)], [spec("anything", "FP32", 2)]))
    assert engine.run({"x": np.ones((1, 2), np.float32)})["anything"].tolist() == [[1, 1]]
    with pytest.raises(InvalidManifest, match="gives 1 outputs without names, and the manifest asks for 2"):
        load(path, manifest("torch-export", [spec("x", "FP32", 2)], [spec("a", "FP32", 2), spec("b", "FP32", 2)]))


def test_weights_outside_the_onnx_file_are_never_read(tmp_path: Path) -> None:
    canary = np.array([11, 22, 33, 44], np.float32)
    (tmp_path / "canary").write_bytes(canary.tobytes())
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="canary")
    path = save_onnx(
        tmp_path / "leak.onnx",
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weight],
    )
    # The runtime itself would read it: the canary sings where nobody looks.
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros((1, 4), np.float32)})[0].tolist() == [canary.tolist()]
    with pytest.raises(InvalidManifest, match="keeps tensors in other files"):
        load(path, manifest("onnx", [spec("x", "FP32", 4)], [spec("y", "FP32", 4)]))


def test_tensorrt_says_why_it_cannot_run() -> None:
    kind = catalogue.by_format("tensorrt")
    reason = kind.probe(MEANS)
    if reason is None:
        pytest.skip("this machine has a device, a driver and TensorRT")
    assert "TensorRT" in reason or "NVIDIA" in reason or "pycuda" in reason
    with pytest.raises(Unsupported) as caught:
        kind.load({}, pb.Manifest(format="tensorrt"), 1, MEANS)
    assert caught.value.message == reason


def test_an_unknown_format_is_told_the_known_ones() -> None:
    with pytest.raises(Unsupported, match="'pickle'; there are engines for onnx, torch-export, tensorrt, python"):
        catalogue.by_format("pickle")


def test_the_catalogue_imports_no_library() -> None:
    import subprocess

    script = (
        "import sys; from services.worker.engines import catalogue; "
        "from services.worker.engines.engine import NOTHING; catalogue.probe_all(NOTHING); "
        "names = ('onnxruntime', 'torch', 'tensorrt', 'tensorrt_rtx_bindings', 'pycuda', 'PIL', 'cryptography'); "
        "print([name for name in names if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_internal_is_not_what_a_publisher_sees_for_a_bad_operator(tmp_path: Path) -> None:
    path = save_onnx(
        tmp_path / "odd.onnx",
        [helper.make_node("NoSuchOperator", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    with pytest.raises(InvalidManifest, match="NoSuchOperator") as caught:
        load(path, manifest("onnx", [spec("x", "FP32", 4)], [spec("y", "FP32", 4)]))
    assert not isinstance(caught.value, Internal)
