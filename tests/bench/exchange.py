"""One request and the answer that it must get: as gRPC message, as JSON, and asked by a real client to compare.

The load generators repeat one request, so one answer is right. `agreed` asks for it several times before and after
every measurement, compares the numbers in it with what was computed here, and its bytes with each other.
"""

from __future__ import annotations

import json
import struct
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
import numpy as np
import numpy.typing as npt

from penstock.oip import inference_pb2 as oip
from tests.bench.output import WrongAnswers
from tests.bench.yardstick import OPTIONS, SERVICE
from tests.harness.shared_memory import path_of, shared_object

SAMPLES: Final = 5
METHOD: Final = f"/{SERVICE}/ModelInfer"
WORKER: Final = "penstock-worker"
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Exchange:
    """A request to `model` with one tensor, and the expected output. tolerance: absolute, 0 for exactly."""

    model: str
    input: str
    datatype: str
    data: bytes
    shape: tuple[int, ...]
    expected: Array
    tolerance: float = 0.0

    def message(self) -> bytes:
        """The serialised ModelInferRequest."""
        request = oip.ModelInferRequest(model_name=self.model)
        request.inputs.add(name=self.input, datatype=self.datatype, shape=self.shape)
        request.raw_input_contents.append(self.data)
        return request.SerializeToString()

    def json(self) -> bytes:
        """The body of the same request over REST, its numbers as JSON."""
        values = np.frombuffer(self.data, self.expected.dtype).tolist()
        tensor = {"name": self.input, "datatype": self.datatype, "shape": list(self.shape), "data": values}
        return json.dumps({"inputs": [tensor]}).encode()

    def output(self, payload: bytes) -> Array:
        """The output of a serialised ModelInferResponse."""
        return np.frombuffer(oip.ModelInferResponse.FromString(payload).raw_output_contents[0], self.expected.dtype)

    def check(self, output: Array) -> None:
        """Raises WrongAnswers unless this is the expected output."""
        if output.size != self.expected.size:
            raise WrongAnswers(f"{self.model}: {output.size} values instead of {self.expected.size}")
        difference = np.abs(output.ravel().astype("f8") - self.expected.ravel().astype("f8")).max()
        if not difference <= self.tolerance:
            raise WrongAnswers(f"{self.model}: a value is wrong by {difference:g}")


@dataclass(frozen=True)
class ByReference(Exchange):
    """The same through shared memory: the input lies in the first half of a region, the output is put into the second.

    region: name under which it is registered; path: where the object lies.
    """

    region: str = ""
    path: str = ""

    def message(self) -> bytes:
        """See Exchange."""
        request, size = oip.ModelInferRequest(model_name=self.model), len(self.data)
        given = request.inputs.add(name=self.input, datatype=self.datatype, shape=self.shape)
        wanted = request.outputs.add(name="y")
        for tensor, offset in ((given, 0), (wanted, size)):
            tensor.parameters["shared_memory_region"].string_param = self.region
            tensor.parameters["shared_memory_byte_size"].int64_param = size
            tensor.parameters["shared_memory_offset"].int64_param = offset
        return request.SerializeToString()

    def output(self, payload: bytes) -> Array:
        """What lies in the region, which is wiped so that the next answer has to be written anew."""
        size = len(self.data)
        with open(self.path, "r+b") as file:
            file.seek(size)
            content = file.read(size)
            file.seek(size)
            file.write(bytes(size))
        return np.frombuffer(content, self.expected.dtype)


@dataclass(frozen=True)
class Agreed:
    """The answer that all samples were: its bytes without gRPC's prefix, and who served it."""

    payload: bytes
    worker: str


def framed(message: bytes) -> bytes:
    """A message with gRPC's five bytes in front: not compressed, length."""
    return struct.pack(">BI", 0, len(message)) + message


def agreed(address: str, exchange: Exchange, samples: int = SAMPLES) -> Agreed:
    """Asks over gRPC; raises WrongAnswers where an answer fails, differs or is wrong."""
    message = exchange.message()
    payloads, workers = set(), set()
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        call: Any = channel.unary_unary(METHOD)
        for _ in range(samples):
            try:
                payload, done = call.with_call(message, timeout=30.0)
            except grpc.RpcError as failure:
                raise WrongAnswers(f"{exchange.model} at {address}: {failure}") from None
            payloads.add(payload)
            workers.add(str(dict(done.trailing_metadata() or ()).get(WORKER, "")))
    if len(payloads) != 1:
        raise WrongAnswers(f"{exchange.model} at {address}: answers to one request differ")
    payload = payloads.pop()
    exchange.check(exchange.output(payload))
    return Agreed(payload, ",".join(sorted(workers)))


def agreed_json(url: str, exchange: Exchange, samples: int = SAMPLES) -> bytes:
    """The same over REST: the body of the answer."""
    bodies = set()
    for _ in range(samples):
        request = urllib.request.Request(url, exchange.json(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30.0) as answer:
            bodies.add(answer.read())
    if len(bodies) != 1:
        raise WrongAnswers(f"{exchange.model} at {url}: answers to one request differ")
    body: bytes = bodies.pop()
    exchange.check(np.array(json.loads(body)["outputs"][0]["data"], exchange.expected.dtype))
    return body


def add1() -> Exchange:
    """y = x + 1 on FP32 [1, 16]."""
    x = np.arange(16, dtype="<f4")
    return Exchange("add1", "x", "FP32", x.tobytes(), (1, 16), x + 1)


def affine(model: str) -> Exchange:
    """y = x + 1 on FP32 [1, 128]."""
    x = np.linspace(-1, 1, 128, dtype="<f4")
    return Exchange(model, "x", "FP32", x.tobytes(), (1, 128), x + np.float32(1), tolerance=1e-6)


def image() -> Exchange:
    """600 KB there and back."""
    x = np.random.default_rng(1).integers(0, 256, (1, 600, 1000), np.uint8)
    return Exchange("image", "x", "UINT8", x.tobytes(), x.shape, x)


def picture() -> Exchange:
    """600 KB there, four numbers back."""
    x = np.random.default_rng(2).integers(0, 256, (1, 600, 1000), np.uint8)
    means = x.reshape(600, 4, 250).mean((0, 2)).astype("<f4")
    return Exchange("picture", "x", "UINT8", x.tobytes(), x.shape, means, tolerance=0.05)


@contextmanager
def shared_image(address: str) -> Iterator[ByReference]:
    """The same image in a shared memory object, registered at the gateway."""
    it, region = image(), "bench"
    with shared_object(2 * len(it.data), it.data) as key, grpc.insecure_channel(address, options=OPTIONS) as channel:
        register = oip.SystemSharedMemoryRegisterRequest(name=region, key=key, byte_size=2 * len(it.data))
        call: Any = channel.unary_unary(f"/{SERVICE}/SystemSharedMemoryRegister")
        call(register.SerializeToString(), timeout=30.0)
        yield ByReference(**vars(it), region=region, path=path_of(key))
        unregister: Any = channel.unary_unary(f"/{SERVICE}/SystemSharedMemoryUnregister")
        unregister(oip.SystemSharedMemoryUnregisterRequest(name=region).SerializeToString(), timeout=30.0)
