"""What can be asked of the gateway besides inference: whether it lives and is ready and what it offers, and the same of
each model. What only a worker knows of a model is asked of one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from penstock import __version__
from penstock.errors import NotFound, Unavailable
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import Answer, Call, Handler

from . import header, shared_memory
from .admission import Admission
from .header import RoutingHeader
from .room import Room
from .routes import RoutingTable
from .shared_memory import SharedMemory

EXTENSIONS = (
    "binary_tensor_data",
    "parameters",
    "statistics",
    "model_configuration",
    "model_repository",
    "schedule_policy",
)
"""What ServerMetadata advertises to everybody; clients branch on it, so it names what works and nothing else."""


class About:
    """Answers these questions. forward: asks a worker that has the model; not_ready: the reason, None when ready."""

    def __init__(
        self,
        routes: RoutingTable,
        forward: Callable[[Call, RoutingHeader], Awaitable[Answer]],
        not_ready: Callable[[], str | None],
        room: Room,
        shared: SharedMemory,
        admission: Admission,
    ) -> None:
        self._routes, self._forward, self._not_ready = routes, forward, not_ready
        self._room, self._shared_memory, self._admission = room, shared, admission

    def handlers(self) -> Mapping[str, Handler]:
        """A handler per bare method name."""
        return {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ServerMetadata": self.server_metadata,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
        }

    async def server_live(self, call: Call) -> Answer:
        """The process answers."""
        return _answer(oip.ServerLiveResponse(live=True))

    async def server_ready(self, call: Call) -> Answer:
        """The routing table has been read and the process is not leaving."""
        return _answer(oip.ServerReadyResponse(ready=self._not_ready() is None))

    async def server_metadata(self, call: Call) -> Answer:
        """Name, version, implemented extensions; shared memory only to callers who may use it."""
        extensions = (*EXTENSIONS, shared_memory.EXTENSION) if self._shared_memory.offered(call) else EXTENSIONS
        return _answer(oip.ServerMetadataResponse(name="penstock", version=__version__, extensions=extensions))

    async def model_ready(self, call: Call) -> Answer:
        """True when a request for that model and version would be passed on, now or once it is loaded on demand; an
        unknown model is not ready. Asking loads nothing, so a client that asks first is not kept away for ever."""
        asked = header.of_model_request(call.payload)
        if self._admission.ready() is not None:
            return _answer(oip.ModelReadyResponse(ready=False))
        self._admission.permit(call.caller, asked.model)
        try:
            self._routes.resolve(asked.model, asked.version)
        except NotFound:
            return _answer(oip.ModelReadyResponse(ready=False))
        except Unavailable:
            return _answer(oip.ModelReadyResponse(ready=self._room.expected(asked)))
        return _answer(oip.ModelReadyResponse(ready=True))

    async def model_metadata(self, call: Call) -> Answer:
        """A worker's description; `versions` lists what is READY anywhere, since a worker knows only its own."""
        asked = self._asked(call)
        answer = await self._forward(call, asked)
        if asked.version:
            return answer
        view = self._routes.table.models.get(asked.model)
        if view is None:
            return answer
        response = oip.ModelMetadataResponse.FromString(answer.payload)
        response.versions[:] = [str(number) for number in sorted(view.versions) if view.versions[number].replicas]
        return Answer(response.SerializeToString(), answer.trailers)

    async def model_config(self, call: Call) -> Answer:
        """A worker's configuration of the model."""
        return await self._forward(call, self._asked(call))

    def _asked(self, call: Call) -> RoutingHeader:
        """The model that a question is about; raises PermissionDenied for one that the caller may not call."""
        asked = header.of_model_request(call.payload)
        self._admission.permit(call.caller, asked.model)
        return asked


def _answer(
    message: oip.ServerLiveResponse | oip.ServerReadyResponse | oip.ServerMetadataResponse | oip.ModelReadyResponse,
) -> Answer:
    return Answer(message.SerializeToString())
