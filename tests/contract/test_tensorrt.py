"""What the TensorRT engine promises beyond the suite for every engine, on a device that is none (fake_cuda)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from penstock.errors import InvalidArgument, InvalidManifest, PenstockError, Unsupported
from penstock.v1 import manifest_pb2 as pb
from services.worker.engines import tensorrt
from services.worker.engines.engine import DeviceLost, Means, OutOfMemory
from services.worker.engines.trt.matching import PlanMissing, Target
from services.worker.host.runner import Runner
from services.worker.processors.pipeline import Pipeline
from tests.harness import fake_tensorrt
from tests.harness.engines import spec
from tests.harness.fake_cuda import CONTEXT_BYTES, Gpu, install
from tests.harness.fake_tensorrt import BIAS, PUBLIC, WEIGHT, affine, identity, plan, tensor

MEANS = Means(plan_keys=(PUBLIC,))
SOURCE = b"\x08\x0a\x3a\x00"
"""An ONNX model of version 10 with an empty graph."""
AFFINE = pb.Manifest(
    name="m",
    format="tensorrt",
    inputs=[spec("x", "FP32", 4)],
    outputs=[spec("y", "FP32", 3), spec("total", "FP32")],
    batching=pb.Batching(max_batch_size=32),
)


def manifest(most: int = 32, *shape: int) -> pb.Manifest:
    sides: Any = {"inputs": [spec("x", "FP32", *shape)], "outputs": [spec("y", "FP32", *shape)]}
    return pb.Manifest(name="m", format="tensorrt", batching=pb.Batching(max_batch_size=most), **sides)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    install(made, monkeypatch, tensorrt=fake_tensorrt.module(made))
    return made


def load(folder: Path, data: bytes, made: pb.Manifest = AFFINE, others: dict[str, bytes] | None = None) -> Any:
    files = {}
    for role, content in {"model": data, **(others or {})}.items():
        files[role] = folder / role
        files[role].write_bytes(content)
    return tensorrt.load(files, made, 1, MEANS)


def rows(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def test_any_batch_gives_each_row_its_own_answer(gpu: Gpu, tmp_path: Path) -> None:
    engine = load(tmp_path, affine(most=12))
    for count in (1, 2, 5, 9, 12, 13, 25, 31, 32):
        x = rows(count, count)
        given = engine.run({"x": x})
        np.testing.assert_allclose(given["y"], x @ WEIGHT + BIAS, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(given["total"], x.sum(1), rtol=1e-5, atol=1e-5)
        assert given["y"].shape == (count, 3)
    engine.close()
    assert not gpu.violations


def test_each_bucket_is_captured_and_measured_once(gpu: Gpu, tmp_path: Path) -> None:
    engine = load(tmp_path, affine())
    assert list(engine.milliseconds) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert engine.milliseconds[8] == pytest.approx(0.685 + 0.095 * 8)
    # What the batcher is told: seconds.
    assert Runner(AFFINE, engine, Pipeline(AFFINE, {})).costs == pytest.approx(
        {size: (0.685 + 0.095 * size) / 1e3 for size in engine.milliseconds}
    )
    captures = gpu.calls.count("cuStreamBeginCapture")
    assert captures == 2 * len(engine.milliseconds)  # of two streams
    enqueued = gpu.calls.count("execute_async_v3")
    for _ in range(3):
        engine.run({"x": rows(7)})
    assert gpu.calls.count("execute_async_v3") == enqueued
    assert gpu.calls.count("cuStreamBeginCapture") == captures


def test_pieces_of_a_batch_are_on_the_streams_before_anything_is_waited_for(gpu: Gpu, tmp_path: Path) -> None:
    engine = load(tmp_path, affine(most=8))
    gpu.calls.clear()
    engine.run({"x": rows(32)})
    assert gpu.calls.count("cuGraphLaunch") == 4
    assert gpu.calls.index("synchronize") > max(
        at for at, call in enumerate(gpu.calls) if call in ("cuGraphLaunch", "memcpy_dtoh_async")
    )


def test_only_rows_that_are_there_are_copied_and_only_outputs_that_are_wanted(gpu: Gpu, tmp_path: Path) -> None:
    made = pb.Manifest()
    made.CopyFrom(AFFINE)
    del made.outputs[1]
    engine = load(tmp_path, affine(), made)
    gpu.calls.clear()
    assert engine.run({"x": rows(7)}).keys() == {"y"}
    assert gpu.calls.count("memcpy_dtoh_async") == 1


def test_other_dimensions_may_vary_too(gpu: Gpu, tmp_path: Path) -> None:
    engine = load(tmp_path, identity("FLOAT", (-1, -1), (8, 16)), manifest(20, -1))
    assert engine.milliseconds == engine.costs == {}
    assert "cuStreamBeginCapture" not in gpu.calls
    for shape in ((1, 1), (8, 16), (20, 5), (3, 7)):
        x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        np.testing.assert_array_equal(engine.run({"x": x})["y"], x)
    with pytest.raises(InvalidArgument, match=r"no profile of the plan takes 'x' \[1, 17\]"):
        engine.run({"x": np.zeros((1, 17), np.float32)})
    assert engine.run({"x": np.ones((1, 1), np.float32)})["y"].tolist() == [[1]]
    assert not gpu.violations


def test_several_profiles_each_with_its_own_contexts(gpu: Gpu, tmp_path: Path) -> None:
    tensors = [tensor("x", "INPUT", "FLOAT", -1, 4), tensor("y", "OUTPUT", "FLOAT", -1, 4)]
    profiles = [{"x": [[1, 4], [2, 4], [4, 4]]}, {"x": [[8, 4], [16, 4], [32, 4]]}]
    engine = load(tmp_path, plan("identity", tensors, profiles), manifest(32, 4))
    assert list(engine.milliseconds) == [1, 2, 3, 4, 8, 12, 16, 24, 32]
    for count in (1, 4, 5, 7, 20, 32):
        x = rows(count)
        np.testing.assert_array_equal(engine.run({"x": x})["y"], x)
    assert not gpu.violations


def test_a_model_without_a_batch(gpu: Gpu, tmp_path: Path) -> None:
    for shape, most in (((3, 4), (3, 4)), ((-1, 4), (9, 4))):
        engine = load(tmp_path, identity("FLOAT", shape, most), manifest(0, *shape))
        x = rows(3)
        np.testing.assert_array_equal(engine.run({"x": x})["y"], x)
        engine.close()
    assert not gpu.violations


# --- what is loaded ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["unsigned", "stranger", "bit"])
def test_what_no_trusted_builder_signed_never_reaches_the_runtime(gpu: Gpu, change: str, tmp_path: Path) -> None:
    data = affine()
    wrong = {
        "unsigned": affine()[:8] + b"ftrt" + bytes(100),
        "stranger": affine(key=Ed25519PrivateKey.generate()),
        "bit": data[:-100] + bytes([data[-100] ^ 4]) + data[-99:],
    }[change]
    with pytest.raises(InvalidManifest, match=r"^files\.model: ") as caught:
        load(tmp_path, wrong)
    assert str(tmp_path) not in caught.value.message
    assert "Runtime" not in gpu.calls
    assert "deserialize_cuda_engine" not in gpu.calls


@pytest.mark.parametrize("data", [b"", b"\x08\x0a" * 50, b"ftrt" + bytes(100)])
def test_what_is_neither_a_container_nor_a_source_is_refused(gpu: Gpu, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match=r"^files\.model: .*not an ONNX model"):
        load(tmp_path, data)
    assert "Runtime" not in gpu.calls


def test_a_source_alone_is_a_cache_miss_and_never_reaches_the_runtime(gpu: Gpu, tmp_path: Path) -> None:
    with pytest.raises(PlanMissing, match=r"and the version has no plan at all$") as caught:
        load(tmp_path, SOURCE)
    assert caught.value.target == Target("tensorrt", "11.2.0.5", "sm90")
    assert "Runtime" not in gpu.calls


@pytest.mark.parametrize("header", [{"version": "11.1.0.1"}, {"builder": "tensorrt-rtx"}, {"architecture": "sm86"}])
def test_a_plan_for_another_target_is_a_cache_miss(gpu: Gpu, header: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PlanMissing, match=r"needs a plan for tensorrt 11\.2\.0\.5 on sm90, and the version has"):
        load(tmp_path, affine(**header))
    assert "Runtime" not in gpu.calls


def test_of_several_plans_the_one_for_this_device_is_loaded(gpu: Gpu, tmp_path: Path) -> None:
    engine = load(tmp_path, SOURCE, others={"plan-sm86": affine(architecture="sm86"), "plan-sm90": affine(most=9)})
    assert max(engine.milliseconds) == 9
    with pytest.raises(PlanMissing, match=r"the version has tensorrt 11\.2\.0\.5 on sm86$"):
        load(tmp_path, SOURCE, others={"plan-sm86": affine(architecture="sm86")})


def test_a_plan_that_the_runtime_refuses_is_told_without_paths(gpu: Gpu, tmp_path: Path) -> None:
    data = plan("affine", [], [])
    gpu.total = gpu.used + (1 << 20) + 4096  # room for the context alone
    with pytest.raises(InvalidManifest, match=r"^files\.model: TensorRT cannot load the plan: IRuntime") as caught:
        load(tmp_path, data)
    assert "/usr" not in caught.value.message
    assert gpu.used == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"location": "HOST"}, "is a shape"),
        ({"shape_io": True}, "is a shape"),
        ({"format": "CHW2"}, "is not laid out row by row"),
        ({"dtype": "FP8"}, "is FP8, which is not run here"),
    ],
)
def test_what_is_not_run_is_named(gpu: Gpu, more: dict[str, Any], says: str, tmp_path: Path) -> None:
    tensors = [tensor("x", "INPUT", "FLOAT", -1, 4) | more, tensor("y", "OUTPUT", "FLOAT", -1, 4)]
    with pytest.raises(Unsupported, match=f"'x' {says}"):
        load(tmp_path, plan("identity", tensors, [{"x": [[1, 4], [2, 4], [4, 4]]}]), manifest(4, 4))
    assert gpu.used == 0


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (tensor("y", "OUTPUT", "FLOAT", -1, 4, data_dependent=True), "depends on the data"),
        (tensor("y", "OUTPUT", "FLOAT", 4), "not one row for each row"),
    ],
)
def test_an_output_whose_size_is_not_the_batch_is_refused(gpu: Gpu, output: Any, says: str, tmp_path: Path) -> None:
    tensors = [tensor("x", "INPUT", "FLOAT", -1, 4), output]
    with pytest.raises(InvalidManifest, match=says):
        load(tmp_path, plan("identity", tensors, [{"x": [[1, 4], [2, 4], [5, 4]]}]), manifest(5, 4))
    assert gpu.used == 0


def test_without_a_driver_no_runtime_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = Gpu(driver_status=35)
    install(gpu, monkeypatch, tensorrt=fake_tensorrt.module(gpu))
    with pytest.raises(Unsupported, match=r"does not start \(CUDA error 35\)"):
        load(tmp_path, affine())
    assert not gpu.calls


def test_a_worker_that_trusts_nobody_runs_no_plan(gpu: Gpu, tmp_path: Path) -> None:
    assert tensorrt.probe(MEANS) is None
    reason = tensorrt.probe(Means())
    assert reason is not None and "plan_keys" in reason


# --- what is given back -----------------------------------------------------------------------------------------------


def test_closing_gives_everything_back(gpu: Gpu, tmp_path: Path) -> None:
    engine = load(tmp_path, affine())
    assert gpu.used > 1 << 20
    engine.run({"x": rows(3)})
    engine.close()
    engine.close()
    assert (gpu.used, gpu.pinned, gpu.violations, gpu.current) == (0, {}, [], 0)


def test_whatever_call_fails_the_load_says_so_and_everything_is_given_back(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load(tmp_path, affine(most=2), batch(2)).close()
    calls = list(gpu.calls)
    refused = 0
    for failing, call in enumerate(calls):
        gpu.calls.clear()
        gpu.fail_at = failing
        try:
            load(tmp_path, affine(most=2), batch(2)).close()
        except PenstockError as error:
            refused += 1
            assert "/" not in error.message, call
        else:  # a graph that cannot be captured is done without, so is a second stream where there is no memory for it
            assert call.startswith(("cu", "execute", "create", "Runtime", "synchronize")), call
        assert (gpu.used, gpu.pinned, gpu.violations, gpu.current) == (0, {}, [], 0), (failing, call)
    assert refused > len(calls) // 2


@pytest.mark.parametrize(("streams", "room"), [(0, 4096), (1, 8192), (1, 9000), (2, 1 << 20)])
def test_a_device_with_room_for_one_stream_runs_on_one(gpu: Gpu, streams: int, room: int, tmp_path: Path) -> None:
    weights = 1 << 16
    gpu.total = CONTEXT_BYTES + weights + room  # a stream needs its tensors, 4096 bytes of scratch, and one context
    if not streams:
        with pytest.raises(OutOfMemory, match="not enough memory"):
            load(tmp_path, affine(weights=weights, most=1), batch(1))
    else:
        engine = load(tmp_path, affine(weights=weights, most=1), batch(1))
        assert len(engine._slots) == streams
        x = rows(1)
        np.testing.assert_allclose(engine.run({"x": x})["total"], x.sum(1), rtol=1e-5, atol=1e-5)
        engine.close()
    assert (gpu.used, gpu.violations) == (0, [])


def batch(most: int) -> pb.Manifest:
    made = pb.Manifest()
    made.CopyFrom(AFFINE)
    made.batching.max_batch_size = most
    return made


def test_a_lost_device_is_told_as_what_it_is(gpu: Gpu, tmp_path: Path) -> None:
    engine = load(tmp_path, affine())
    gpu.sticky = 700
    for _ in range(2):
        with pytest.raises(DeviceLost, match="CUDA error 700"):
            engine.run({"x": rows(3)})
    engine.close()
    with pytest.raises(PenstockError):
        load(tmp_path, affine())


def test_one_failed_run_is_not_the_end(gpu: Gpu, tmp_path: Path) -> None:
    engine = load(tmp_path, affine(most=8))
    gpu.calls.clear()
    engine.run({"x": rows(20)})
    for failing in range(len(gpu.calls)):
        gpu.calls.clear()
        gpu.fail_at = failing
        with pytest.raises(PenstockError, match="failed on these inputs") as caught:
            engine.run({"x": rows(20)})
        assert not isinstance(caught.value, DeviceLost)
        gpu.fail_at = None
        x = rows(20, failing)
        np.testing.assert_allclose(engine.run({"x": x})["total"], x.sum(1), rtol=1e-5, atol=1e-5)
    assert not gpu.violations


@pytest.mark.parametrize("x", [np.zeros((0, 4)), np.zeros((33, 4)), np.zeros((2, 5)), np.zeros(4)])
def test_inputs_that_do_not_fit_are_told_why(gpu: Gpu, x: Any, tmp_path: Path) -> None:
    engine = load(tmp_path, affine())
    with pytest.raises(InvalidArgument, match="the model refuses the inputs"):
        engine.run({"x": x.astype(np.float32)})


def test_a_context_that_cannot_be_captured_is_run_as_it_is(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A name that TensorRT-RTX has and TensorRT has not.
    monkeypatch.setattr(
        fake_tensorrt.IExecutionContext, "is_stream_capturable", lambda context, stream: False, raising=False
    )
    engine = load(tmp_path, affine())
    assert "cuStreamBeginCapture" not in gpu.calls
    x = rows(9)
    np.testing.assert_allclose(engine.run({"x": x})["total"], x.sum(1), rtol=1e-5, atol=1e-5)
    engine.close()
    assert not gpu.violations
