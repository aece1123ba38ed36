"""Who may use shared memory at the gateway, what a request may refer to, and where such a request goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest

from penstock import regions
from penstock.errors import (
    InvalidArgument,
    NotFound,
    PenstockError,
    PermissionDenied,
    TooLarge,
    Unavailable,
    Unsupported,
)
from penstock.internal.v1.records_pb2 import TenantRecord
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import REGIONS, Answer, Call
from penstock.wire.client import ConnectionLost
from penstock.wire.origin import ELSEWHERE, RELAYED, Origin
from services.gateway.admission import Admission
from services.gateway.region_table import RegionTable
from services.gateway.shared_memory import SharedMemory, named
from tests.harness.shared_memory import NEIGHBOUR, STRANGER, shared_object
from tests.unit.gateway.doubles import Gateway, echo, failing
from tests.unit.gateway.records import deployment, replica

LOST = ConnectionLost("the connection was lost", detail="127.0.0.1:4711")
NEAR, NEAR_TOO, FAR = "127.0.0.1:1", "127.0.0.1:2", "10.0.0.3:1"


@pytest.fixture(params=["by a task", "straight"], autouse=True)
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both roads of a call keep the same promises."""
    monkeypatch.setattr(Gateway, "straight", request.param == "straight")


@pytest.fixture
def key() -> Iterator[str]:
    with shared_object(4096) as made:
        yield made


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Gateway]:
    table = RegionTable(tmp_path)
    yield gateway(NEAR, table=table)
    table.close()


def gateway(
    *addresses: str, table: RegionTable | None, max_body_bytes: int = 1 << 20, admission: Admission | None = None
) -> Gateway:
    records = [replica(f"w{number}", address=address) for number, address in enumerate(addresses)]
    made = Gateway(
        [deployment("digits", 1, default=1)],
        records,
        shared_memory=SharedMemory(table, max_bytes=max_body_bytes),
        max_body_bytes=max_body_bytes,
        admission=admission,
    )
    made.workers.behaviours = {address: echo for address in addresses}
    return made


async def ask(
    it: Gateway,
    method: str,
    message: Any,
    *,
    caller: str = "ann",
    origin: Origin = NEIGHBOUR,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Answer:
    deadline = asyncio.get_running_loop().time() + 30
    call = Call(method, message.SerializeToString(), deadline, headers, caller, origin=origin)
    return await (it.infer(call) if method == "ModelInfer" else it.inference.handlers()[method](call))


async def register(it: Gateway, key: str, name: str = "r", offset: int = 0, size: int = 4096, **who: Any) -> None:
    message = oip.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=size)
    await ask(it, "SystemSharedMemoryRegister", message, **who)


async def status(it: Gateway, name: str = "", **who: Any) -> list[str]:
    answer = await ask(it, "SystemSharedMemoryStatus", oip.SystemSharedMemoryStatusRequest(name=name), **who)
    return sorted(oip.SystemSharedMemoryStatusResponse.FromString(answer.payload).regions)


async def unregister(it: Gateway, name: str = "", **who: Any) -> None:
    await ask(it, "SystemSharedMemoryUnregister", oip.SystemSharedMemoryUnregisterRequest(name=name), **who)


def infer(region: str = "r", size: int = 64, offset: int = 0, *, to: str = "") -> oip.ModelInferRequest:
    """A request whose input lies in that region; to: region of its output."""
    message = oip.ModelInferRequest(model_name="digits")
    given = message.inputs.add(name="x", datatype="UINT8", shape=[size]).parameters
    given["shared_memory_region"].string_param = region
    given["shared_memory_byte_size"].int64_param = size
    given["shared_memory_offset"].int64_param = offset
    if to:
        wanted = message.outputs.add(name="y").parameters
        wanted["shared_memory_region"].string_param = to
        wanted["shared_memory_byte_size"].int64_param = size
    return message


async def test_whose_model_it_is_comes_before_what_lies_where(tmp_path: Path, key: str) -> None:
    """A request with shared memory is let in, or not, like any other, and a bad reference gives its place back."""
    admission, table = Admission(), RegionTable(tmp_path)
    it = gateway(NEAR, table=table, admission=admission)
    await register(it, key)
    admission.say([TenantRecord(name="ann", models=["other"])], 1, 0.0)
    for region in ("r", "no-such-region"):
        with pytest.raises(PermissionDenied, match="may not call model 'digits'"):
            await ask(it, "ModelInfer", infer(region))
    assert it.workers.sent == []
    admission.say([TenantRecord(name="ann", models=["digits"], concurrent=1)], 1, 0.0)
    for _ in range(2):
        with pytest.raises(NotFound, match="no-such-region"):
            await ask(it, "ModelInfer", infer("no-such-region"))
        await ask(it, "ModelInfer", infer())
    assert len(it.workers.sent) == 2
    table.close()


async def test_a_request_takes_its_regions_along(it: Gateway, key: str) -> None:
    await register(it, key, "r", 128, 1024)
    await register(it, key, "out", 2048, 64)
    await ask(it, "ModelInfer", infer(to="out"))
    (sent,) = it.workers.sent
    found = regions.unpack(sent.headers[REGIONS])
    assert {name: (each.key, each.offset, each.byte_size) for name, each in found.items()} == {
        "r": (key, 128, 1024),
        "out": (key, 2048, 64),
    }


async def test_others_requests_take_no_header_along_whatever_they_send(it: Gateway) -> None:
    message = oip.ModelInferRequest(model_name="digits", raw_input_contents=[b"shared_memory_region"])
    deadline = asyncio.get_running_loop().time() + 30
    headers = {REGIONS: "r;/key;1;0;64"}
    await it.infer(Call("ModelInfer", message.SerializeToString(), deadline, headers, "ann", origin=STRANGER))
    assert REGIONS not in it.workers.sent[0].headers


async def test_a_region_is_its_owners_alone(it: Gateway, key: str) -> None:
    await register(it, key)
    assert await status(it) == ["r"]
    assert await status(it, caller="bob") == []
    for refused in (status(it, "r", caller="bob"), ask(it, "ModelInfer", infer(), caller="bob")):
        with pytest.raises(NotFound):
            await refused
    await unregister(it, "r", caller="bob")
    await unregister(it, caller="bob")
    await ask(it, "ModelInfer", infer())
    await unregister(it)
    with pytest.raises(NotFound):
        await ask(it, "ModelInfer", infer())
    with pytest.raises(NotFound):
        await status(it, "r")


@pytest.mark.parametrize("origin", [STRANGER, ELSEWHERE])
async def test_a_caller_of_elsewhere_is_refused_everything(it: Gateway, key: str, origin: Origin) -> None:
    await register(it, key)
    for refused in (
        register(it, key, "other", origin=origin),
        status(it, origin=origin),
        status(it, "r", origin=origin),
        unregister(it, "r", origin=origin),
        unregister(it, origin=origin),
        ask(it, "ModelInfer", infer(), origin=origin),
        ask(it, "ModelInfer", infer("nobody"), origin=origin),
    ):
        with pytest.raises(PermissionDenied):
            await refused
    assert await status(it) == ["r"]
    assert it.workers.sent == []


@pytest.mark.parametrize("header", sorted(RELAYED))
async def test_what_a_proxy_of_this_host_passes_on_is_somebody_elses(it: Gateway, key: str, header: str) -> None:
    await register(it, key)
    with pytest.raises(PermissionDenied):
        await ask(it, "ModelInfer", infer(), headers={header: "192.0.2.7"})
    with pytest.raises(PermissionDenied):
        await status(it, headers={header: "192.0.2.7"})


@pytest.mark.parametrize("origin", [NEIGHBOUR, STRANGER])
async def test_it_is_advertised_to_those_who_may_use_it(it: Gateway, origin: Origin) -> None:
    answer = await ask(it, "ServerMetadata", oip.ServerMetadataRequest(), origin=origin)
    advertised = oip.ServerMetadataResponse.FromString(answer.payload).extensions
    assert ("system_shared_memory" in advertised) == (origin is NEIGHBOUR)


async def test_switched_off_it_is_unsupported_and_not_advertised(key: str) -> None:
    it = gateway(NEAR, table=None)
    answer = await ask(it, "ServerMetadata", oip.ServerMetadataRequest())
    assert "system_shared_memory" not in oip.ServerMetadataResponse.FromString(answer.payload).extensions
    for refused in (register(it, key), status(it), unregister(it), ask(it, "ModelInfer", infer())):
        with pytest.raises(Unsupported, match="switched off"):
            await refused


@pytest.mark.parametrize("method", ["Status", "Register", "Unregister"])
async def test_cuda_is_unsupported_in_words(it: Gateway, method: str) -> None:
    with pytest.raises(Unsupported, match="CUDA shared memory is not offered"):
        await ask(it, f"CudaSharedMemory{method}", oip.SystemSharedMemoryStatusRequest())


@pytest.mark.parametrize(("size", "offset"), [(1025, 0), (1, 1024), (64, 2**31), (64, 2**63 - 1), (-1, 0), (64, -1)])
async def test_what_does_not_lie_in_its_region_goes_nowhere(it: Gateway, key: str, size: int, offset: int) -> None:
    await register(it, key, size=1024)
    message = infer(offset=offset)
    message.inputs[0].parameters["shared_memory_byte_size"].int64_param = size
    with pytest.raises(InvalidArgument):
        await ask(it, "ModelInfer", message)
    assert it.workers.sent == []


async def test_inputs_in_shared_memory_count_for_the_limit_of_a_request(key: str, tmp_path: Path) -> None:
    table = RegionTable(tmp_path)
    it = gateway(NEAR, table=table, max_body_bytes=2048)
    await register(it, key)
    await ask(it, "ModelInfer", infer(size=1024))
    with pytest.raises(TooLarge):
        await ask(it, "ModelInfer", infer(size=2048))
    table.close()


async def test_regions_of_one_request_are_bounded(it: Gateway, key: str) -> None:
    message = oip.ModelInferRequest(model_name="digits")
    for number in range(regions.MAX_PER_REQUEST + 1):
        await register(it, key, f"r{number}")
        message.inputs.append(infer(f"r{number}", 1).inputs[0])
    with pytest.raises(InvalidArgument, match="regions"):
        await ask(it, "ModelInfer", message)
    del message.inputs[0]
    await ask(it, "ModelInfer", message)


async def test_a_request_by_reference_goes_to_replicas_of_this_host(tmp_path: Path) -> None:
    table = RegionTable(tmp_path)
    it = gateway(FAR, NEAR, FAR.replace("3", "4"), table=table)
    with shared_object(4096) as key:
        await register(it, key)
        for _ in range(10):
            await ask(it, "ModelInfer", infer())
    assert set(it.workers.addresses) == {NEAR}
    table.close()


async def test_without_one_the_caller_is_told_to_send_the_bytes(key: str, tmp_path: Path) -> None:
    table = RegionTable(tmp_path)
    it = gateway(FAR, table=table)
    await register(it, key)
    with pytest.raises(Unavailable, match="send the tensors' bytes"):
        await ask(it, "ModelInfer", infer())
    assert it.workers.sent == []
    table.close()


@pytest.mark.parametrize(
    ("first", "to", "tries"), [(LOST, "", 2), (LOST, "r", 1), (Unavailable("it is draining"), "r", 2)]
)
async def test_nothing_is_tried_twice_that_might_be_written_twice(
    key: str, first: PenstockError, to: str, tries: int, tmp_path: Path
) -> None:
    table = RegionTable(tmp_path)
    it = gateway(NEAR, NEAR_TOO, table=table)
    it.workers.behaviours = {NEAR: failing(first), NEAR_TOO: failing(first)}
    await register(it, key)
    with pytest.raises(Unavailable):
        await ask(it, "ModelInfer", infer(to=to))
    assert len(it.workers.sent) == tries
    it.workers.sent.clear()
    it.now += 3600  # the pause of what failed is over, and its connection is there
    with pytest.raises(Unavailable):
        await ask(it, "ModelInfer", infer(to=to))
    assert len(it.workers.sent) == tries
    table.close()


def test_a_region_is_seen_in_a_large_payload_too() -> None:
    """Large payloads are views (penstock/wire/call.py)."""
    request = oip.ModelInferRequest(model_name="m", raw_input_contents=[bytes(100_000)])
    assert not named(cast(bytes, memoryview(request.SerializeToString())))
    request.inputs.add(name="x").parameters["shared_memory_region"].string_param = "r"
    assert named(cast(bytes, memoryview(request.SerializeToString())))
