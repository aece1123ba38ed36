"""Triton's system shared memory extension at the gateway: who may use it, its three methods, what a request refers to.

Offered to callers whose process runs on this host as our own user (penstock/wire/origin.py): what such a caller asks us
to read or write, it could read or write itself. A region is used, listed and unregistered by the caller who registered
it and by nobody else. Tensors stay where they are: a worker on this host gets the regions of a request in a header.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from penstock import regions
from penstock.errors import InvalidArgument, NotFound, PermissionDenied, TooLarge, Unsupported
from penstock.oip import inference_pb2 as oip
from penstock.regions import Reference, Region
from penstock.wire.call import Answer, Call, Handler
from penstock.wire.origin import RELAYED

from .messages import parsed
from .region_table import RegionTable
from .route_table import Replica

EXTENSION: Final = "system_shared_memory"
SEARCHED: Final = 16 << 10
"""Bytes from a request's beginning in which a region is looked for: tensors come before their raw contents."""
NO_NEAR_REPLICA: Final = (
    "no replica of the model on this host can take the request now, and others cannot reach its shared memory; "
    "send the tensors' bytes"
)


@dataclass(frozen=True, slots=True)
class Shared:
    """What a request's tensors lie in. header: for the worker; writes: outputs go there too."""

    header: str
    writes: bool


def named(payload: bytes) -> bool:
    """Whether a serialised ModelInferRequest may name a region; nearly all do not."""
    return bytes(payload[:SEARCHED]).find(regions.MARK) >= 0


class SharedMemory:
    """The extension. table: None where it is switched off; max_bytes: of one request's inputs, sent or referred to."""

    def __init__(self, table: RegionTable | None = None, *, max_bytes: int = 0) -> None:
        self._table = table
        self._max_bytes = max_bytes

    def handlers(self) -> Mapping[str, Handler]:
        """By bare method name; CUDA's are there to say that they are not offered."""
        return {
            "SystemSharedMemoryStatus": self.status,
            "SystemSharedMemoryRegister": self.register,
            "SystemSharedMemoryUnregister": self.unregister,
            "CudaSharedMemoryStatus": self.cuda,
            "CudaSharedMemoryRegister": self.cuda,
            "CudaSharedMemoryUnregister": self.cuda,
        }

    def offered(self, call: Call) -> bool:
        """Whether this caller may use it."""
        return self._table is not None and _from_here(call)

    def resolve(self, call: Call) -> Shared | None:
        """What a ModelInfer refers to, found and checked; None when it refers to nothing.

        Raises PermissionDenied, Unsupported, NotFound, TooLarge, or InvalidArgument for what does not lie in its
        region.
        """
        request = parsed(oip.ModelInferRequest, call.payload)
        inputs, outputs = list(_inputs(request)), list(_outputs(request))
        if not inputs and not outputs:
            return None
        table = self._allowed(call)
        found: dict[str, Region] = {}
        for where, wanted in inputs + outputs:
            region = found.get(wanted.region) or table.find(call.caller, wanted.region)
            if region is None:
                raise NotFound(f"{where}: there is no shared memory region {wanted.region!r}; register it first")
            found[wanted.region] = region
            regions.placed(region, wanted, where)
        if len(found) > regions.MAX_PER_REQUEST:
            raise InvalidArgument(f"a request may refer to {regions.MAX_PER_REQUEST} regions, this one to {len(found)}")
        if sum(wanted.byte_size for _, wanted in inputs) + len(call.payload) > self._max_bytes:
            raise TooLarge(f"the inputs are larger than {self._max_bytes} bytes, those in shared memory counted")
        return Shared(regions.pack(found.values()), bool(outputs))

    async def status(self, call: Call) -> Answer:
        """The caller's regions, or the one that is named; raises NotFound."""
        request = parsed(oip.SystemSharedMemoryStatusRequest, call.payload)
        table = self._allowed(call)
        response = oip.SystemSharedMemoryStatusResponse()
        for region in [self._one(table, call, request.name)] if request.name else table.all(call.caller):
            response.regions[region.name].MergeFrom(
                oip.SystemSharedMemoryStatusResponse.RegionStatus(
                    name=region.name, key=region.key, offset=region.offset, byte_size=region.byte_size
                )
            )
        return Answer(response.SerializeToString())

    async def register(self, call: Call) -> Answer:
        """Raises InvalidArgument for memory that is not there, not ours or too small, AlreadyExists,
        ResourceExhausted."""
        request = parsed(oip.SystemSharedMemoryRegisterRequest, call.payload)
        table = self._allowed(call)
        region = regions.measured(request.name, request.key, request.offset, request.byte_size)
        table.add(call.caller, region)
        return Answer(oip.SystemSharedMemoryRegisterResponse().SerializeToString())

    async def unregister(self, call: Call) -> Answer:
        """One region or, without a name, all of the caller's. Requests that use it already end as if it were there."""
        request = parsed(oip.SystemSharedMemoryUnregisterRequest, call.payload)
        table = self._allowed(call)
        for name in [request.name] if request.name else [each.name for each in table.all(call.caller)]:
            table.remove(call.caller, regions.checked_name(name))
        return Answer(oip.SystemSharedMemoryUnregisterResponse().SerializeToString())

    async def cuda(self, call: Call) -> Answer:
        """Not offered."""
        raise Unsupported("CUDA shared memory is not offered; use system shared memory, or send the tensors' bytes")

    def _allowed(self, call: Call) -> RegionTable:
        if self._table is None:
            raise Unsupported("system shared memory is switched off here; send the tensors' bytes")
        if not _from_here(call):
            raise PermissionDenied(
                "system shared memory is for callers on the server's host that run as the server's own user; "
                "send the tensors' bytes"
            )
        return self._table

    def _one(self, table: RegionTable, call: Call, name: str) -> Region:
        region = table.find(call.caller, regions.checked_name(name))
        if region is None:
            raise NotFound(f"there is no shared memory region {name!r}")
        return region


def _from_here(call: Call) -> bool:
    """Made by a process of our own user on this host, and not passed on by one."""
    return call.origin.same_user and RELAYED.isdisjoint(call.headers)


def reaching(shared: Shared | None, replicas: Sequence[Replica]) -> Sequence[Replica]:
    """Those of the replicas that can reach what a request refers to: by their addresses, those on this host."""
    return replicas if shared is None else [replica for replica in replicas if _near(replica.address)]


@lru_cache(1024)
def _near(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return address.startswith("unix:") or host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _inputs(request: oip.ModelInferRequest) -> Iterator[tuple[str, Reference]]:
    for position, tensor in enumerate(request.inputs):
        if (wanted := regions.reference(tensor.parameters, f"inputs[{position}]")) is not None:
            yield f"inputs[{position}]", wanted


def _outputs(request: oip.ModelInferRequest) -> Iterator[tuple[str, Reference]]:
    for position, tensor in enumerate(request.outputs):
        if (wanted := regions.reference(tensor.parameters, f"outputs[{position}]")) is not None:
            yield f"outputs[{position}]", wanted
