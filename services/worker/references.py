"""Tensors that lie in a client's shared memory: read from there into the engine's staging buffer, written back to it.

The gateway says in a header which regions a request refers to; it is obeyed only on a connection from a process of our
own user on this host, and every name, key and bound in it is checked again. An object is open while requests use it and
no longer: unregistering cannot take it from under a running request, and nothing keeps memory that its owner has given
up. Nothing is mapped, so an owner who shrinks it spoils his own request and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from penstock import regions
from penstock.channel import MAX_MESSAGE_BYTES
from penstock.errors import InvalidArgument, PenstockError, ResourceExhausted, TooLarge, Unsupported
from penstock.oip import inference_pb2 as oip
from penstock.regions import Reference, Region
from penstock.tensors import datatype
from penstock.wire.call import REGIONS, Call

MAX_OPEN: Final = 256
"""Objects that are open at a time."""
MAX_COPIED: Final = 256 << 20
"""Bytes of tensors whose contents must be looked at before they are queued, and so are copied, at a time."""
COPIED: Final = frozenset({"BYTES", "BOOL"})
"""Datatypes that not every byte sequence is one of; what is checked must not change afterwards."""


class Memory:
    """One open object. users: requests that hold it."""

    __slots__ = ("descriptor", "users")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.users = 0

    @property
    def size(self) -> int:
        """Its size now, in bytes."""
        return os.fstat(self.descriptor).st_size

    def read(self, view: memoryview, offset: int) -> bool:
        """Fills the view; False when the object ends before."""
        done = 0
        while done < len(view):
            count = os.preadv(self.descriptor, [view[done:]], offset + done)
            if not count:
                return False
            done += count
        return True

    def write(self, view: memoryview, offset: int) -> None:
        """Raises OSError."""
        done = 0
        while done < len(view):
            done += os.pwrite(self.descriptor, view[done:], offset + done)


class Source:
    """An input's bytes, still in shared memory. problem: why they could not be staged."""

    __slots__ = ("_memory", "_offset", "_size", "_where", "problem")

    def __init__(self, memory: Memory, offset: int, size: int, where: str) -> None:
        self._memory, self._offset, self._size, self._where = memory, offset, size, where
        self.problem: PenstockError | None = None

    def __len__(self) -> int:
        return self._size

    def copy(self) -> bytes:
        """All of it; raises InvalidArgument when it has gone."""
        data = bytearray(self._size)
        self.read_into(memoryview(data))
        if self.problem is not None:
            raise self.problem
        return bytes(data)

    def read_into(self, view: memoryview) -> None:
        """Fills the view, with zeros when the memory has gone: then `problem` says so, and the answer is nobody's."""
        try:
            there = self._memory.read(view, self._offset)
        except OSError:
            there = False
        if not there:
            view[:] = bytes(len(view))
            self.problem = _shrunk(self._where)


class Destination:
    """Where an output goes. written: its bytes, once it is there."""

    __slots__ = ("_memory", "_offset", "_where", "reference", "written")

    def __init__(self, memory: Memory, offset: int, reference: Reference, where: str) -> None:
        self._memory, self._offset, self._where = memory, offset, where
        self.reference = reference
        self.written = 0

    def write(self, data: memoryview) -> bytes:
        """Puts the output there; the bytes that still travel, which are none. Raises InvalidArgument."""
        room = self.reference.byte_size
        if len(data) > room:
            raise InvalidArgument(
                f"{self._where}: the output has {len(data)} bytes, shared_memory_byte_size is {room}",
                field=f"{self._where}.parameters.shared_memory_byte_size",
            )
        try:
            # Else writing would make it larger again.
            if self._memory.size < self._offset + len(data):
                raise _shrunk(self._where)
            self._memory.write(data, self._offset)
        except OSError as problem:
            raise InvalidArgument(
                f"{self._where}: the shared memory takes no more bytes", field=self._where, detail=repr(problem)
            ) from None
        self.written = len(data)
        return b""


class Lent:
    """What one request refers to. sources, destinations: by name of input and output."""

    def __init__(self, sources: Mapping[str, Source], destinations: Mapping[str, Destination], copied: int) -> None:
        self.sources = sources
        self.destinations = destinations
        self.copied = copied

    def response(self, payload: bytes) -> bytes:
        """The serialised response, saying where the outputs lie that went to shared memory.

        Their raw contents are empty and not left out, as Triton's are: its clients count on one buffer per output.
        """
        response = oip.ModelInferResponse.FromString(payload)
        for output in response.outputs:
            destination = self.destinations.get(output.name)
            if destination is not None:
                regions.said(output.parameters, destination.reference, destination.written)
        return response.SerializeToString()


class References:
    """The objects that are open in this process, shared by the requests that use them."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], Memory] = {}
        self._copied = 0

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self._open)

    @contextmanager
    def lent(self, call: Call, message: oip.ModelInferRequest) -> Iterator[Lent]:
        """What the message refers to, for as long as its request is served.

        Raises Unsupported for a caller who may not name memory, InvalidArgument, TooLarge, ResourceExhausted.
        """
        if not call.origin.same_user:
            raise Unsupported("shared memory is not offered here; send the tensors' bytes")
        known = regions.unpack(call.headers[REGIONS])
        memories: dict[str, Memory] = {}
        copied = 0
        try:
            for region in known.values():
                memories[region.name] = self._take(region)
            made = _lent(message, known, memories)
            if self._copied + made.copied > MAX_COPIED:
                raise ResourceExhausted("too many BYTES and BOOL tensors in shared memory are being served already")
            copied = made.copied
            self._copied += copied
            yield made
        finally:
            self._copied -= copied
            for name, memory in memories.items():
                self._leave(known[name], memory)

    def _take(self, region: Region) -> Memory:
        identity = (regions.component(region.key), region.inode)
        memory = self._open.get(identity)
        if memory is None:
            if len(self._open) >= MAX_OPEN:
                raise ResourceExhausted("too many shared memory regions are in use; try again")
            descriptor, found = regions.open_key(region.key)
            if found.st_ino != region.inode:
                os.close(descriptor)
                raise InvalidArgument(
                    f"the memory behind shared memory region {region.name!r} is another one now; register it again"
                )
            memory = self._open[identity] = Memory(descriptor)
        memory.users += 1
        return memory

    def _leave(self, region: Region, memory: Memory) -> None:
        memory.users -= 1
        if not memory.users:
            del self._open[regions.component(region.key), region.inode]
            os.close(memory.descriptor)
            memory.descriptor = -1


def _lent(message: oip.ModelInferRequest, known: Mapping[str, Region], memories: Mapping[str, Memory]) -> Lent:
    sources: dict[str, Source] = {}
    destinations: dict[str, Destination] = {}
    total = copied = 0
    for position, tensor in enumerate(message.inputs):
        where = f"inputs[{position}]"
        if (wanted := regions.reference(tensor.parameters, where)) is not None:
            memory, offset = _placed(known, memories, wanted, where)
            total += wanted.byte_size
            copied += wanted.byte_size if datatype(tensor.datatype, f"{where}.datatype").name in COPIED else 0
            if total > MAX_MESSAGE_BYTES:
                raise TooLarge(f"the inputs in shared memory are larger than {MAX_MESSAGE_BYTES} bytes")
            if memory.size < offset + wanted.byte_size:
                raise _shrunk(where)
            sources[tensor.name] = Source(memory, offset, wanted.byte_size, where)
    for position, output in enumerate(message.outputs):
        where = f"outputs[{position}]"
        if (wanted := regions.reference(output.parameters, where)) is not None:
            memory, offset = _placed(known, memories, wanted, where)
            destinations[output.name] = Destination(memory, offset, wanted, where)
    return Lent(sources, destinations, copied)


def _placed(
    known: Mapping[str, Region], memories: Mapping[str, Memory], wanted: Reference, where: str
) -> tuple[Memory, int]:
    region = known.get(wanted.region)
    if region is None:
        raise InvalidArgument(f"{where}: shared memory region {wanted.region!r} did not come with the request")
    return memories[region.name], regions.placed(region, wanted, where)


def unstaged(sources: Sequence[Source]) -> PenstockError | None:
    """Why one of them could not be staged; None when all were."""
    return next((source.problem for source in sources if source.problem is not None), None)


def _shrunk(where: str) -> InvalidArgument:
    return InvalidArgument(f"{where}: the shared memory has become too small for what was registered", field=where)
