"""The SDK against real gRPC: every call, every failure it must survive, both faces."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

import penstock
from penstock import errors
from penstock.client import AsyncClient, Client, InferRequest, StreamReply, Tensor, cluster, upload
from penstock.client.upload import Progress
from penstock.tensors import DATATYPES
from penstock.v1 import cluster_pb2 as status_pb
from tests.harness.small_gateway import SmallGateway, manifest, small_gateway

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@pytest.fixture
async def gateway() -> AsyncIterator[SmallGateway]:
    async with small_gateway() as running:
        yield running


@pytest.fixture
async def client(gateway: SmallGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.address, timeout=60) as connected:
        yield connected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of 3.5 MiB."""
    (tmp_path / "model.onnx").write_bytes(bytes(range(256)) * (14 * 1024))
    (tmp_path / "model.json").write_text(manifest())
    return tmp_path


def change(folder: Path) -> None:
    """Makes the next publication a new version."""
    path = folder / "model.json"
    path.write_text(path.read_text() + "\n")


def array_of(datatype: str) -> Any:
    values = {"BOOL": [[True, False, True]], "BYTES": [[b"a", b"", b"\x00\xff"]]}.get(datatype, [[0, 1, 100]])
    return np.array(values, dtype=DATATYPES[datatype].numpy)


# inference


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BF16"])
async def test_every_datatype_comes_back_as_it_went(client: AsyncClient, datatype: str) -> None:
    array = array_of(datatype)
    result = await client.infer("echo", {"a": array})
    assert result.datatype("a") == datatype
    assert result["a"].dtype == array.dtype
    assert result["a"].tolist() == array.tolist()


async def test_bf16_goes_as_a_tensor_and_comes_back_as_float32(client: AsyncClient) -> None:
    result = await client.infer("echo", {"a": Tensor.of("BF16", np.array([[1.0, -2.5]], dtype=np.float32))})
    assert result.datatype("a") == "BF16"
    assert result["a"].tolist() == [[1.0, -2.5]]
    assert result["a"].dtype == np.float32


async def test_result_says_who_answered_and_how(client: AsyncClient) -> None:
    result = await client.infer("echo", {"text": ["one", b"two"]}, request_id="mine")
    assert (result.model, result.version, result.id) == ("echo", "7", "mine")
    assert (result.trailers.worker, result.trailers.batch_size, result.trailers.queue_us) == ("w-1", 4, 120)
    assert result["text"].tolist() == [[b"one"], [b"two"]]
    assert list(result) == ["text"]
    assert result.raw("text") == b"\x03\x00\x00\x00one\x03\x00\x00\x00two"


async def test_typed_answers_are_read_too(gateway: SmallGateway, client: AsyncClient) -> None:
    gateway.inference.typed_answers = True
    result = await client.infer("echo", {"a": np.zeros((1, 3), np.float32)})
    assert result["a"].tolist() == [[1.5, 1.5, 1.5]]


async def test_lists_ask_for_metadata_once_and_nothing_else_does(gateway: SmallGateway, client: AsyncClient) -> None:
    await client.infer("echo", {"x": np.zeros((1, 3)), "text": "hello"})
    assert gateway.inference.calls["ModelMetadata"] == 0
    first = await client.infer("echo", {"x": [1, 2, 3]})
    second = await client.infer("echo", {"x": [[1, 2, 3], [4, 5, 6]], "whole": [1, 2, 3, 4]})
    assert gateway.inference.calls["ModelMetadata"] == 1
    assert (first.datatype("x"), first.shape("x")) == ("FP32", (1, 3))
    assert second.shape("x") == (2, 3)
    assert (second.datatype("whole"), second.shape("whole")) == ("INT32", (4,))


async def test_metadata_is_asked_again_after_it_proved_wrong(gateway: SmallGateway, client: AsyncClient) -> None:
    await client.infer("echo", {"x": [1, 2, 3]})
    gateway.inference.failures = [errors.InvalidArgument("x: INT64 is wanted")]
    with pytest.raises(errors.InvalidArgument):
        await client.infer("echo", {"x": [1, 2, 3]})
    await client.infer("echo", {"x": [1, 2, 3]})
    assert gateway.inference.calls["ModelMetadata"] == 2


async def test_everything_asked_for_is_in_the_request(gateway: SmallGateway, client: AsyncClient) -> None:
    await client.infer(
        "echo",
        {"text": "t"},
        version="prod",
        outputs=["text"],
        parameters={"flag": True, "count": 3, "rate": 0.5, "word": "w"},
        priority=2,
    )
    request = gateway.inference.requests[-1]
    assert request.model_version == "prod"
    assert [output.name for output in request.outputs] == ["text"]
    assert request.parameters["flag"].bool_param is True
    assert request.parameters["count"].int64_param == 3
    assert request.parameters["rate"].double_param == 0.5
    assert request.parameters["word"].string_param == "w"
    assert request.parameters["priority"].uint64_param == 2


async def test_credential_trace_and_request_id_travel_as_headers(gateway: SmallGateway) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    async with AsyncClient(gateway.address, token="secret", trace_context=lambda: trace) as client:
        await client.infer("echo", {"text": "t"}, request_id="r-7")
    headers = gateway.inference.headers[-1]
    assert headers["authorization"] == "Bearer secret"
    assert headers["traceparent"] == trace
    assert headers["x-request-id"] == "r-7"


@pytest.mark.parametrize("raised", errors.ALL)
async def test_the_class_of_an_error_crosses_the_wire(
    gateway: SmallGateway, client: AsyncClient, raised: type[errors.PenstockError]
) -> None:
    gateway.inference.failures = [raised("what is wrong", field="inputs[0]")]
    with pytest.raises(raised) as caught:
        await client.infer("echo", {"text": "t"}, retries=0)
    assert type(caught.value) is raised
    assert (caught.value.message, caught.value.field) == ("what is wrong", "inputs[0]")


async def test_unavailable_is_tried_again_at_most_twice(gateway: SmallGateway, client: AsyncClient) -> None:
    gateway.inference.failures = [errors.Unavailable("loading")] * 2
    await client.infer("echo", {"text": "t"})
    assert gateway.inference.calls["ModelInfer"] == 3
    gateway.inference.failures = [errors.Unavailable("loading")] * 3
    with pytest.raises(errors.Unavailable):
        await client.infer("echo", {"text": "t"})
    assert gateway.inference.calls["ModelInfer"] == 6


@pytest.mark.parametrize(
    ("error", "parameters"),
    [(errors.ResourceExhausted("full"), None), (errors.Unavailable("loading"), {"sequence_id": 5})],
)
async def test_what_may_not_be_repeated_is_not(
    gateway: SmallGateway, client: AsyncClient, error: errors.PenstockError, parameters: Any
) -> None:
    gateway.inference.failures = [error]
    with pytest.raises(type(error)):
        await client.infer("echo", {"text": "t"}, parameters=parameters)
    assert gateway.inference.calls["ModelInfer"] == 1


async def test_a_deadline_is_kept_and_an_abandoned_call_is_cancelled(
    gateway: SmallGateway, client: AsyncClient
) -> None:
    gateway.inference.hold = asyncio.Event()
    with pytest.raises(errors.DeadlineExceeded):
        await client.infer("echo", {"text": "t"}, timeout=0.05)
    gateway.inference.cancelled.clear()
    gateway.inference.arrived.clear()
    task = asyncio.create_task(client.infer("echo", {"text": "t"}))
    await asyncio.wait_for(gateway.inference.arrived.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(gateway.inference.cancelled.wait(), 30)


async def test_no_server_is_unavailable_within_the_retries() -> None:
    async with AsyncClient("127.0.0.1:1", timeout=30) as client:
        with pytest.raises(errors.Unavailable):
            await client.infer("echo", {"text": "t"})


async def test_stream_answers_in_order_and_goes_on_after_an_error(client: AsyncClient) -> None:
    async def requests() -> AsyncIterator[InferRequest]:
        for number in range(5):
            model = "missing" if number == 2 else "echo"
            yield InferRequest(model, {"text": f"t{number}"}, request_id=str(number))

    replies: list[StreamReply] = [reply async for reply in client.stream(requests())]
    assert [reply.id for reply in replies] == ["0", "1", "2", "3", "4"]
    assert [reply.error is None for reply in replies] == [True, True, False, True, True]
    assert replies[4].get()["text"].tolist() == [[b"t4"]]
    with pytest.raises(errors.PenstockError, match="no model is called 'missing'"):
        replies[2].get()


async def test_a_failing_source_of_a_stream_is_told_after_its_replies(client: AsyncClient) -> None:
    def requests() -> Any:
        yield InferRequest("echo", {"text": "t"})
        raise ZeroDivisionError

    replies = []
    with pytest.raises(ZeroDivisionError):
        async for reply in client.stream(requests()):
            replies.append(reply)
    assert len(replies) == 1


async def test_server_and_model_questions(client: AsyncClient) -> None:
    assert await client.server_live()
    assert await client.server_ready()
    assert (await client.server_metadata()).name == "small"
    assert await client.model_ready("echo")
    assert not await client.model_ready("missing")
    assert {spec.name for spec in (await client.model_metadata("echo", 7)).inputs} == {"x", "text", "n", "whole"}
    assert (await client.model_config("echo")).max_batch_size == 8
    assert (await client.model_statistics())[0].inference_count == 3


# the catalogue


async def test_publish_sends_each_file_once_and_tells_how_far_it_is(
    gateway: SmallGateway, client: AsyncClient, folder: Path
) -> None:
    steps: list[Progress] = []
    version = await client.publish(folder, progress=steps.append)
    content = (folder / "model.onnx").read_bytes()
    assert (version.name, version.version) == ("digits", 1)
    assert bytes(gateway.catalogue.blobs[version.artifacts["model"].digest]) == content
    assert [step.done for step in steps if step.step == "upload"] == [MIB, 2 * MIB, 3 * MIB, len(content)]
    again = await client.publish(folder / "model.json")
    assert again.version == 1, "the same content is the same version"
    change(folder)
    assert (await client.publish(folder)).version == 2
    assert gateway.catalogue.offsets == [0]


async def test_an_upload_resumes_where_it_broke(gateway: SmallGateway, client: AsyncClient, folder: Path) -> None:
    gateway.catalogue.breaks = [MIB, 2 * MIB, 2 * MIB]
    artifact = await client.upload(folder / "model.onnx")
    assert gateway.catalogue.offsets[0] == 0
    assert gateway.catalogue.offsets == sorted(gateway.catalogue.offsets)
    assert len(gateway.catalogue.offsets) == 4
    assert gateway.catalogue.offsets[-1] >= 2 * MIB
    assert artifact.digest in gateway.catalogue.complete


async def test_an_upload_that_gets_nowhere_ends(
    gateway: SmallGateway, client: AsyncClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "_pause", lambda error, failures: 0)
    gateway.catalogue.refusals = 50
    with pytest.raises(errors.Unavailable, match="busy"):
        await client.upload(folder / "model.onnx")
    assert gateway.catalogue.offsets == [0] * upload.ATTEMPTS


async def test_content_that_does_not_match_is_not_sent_again(
    gateway: SmallGateway, client: AsyncClient, folder: Path
) -> None:
    def change(step: Progress) -> None:
        if step.step == "hash":
            (folder / "model.onnx").write_bytes(b"x" * step.total)

    with pytest.raises(errors.InvalidArgument, match="does not match its digest"):
        await client.upload(folder / "model.onnx", progress=change)
    assert gateway.catalogue.offsets == [0]
    assert not gateway.catalogue.blobs


async def test_a_registry_that_does_not_know_the_content_gets_it_from_the_start(
    gateway: SmallGateway, client: AsyncClient, folder: Path
) -> None:
    gateway.catalogue.get_artifact_unknown = errors.NotFound("no such artifact")
    await client.upload(folder / "model.onnx")
    assert gateway.catalogue.offsets == [0]


async def test_an_empty_file_is_an_artifact(gateway: SmallGateway, client: AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    artifact = await client.upload(tmp_path / "empty")
    assert artifact.size_bytes == 0
    assert artifact.digest in gateway.catalogue.complete


async def test_a_file_that_shrinks_meanwhile_is_told(client: AsyncClient, folder: Path) -> None:
    def shrink(step: Progress) -> None:
        if step.step == "hash":
            (folder / "model.onnx").write_bytes(b"short")

    with pytest.raises(errors.InvalidArgument, match="shorter"):
        await client.upload(folder / "model.onnx", progress=shrink)


async def test_bad_manifests_keep_their_field(client: AsyncClient, folder: Path) -> None:
    (folder / "model.json").write_text(manifest().replace('"onnx"', '"pickle"'))
    with pytest.raises(errors.InvalidManifest) as caught:
        await client.publish(folder)
    assert caught.value.field == "format"


async def test_pages_are_followed(gateway: SmallGateway, client: AsyncClient, folder: Path) -> None:
    for name in ("a", "b", "c"):
        (folder / "model.json").write_text(manifest(name))
        await client.publish(folder)
        change(folder)
        await client.publish(folder)
    assert [model.name async for model in client.models(page_size=2)] == ["a", "b", "c"]
    assert gateway.catalogue.pages == 2
    assert [model.name async for model in client.models("b")] == ["b"]
    assert [version.version async for version in client.versions("a", page_size=1)] == [2, 1]


async def test_aliases_and_deletion(client: AsyncClient, folder: Path) -> None:
    await client.publish(folder)
    change(folder)
    await client.publish(folder)
    assert await client.set_alias("digits", "prod", 1, expected=0) == 0
    assert await client.set_alias("digits", "prod", 2) == 1
    with pytest.raises(errors.Conflict):
        await client.set_alias("digits", "prod", 1, expected=1)
    assert (await client.version("digits", "prod")).version == 2
    await client.deploy("digits", 1)
    with pytest.raises(errors.InUse):
        await client.delete_version("digits", 1)
    await client.undeploy("digits", wait=30)
    await client.delete_version("digits", 1)
    await client.delete_alias("digits", "prod")
    with pytest.raises(errors.NotFound):
        await client.version("digits", "prod")


# deployments


async def test_deploy_waits_through_a_broken_watch(gateway: SmallGateway, client: AsyncClient, folder: Path) -> None:
    await client.publish(folder)
    gateway.catalogue.ready = False
    gateway.catalogue.break_watches = 1
    seen: list[int] = []

    def told(status: status_pb.ClusterStatus) -> None:
        seen.append(status.versions[0].ready)
        if len(seen) == 2:
            gateway.catalogue.ready = True
            # The picture that is true now is told to the second watch.
            changes.append(asyncio.ensure_future(gateway.catalogue.change()))

    changes: list[asyncio.Future[None]] = []
    deployment = await client.deploy("digits", replicas=2, wait=10, on_status=told)
    assert deployment.default_version == 1
    assert seen == [0, 0, 2]
    assert gateway.catalogue.watches == 2
    assert (await client.deployments())[0].versions[0].replicas == 2


async def test_waiting_says_why_it_ended(
    gateway: SmallGateway, client: AsyncClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.publish(folder)
    gateway.catalogue.ready = False
    with pytest.raises(errors.DeadlineExceeded, match=r"digits@1: 0 of 1 ready; w-1 loading"):
        await client.deploy("digits", wait=2)
    gateway.catalogue.replica_state = status_pb.REPLICA_STATE_FAILED
    gateway.catalogue.reason = "no such operator"
    monkeypatch.setattr(cluster, "FAILED_GRACE", 0.1)
    with pytest.raises(errors.Unavailable, match="w-1 failed: no such operator"):
        await client.deploy("digits", wait=30)


async def test_keeping_others_waits_for_the_version_that_was_asked_for(
    gateway: SmallGateway, client: AsyncClient, folder: Path
) -> None:
    await client.publish(folder)
    change(folder)
    await client.publish(folder)
    await client.deploy("digits", 1, wait=30)
    await client.set_alias("digits", "canary", 2)
    deployment = await client.deploy("digits", "canary", keep_others=True, wait=30)
    assert deployment.default_version == 1
    assert [version.version for version in deployment.versions] == [1, 2]
    await client.wait_ready("digits", timeout=30)
    (second,) = await client.explain("digits", 2)
    assert (second.version, second.workers[0].obstacle) == (2, "memory")
    with pytest.raises(errors.NotFound):
        await client.explain("other")
    await client.undeploy("digits", 2, wait=30)
    assert [version.version for version in (await client.status("digits")).versions] == [1]


async def test_what_is_said_of_how_it_runs_is_kept_until_something_else_is(client: AsyncClient, folder: Path) -> None:
    await client.publish(folder)
    scaling = penstock.Scaling(min_replicas=1, max_replicas=4, rate=2, queue_time=Duration(nanos=50_000_000))
    place = penstock.Placement(selector={"zone": "a"})
    first = await client.deploy("digits", scaling=scaling, placement=place, tenant="acme", wait=30)
    (version,) = first.versions
    assert (version.scaling, version.placement, version.tenant) == (scaling, place, "acme")
    assert (await client.deploy("digits", wait=30)).versions == first.versions
    (plain,) = (await client.deploy("digits", replicas=2, wait=30)).versions
    assert (plain.replicas, plain.tenant, plain.HasField("scaling")) == (2, "", False)
    # None is wanted at first, so there is nothing to wait for.
    await client.deploy("digits", scaling=penstock.Scaling(max_replicas=1), wait=30)


async def test_a_worker_is_emptied_and_filled_again(gateway: SmallGateway, client: AsyncClient, folder: Path) -> None:
    await client.publish(folder)
    await client.deploy("digits", wait=30)
    await client.drain("w-1", wait=30)
    (replica,) = (await client.status("digits")).versions[0].replicas
    assert replica.worker == "w-2"
    await client.undrain("w-1")
    gateway.catalogue.stays = "digits"
    told: list[status_pb.ClusterStatus] = []
    with pytest.raises(errors.DeadlineExceeded, match="digits@1: stays: no other worker has room"):
        await client.drain("w-1", wait=2, on_status=told.append)
    assert told
    for call in (client.drain("w-9"), client.undrain("w-9")):
        with pytest.raises(errors.NotFound, match="there are w-1"):
            await call


async def test_watching_ends_when_the_reader_leaves(gateway: SmallGateway, client: AsyncClient) -> None:
    async for status in client.watch_status():
        assert status.leader == "s-1"
        break
    await client.close()


# the waiting face


async def test_client_makes_every_kind_of_call(gateway: SmallGateway, folder: Path) -> None:
    def calls() -> None:
        with Client(gateway.address, timeout=60) as client:
            assert client.infer("echo", {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]
            requests = (InferRequest("echo", {"text": word}) for word in ("a", "b"))
            assert [reply.get()["text"].item() for reply in client.stream(requests)] == [b"a", b"b"]
            assert client.publish(folder).version == 1
            assert [model.name for model in client.models()] == ["digits"]
            assert [version.version for version in client.versions("digits")] == [1]
            assert client.deploy("digits", wait=30).default_version == 1
            assert next(client.watch_status()).versions[0].name == "digits"
            assert [entry.version for entry in client.explain("digits")] == [1]
            with pytest.raises(errors.NotFound):
                client.version("digits", 9)

    await asyncio.to_thread(calls)


async def test_client_serves_many_threads_and_closes_once(gateway: SmallGateway) -> None:
    client = Client(gateway.address, timeout=60)

    def work(number: int) -> int:
        return int(client.infer("echo", {"a": np.array([number])})["a"][0])

    answers = await asyncio.gather(*(asyncio.to_thread(work, number) for number in range(24)))
    assert answers == list(range(24))
    await asyncio.to_thread(client.close)
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.server_live()


async def test_client_carries_the_callers_span(gateway: SmallGateway) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    def call() -> str:
        tracer = TracerProvider().get_tracer("tests")
        with Client(gateway.address, timeout=60) as client, tracer.start_as_current_span("caller") as span:
            client.infer("echo", {"text": "t"})
            return f"{span.get_span_context().span_id:016x}"

    span = await asyncio.to_thread(call)
    assert gateway.inference.headers[-1]["traceparent"].split("-")[2] == span


# one process, other people's modules


async def run_python(code: str, address: str = "") -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-c",
        code,
        cwd=ROOT,
        env={**os.environ, "PENSTOCK_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.mark.parametrize("first", ["penstock", "tritonclient"])
async def test_the_sdk_and_tritonclient_live_in_one_process(gateway: SmallGateway, first: str) -> None:
    imports = ["import penstock.client", "import tritonclient.grpc as triton"]
    if first == "tritonclient":
        imports.reverse()
    code = "\n".join(
        [
            "import os, warnings; warnings.simplefilter('ignore')",
            *imports,
            "import numpy as np",
            "address = os.environ['PENSTOCK_ADDRESS']",
            "tensor = triton.InferInput('a', [1, 2], 'FP32')",
            "tensor.set_data_from_numpy(np.array([[1, 2]], np.float32))",
            "theirs = triton.InferenceServerClient(address).infer('echo', [tensor]).as_numpy('a')",
            "with penstock.Client() as client:",
            "    ours = client.infer('echo', {'a': theirs})['a']",
            "print((ours == theirs).all())",
        ]
    )
    assert (await run_python(code, gateway.address)).split() == ["True"]


async def test_the_sdk_stands_without_numpy(gateway: SmallGateway) -> None:
    code = """
import sys
sys.modules["numpy"] = None
import penstock
with penstock.Client() as client:
    result = client.infer("echo", {"x": [[1, 2, 3]], "text": ["a", "b"], "h": penstock.Tensor.of("FP16", [0.5, 2])})
    print(result["x"].tolist(), result["x"].shape, result["text"], result["h"])
"""
    out = await run_python(code, gateway.address)
    assert out.strip() == "[[1.0, 2.0, 3.0]] (1, 3) [[b'a'], [b'b']] [0.5, 2.0]"


async def test_a_forgotten_client_lets_the_interpreter_end(gateway: SmallGateway) -> None:
    code = "import penstock; c = penstock.Client(); print(c.server_live())"
    assert (await run_python(code, gateway.address)).strip() == "True"


def test_naming_the_errors_loads_no_grpc() -> None:
    code = """
import penstock.errors, sys
print("grpc" in sys.modules, "Client" in dir(penstock))
penstock.Client
print("grpc" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "True", "True"]
    assert penstock.AsyncClient is AsyncClient
