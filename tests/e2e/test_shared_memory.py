"""Tensors by reference with the field's standard client, unmodified, over gRPC and HTTP: through gateway and worker."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from deploy.local.suite import Suite
from tests.e2e.conftest import grpc_address, rest_address
from tests.e2e.test_tritonclient import VALUES

MODULES: dict[str, Any] = {"grpc": triton_grpc, "http": triton_http}


@pytest.fixture(params=["grpc", "http"])
def over(request: pytest.FixtureRequest, suite: Suite) -> Iterator[tuple[Any, Any]]:
    """A client and its module; nothing is registered before and after."""
    module = MODULES[request.param]
    address = grpc_address(suite) if request.param == "grpc" else rest_address(suite)
    client = module.InferenceServerClient(address)
    client.unregister_system_shared_memory()
    try:
        yield client, module
    finally:
        client.unregister_system_shared_memory()
        client.close()


class Made:
    """Shared memory objects of a test, removed at its end."""

    def __init__(self) -> None:
        self.handles: list[Any] = []

    def __call__(self, name: str, size: int) -> tuple[Any, str]:
        """A handle and its key."""
        key = f"/penstock-test-{uuid.uuid4().hex}"
        self.handles.append(shm.create_shared_memory_region(name, key, size, create_only=True))
        return self.handles[-1], key


@pytest.fixture
def made() -> Iterator[Made]:
    objects = Made()
    yield objects
    for handle in objects.handles:
        with suppress(Exception):  # some tests take theirs away themselves
            shm.destroy_shared_memory_region(handle)


def by_reference(
    module: Any, name: str, shape: list[int], datatype: str, region: str, size: int, offset: int = 0
) -> Any:
    tensor = module.InferInput(name, shape, datatype)
    tensor.set_shared_memory(region, size, offset)
    return tensor


def output(module: Any, name: str, region: str, size: int, offset: int = 0) -> Any:
    wanted = module.InferRequestedOutput(name)
    wanted.set_shared_memory(region, size, offset)
    return wanted


def regions_of(client: Any) -> dict[str, tuple[str, int, int]]:
    """What the server says is registered."""
    status = client.get_system_shared_memory_status()
    if isinstance(status, list):
        return {each["name"]: (each["key"], each["offset"], each["byte_size"]) for each in status}
    return {name: (each.key, each.offset, each.byte_size) for name, each in status.regions.items()}


def refused(status: tuple[str, str], work: Any, *arguments: Any, **options: Any) -> str:
    """The message of a call that fails; status: over gRPC and over HTTP."""
    with pytest.raises(InferenceServerException) as caught:
        work(*arguments, **options)
    assert caught.value.status() in (f"StatusCode.{status[0]}", status[1])
    message = str(caught.value.message())
    assert "/dev/" not in message and "Errno" not in message and "Traceback" not in message
    return message


def test_the_extension_is_advertised_to_a_neighbour(over: tuple[Any, Any]) -> None:
    client, module = over
    metadata = client.get_server_metadata(**({"as_json": True} if module is triton_grpc else {}))
    assert "system_shared_memory" in metadata["extensions"]
    assert "cuda_shared_memory" not in metadata["extensions"]


def test_an_image_crosses_by_reference_both_ways(over: tuple[Any, Any], made: Made, anysize: str) -> None:
    client, module = over
    image = np.random.default_rng(1).random(150_528, np.float32)
    there, key_in = made("in", image.nbytes)
    back, key_out = made("out", image.nbytes + 64)
    client.register_system_shared_memory("in", key_in, image.nbytes)
    client.register_system_shared_memory("out", key_out, image.nbytes, offset=64)
    assert regions_of(client) == {"in": (key_in, 0, image.nbytes), "out": (key_out, 64, image.nbytes)}
    shm.set_shared_memory_region(there, [image])
    for _ in range(3):
        result = client.infer(
            anysize,
            [by_reference(module, "x", list(image.shape), "FP32", "in", image.nbytes)],
            outputs=[output(module, "y", "out", image.nbytes)],
            request_id="by reference",
        )
    placed = result.get_output("y")
    parameters = placed["parameters"] if module is triton_http else placed.parameters
    if module is triton_grpc:
        assert list(result.get_response().raw_output_contents) == [b""]
        assert parameters["shared_memory_byte_size"].int64_param == image.nbytes
        assert parameters["shared_memory_region"].string_param == "out"
    else:
        assert parameters == {"shared_memory_region": "out", "shared_memory_byte_size": image.nbytes}
        assert "data" not in placed
    found = shm.get_contents_as_numpy(back, np.float32, [150_528], offset=64)
    assert np.array_equal(found, image)
    assert (shm.get_contents_as_numpy(back, np.uint8, [64]) == 0).all(), "nothing is written before the region"


def test_every_datatype_by_reference_and_beside_it_tensors_that_travel(
    over: tuple[Any, Any], made: Made, identity: str
) -> None:
    client, module = over
    handle, key = made("all", 4096)
    back, key_back = made("back", 4096)
    client.register_system_shared_memory("all", key, 4096)
    client.register_system_shared_memory("back", key_back, 4096)
    inputs, outputs, places = [], [], {}
    for position, (datatype, array) in enumerate(VALUES.items()):
        name = datatype.lower()
        raw = serialize_byte_tensor(array) if datatype == "BYTES" else array
        size = len(raw.item()) if datatype == "BYTES" else array.nbytes
        if position % 3 == 0:  # this one travels
            inputs.append(module.InferInput(f"in_{name}", list(array.shape), datatype))
            inputs[-1].set_data_from_numpy(array)
            outputs.append(module.InferRequestedOutput(f"out_{name}"))
            continue
        offset = 128 * position
        content = np.frombuffer(raw.item(), np.uint8) if datatype == "BYTES" else raw.view(np.uint8)
        shm.set_shared_memory_region(handle, [content], offset=offset)
        inputs.append(by_reference(module, f"in_{name}", list(array.shape), datatype, "all", size, offset))
        outputs.append(output(module, f"out_{name}", "back", 128, offset))
        places[name] = (offset, bytes(content.tobytes()))
    result = client.infer(identity, inputs, outputs=outputs)
    for datatype, array in VALUES.items():
        name = datatype.lower()
        if name in places:
            offset, sent = places[name]
            assert shm.get_contents_as_numpy(back, np.uint8, [len(sent)], offset=offset).tobytes() == sent, name
        else:
            assert (result.as_numpy(f"out_{name}") == array).all(), name


def test_unregistered_is_gone_and_may_come_again(over: tuple[Any, Any], made: Made, add1: str) -> None:
    client, module = over
    handle, key = made("x", 64)
    shm.set_shared_memory_region(handle, [np.full(16, 3, np.float32)])
    ask = [by_reference(module, "x", [1, 16], "FP32", "x", 64)]
    assert "register it first" in refused(("NOT_FOUND", "404"), client.infer, add1, ask)
    for _ in range(20):
        client.register_system_shared_memory("x", key, 64)
        assert (client.infer(add1, ask).as_numpy("y") == 4).all()
        assert "already" in refused(("ALREADY_EXISTS", "400"), client.register_system_shared_memory, "x", key, 64)
        client.unregister_system_shared_memory("x")
        client.unregister_system_shared_memory("x")
        assert regions_of(client) == {}
    refused(("NOT_FOUND", "404"), client.infer, add1, ask)
    refused(("NOT_FOUND", "404"), client.get_system_shared_memory_status, "x")


def test_sizes_that_do_not_fit(over: tuple[Any, Any], made: Made, add1: str) -> None:
    client, module = over
    _, key = made("x", 256)
    for offset, size in ((0, 257), (257, 1), (1, 256), (0, 0), (2**63 - 1, 2**63 - 1), (0, 2**31), (2**63 - 1, 64)):
        refused(("INVALID_ARGUMENT", "400"), client.register_system_shared_memory, "x", key, size, offset)
    client.register_system_shared_memory("x", key, 128, 64)

    def infer(size: int, offset: int = 0, room: int = 64, at: int = 0) -> Any:
        return client.infer(
            add1,
            [by_reference(module, "x", [1, 16], "FP32", "x", size, offset)],
            outputs=[output(module, "y", "x", room, at)],
        )

    infer(64, 0, 64, 64)
    for size, offset in ((60, 0), (68, 0), (64, 65), (64, 2**31), (64, 2**63 - 1), (2**63 - 1, 64), (64, -1), (-64, 0)):
        refused(("INVALID_ARGUMENT", "400"), infer, size, offset)
    for room, at in ((129, 0), (64, 65), (2**63 - 1, 2**63 - 1), (-1, 0)):
        refused(("INVALID_ARGUMENT", "400"), infer, 64, 0, room, at)
    message = refused(("INVALID_ARGUMENT", "400"), infer, 64, 0, 63)
    assert "64 bytes" in message and "63" in message, "both sizes are named"


def test_keys_that_are_not_to_be_had(over: tuple[Any, Any], made: Made, tmp_path: Any) -> None:
    client, _ = over
    _, key = made("x", 64)
    for bad in ("", "/", ".", "..", "/..", "../etc/passwd", "/a/b", "//x", "a\0b", "é", "x" * 200, "%2e%2e"):
        refused(("INVALID_ARGUMENT", "400"), client.register_system_shared_memory, "x", bad, 1)
    traps = [f"penstock-trap-{uuid.uuid4().hex}" for _ in range(5)]
    outside = tmp_path / "secret"
    outside.write_bytes(bytes(64))
    os.symlink(outside, f"/dev/shm/{traps[0]}")
    os.symlink(key[1:], f"/dev/shm/{traps[1]}")
    os.link(f"/dev/shm/{key[1:]}", f"/dev/shm/{traps[2]}")
    os.mkdir(f"/dev/shm/{traps[3]}")
    os.mkfifo(f"/dev/shm/{traps[4]}")
    try:
        words = {
            refused(("INVALID_ARGUMENT", "400"), client.register_system_shared_memory, "x", bad, 1).replace(bad, "…")
            for bad in (*traps, f"penstock-none-{uuid.uuid4().hex}")
        }
        assert len(words) == 1, "one wording, whatever there is"
    finally:
        for trap in traps[:3] + traps[4:]:
            os.unlink(f"/dev/shm/{trap}")
        os.rmdir(f"/dev/shm/{traps[3]}")


def test_memory_that_shrinks_grows_and_goes_spoils_its_own_request_alone(
    over: tuple[Any, Any], made: Made, add1: str
) -> None:
    client, module = over
    handle, key = made("x", 128)
    shm.set_shared_memory_region(handle, [np.full(16, 3, np.float32)])
    client.register_system_shared_memory("x", key, 128)
    ask = {
        "inputs": [by_reference(module, "x", [1, 16], "FP32", "x", 64)],
        "outputs": [output(module, "y", "x", 64, 64)],
    }
    path = f"/dev/shm/{key[1:]}"
    for size in (0, 63, 64, 127):
        os.truncate(path, size)
        assert "too small" in refused(("INVALID_ARGUMENT", "400"), client.infer, add1, **ask)
    assert os.path.getsize(path) == 127, "it is not made larger again"
    os.truncate(path, 128)
    client.infer(add1, **ask)
    os.unlink(path)
    refused(("INVALID_ARGUMENT", "400"), client.infer, add1, **ask)
    with open(path, "xb") as another:
        another.truncate(128)
    assert "register it again" in refused(("INVALID_ARGUMENT", "400"), client.infer, add1, **ask)


def test_cuda_stays_unimplemented(over: tuple[Any, Any]) -> None:
    client, _ = over
    for work, arguments in (
        (client.get_cuda_shared_memory_status, ()),
        (client.register_cuda_shared_memory, ("x", b"aGFuZGxl", 0, 64)),
        (client.unregister_cuda_shared_memory, ("x",)),
    ):
        assert "CUDA" in refused(("UNIMPLEMENTED", "501"), work, *arguments)


def test_memory_that_changes_its_size_during_a_thousand_requests_crashes_nothing(
    suite: Suite, made: Made, add1: str
) -> None:
    before = suite.running()
    pool = ThreadPoolExecutor(6)
    _, wild = made("wild", 1 << 16)
    handle, calm = made("calm", 128)
    shm.set_shared_memory_region(handle, [np.full(16, 3, np.float32)])
    ended = threading.Event()
    codes: Counter[str] = Counter()

    def shake() -> None:
        while not ended.is_set():
            for size in (0, 100, 1 << 16, 64, 4096):
                os.truncate(f"/dev/shm/{wild[1:]}", size)

    def ask(region: str, times: int) -> None:
        with triton_grpc.InferenceServerClient(grpc_address(suite)) as client:
            offset = 0 if region == "calm" else 60_000
            ask = [by_reference(triton_grpc, "x", [1, 16], "FP32", region, 64, offset)]
            into = [output(triton_grpc, "y", region, 64, 64 + offset)] if region == "wild" else None
            for _ in range(times):
                try:
                    result = client.infer(add1, ask, outputs=into)
                    if region == "calm":
                        assert (result.as_numpy("y") == 4).all()
                    codes["OK " + region] += 1
                except InferenceServerException as error:
                    codes[f"{error.status()} {region}"] += 1

    with triton_grpc.InferenceServerClient(grpc_address(suite)) as client, pool:
        client.register_system_shared_memory("wild", wild, 1 << 16)
        client.register_system_shared_memory("calm", calm, 128)
        shaking = pool.submit(shake)
        asking = [pool.submit(ask, region, 250) for region in ("wild", "wild", "wild", "wild", "calm")]
        try:
            for each in asking:
                each.result()
        finally:
            ended.set()
        shaking.result()
        client.unregister_system_shared_memory()
    assert codes.pop("OK calm") == 250, "others never notice"
    assert set(codes) <= {"OK wild", "StatusCode.INVALID_ARGUMENT wild"}
    assert codes["StatusCode.INVALID_ARGUMENT wild"] > 0
    assert suite.running() == before, "the same processes run"


def test_unregistering_while_requests_run_is_a_clean_end(suite: Suite, made: Made, add1: str) -> None:
    before = suite.running()
    handle, key = made("x", 128)
    shm.set_shared_memory_region(handle, [np.full(16, 3, np.float32)])
    ended = threading.Event()

    def ask() -> Counter[str]:
        codes: Counter[str] = Counter()
        with triton_grpc.InferenceServerClient(grpc_address(suite)) as client:
            tensors = [by_reference(triton_grpc, "x", [1, 16], "FP32", "x", 64)]
            while not ended.is_set():
                try:
                    assert (client.infer(add1, tensors).as_numpy("y") == 4).all()
                    codes["OK"] += 1
                except InferenceServerException as error:
                    codes[str(error.status())] += 1
        return codes

    with triton_grpc.InferenceServerClient(grpc_address(suite)) as client, ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        try:
            for _ in range(1000):
                client.register_system_shared_memory("x", key, 64)
                client.unregister_system_shared_memory("x")
        finally:
            ended.set()
        codes = sum((each.result() for each in asking), Counter[str]())
    assert set(codes) <= {"OK", "StatusCode.NOT_FOUND"}
    assert suite.running() == before, "the same processes run"
    held = [
        os.readlink(entry)
        for pid in before.values()
        for entry in Path(f"/proc/{pid}/fd").iterdir()
        if os.path.islink(entry)
    ]
    assert not [each for each in held if key in each], "nobody holds memory that no request uses"


def test_what_a_proxy_passes_on_is_refused(over: tuple[Any, Any]) -> None:
    client, _ = over
    headers = {"x-forwarded-for": "192.0.2.7"}
    status = ("PERMISSION_DENIED", "403")
    refused(status, client.get_system_shared_memory_status, headers=headers)
    refused(status, client.register_system_shared_memory, "x", "/x", 1, headers=headers)


STRANGER = """
import os, sys
sys.path[:0] = sys.argv[3:]
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException
os.setgroups([]); os.setgid(65534); os.setuid(65534)
client = grpc.InferenceServerClient(sys.argv[1])
print("system_shared_memory" in client.get_server_metadata().extensions)
tensor = grpc.InferInput("x", [1, 16], "FP32")
tensor.set_shared_memory("x", 64)
for work, arguments in (
    (client.register_system_shared_memory, ("y", sys.argv[2], 64)),
    (client.get_system_shared_memory_status, ()),
    (client.unregister_system_shared_memory, ("x",)),
    (client.infer, ("add1", [tensor])),
):
    try:
        work(*arguments)
        print("done")
    except InferenceServerException as error:
        print(error.status())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_of_this_host_gets_nothing(over: tuple[Any, Any], suite: Suite, made: Made, add1: str) -> None:
    client, _ = over
    _, key = made("x", 64)
    client.register_system_shared_memory("x", key, 64)
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, grpc_address(suite), key, *sys.path],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        check=False,
    )
    assert done.stdout.split() == ["False", *["StatusCode.PERMISSION_DENIED"] * 4], done.stderr
    assert regions_of(client) == {"x": (key, 0, 64)}
