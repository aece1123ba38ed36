"""A request's life at the worker: read, find the replica, check, wait for the batch, answer.

One handler per method of the inference protocol, from `Call` to `Answer`; which transport carries them is
penstock.wire's business. The version comes from the gateway's header, else from the message, else it is the highest
that is READY here. The management half of the protocol (load, unload) belongs to the gateway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

import penstock
from penstock import names
from penstock.errors import InvalidArgument, NotFound, PenstockError, Unavailable, Unsupported
from penstock.kit import telemetry
from penstock.kit.spans import Span
from penstock.oip import inference_pb2 as oip
from penstock.v1 import cluster_pb2
from penstock.wire.call import (
    BATCH_SIZE,
    QUEUE_DEPTH,
    QUEUE_MICROSECONDS,
    REGIONS,
    VERSION,
    WORKER,
    Answer,
    Call,
    Done,
    Handler,
    Pending,
)

from . import codec, head, metadata
from .codec import Plan, Request, Schema
from .head import Parts
from .references import Lent, References
from .seat import Result
from .serving import Directory, Serving, Standing

M = TypeVar("M", bound=Message)

EXTENSIONS: Final = ("schedule_policy", "model_configuration", "parameters", "statistics", "model_repository")

INFER_SPAN: Final = "worker.infer"

MAX_PLANS: Final = 4096
"""Heads of requests that are remembered; a client has one per model and shape."""

READY: Final = cluster_pb2.REPLICA_STATE_READY

_STATE_WORDS: Final = {
    cluster_pb2.REPLICA_STATE_ASSIGNED: "is about to be loaded",
    cluster_pb2.REPLICA_STATE_PULLING: "is being pulled",
    cluster_pb2.REPLICA_STATE_LOADING: "is being loaded",
    cluster_pb2.REPLICA_STATE_DRAINING: "is leaving",
    cluster_pb2.REPLICA_STATE_FAILED: "could not be loaded",
}
_INDEX_STATES: Final = {
    cluster_pb2.REPLICA_STATE_READY: "READY",
    cluster_pb2.REPLICA_STATE_DRAINING: "UNLOADING",
    cluster_pb2.REPLICA_STATE_FAILED: "UNAVAILABLE",
}


class Inference:
    """The inference protocol over the replicas of one worker.

    worker: id that answers carry; not_ready: why the process is not ready, None when it is.
    """

    def __init__(self, worker: str, directory: Directory, not_ready: Callable[[], str | None]) -> None:
        self._worker = worker
        self._directory = directory
        self._not_ready = not_ready
        self._references = References()
        self._plans: dict[tuple[bytes, str], tuple[str, int, Schema, Plan]] = {}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """A handler per method of the protocol."""
        return {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ServerMetadata": self.server_metadata,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "ModelInfer": self.infer,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.repository_change,
            "RepositoryModelUnload": self.repository_change,
        }

    async def infer(self, call: Call) -> Answer:
        """ModelInfer. Raises NotFound, Unavailable, InvalidArgument and whatever ended the request in the batcher."""
        if REGIONS in call.headers:
            return await self._by_reference(call)
        serving, request = self._request(call)
        return await self._served(call, serving, request, None)

    async def _by_reference(self, call: Call) -> Answer:
        """A request whose tensors lie in shared memory, which is held until it has ended."""
        with ExitStack() as held:
            serving, request, lent = self._borrowed(call, held)
            return await self._served(call, serving, request, lent)

    def _borrowed(self, call: Call, held: ExitStack) -> tuple[Serving, Request, Lent]:
        """The request, checked; its regions are held until `held` is closed."""
        message = codec.parse(call.payload)
        serving = self._serving(message.model_name, message.model_version, call)
        try:
            lent = held.enter_context(self._references.lent(call, message))
            return serving, serving.schema.decode(message, lent), lent
        except PenstockError as error:
            serving.metrics.failed(error.code.name)
            raise

    async def _served(self, call: Call, serving: Serving, request: Request, lent: Lent | None) -> Answer:
        if not _traced(call):
            return self._answer(serving, request, await serving.batcher.submit(request, call.deadline), lent)
        with telemetry.span(
            INFER_SPAN, call.headers, model=serving.name, version=serving.version, worker=self._worker
        ) as span:
            result = await serving.batcher.submit(request, call.deadline, span)
            _rode(span, result)
            return self._answer(serving, request, result, lent)

    def direct(self, call: Call, done: Done) -> Pending | None:
        """ModelInfer without a task. Raises as `infer` does."""
        if _traced(call) or REGIONS in call.headers:
            return self._direct_holding(call, done)
        serving, request = self._request(call)
        return serving.batcher.enter(request, call.deadline, partial(self._ended, serving, request, None, None, done))

    def _direct_holding(self, call: Call, done: Done) -> Pending:
        """`direct`, with what has to be let go of when the request has ended: its regions, its span."""
        with ExitStack() as held:
            lent, span = None, None
            if _traced(call):
                span = telemetry.begin(INFER_SPAN, call.headers, worker=self._worker)
                held.push(partial(_end, span))
            if REGIONS in call.headers:
                serving, request, lent = self._borrowed(call, held)
            else:
                serving, request = self._request(call)
            if span is not None:
                span.attributes.update(model=serving.name, version=serving.version)
            ended = partial(self._ended, serving, request, lent, span, done)
            seat = serving.batcher.enter(request, call.deadline, ended, span)
            seat.keep(held.pop_all())
            return seat

    def _ended(
        self,
        serving: Serving,
        request: Request,
        lent: Lent | None,
        span: Span | None,
        done: Done,
        result: Result | PenstockError,
    ) -> None:
        if isinstance(result, PenstockError):
            if span is not None:
                span.end(result)
            done(None, result)
            return
        if span is not None:
            _rode(span, result)
        try:
            answer = self._answer(serving, request, result, lent)
        except PenstockError as error:
            done(None, error)
        else:
            done(answer, None)

    async def server_live(self, call: Call) -> Answer:
        """ServerLive: whoever answers lives."""
        return _answer(oip.ServerLiveResponse(live=True))

    async def server_ready(self, call: Call) -> Answer:
        """ServerReady."""
        return _answer(oip.ServerReadyResponse(ready=self._not_ready() is None))

    async def server_metadata(self, call: Call) -> Answer:
        """ServerMetadata: only what is implemented, since clients branch on it."""
        return _answer(oip.ServerMetadataResponse(name="penstock", version=penstock.__version__, extensions=EXTENSIONS))

    async def model_ready(self, call: Call) -> Answer:
        """ModelReady: false, not an error, for what is not here; false too while its engine seems to hang."""
        request = _read(oip.ModelReadyRequest, call)
        try:
            standing = self._standing(request.name, request.version, call)
        except (NotFound, Unavailable):
            return _answer(oip.ModelReadyResponse(ready=False))
        hangs = standing.serving is not None and standing.serving.batcher.late
        return _answer(oip.ModelReadyResponse(ready=standing.state == READY and not hangs))

    async def model_metadata(self, call: Call) -> Answer:
        """ModelMetadata, with the versions that are READY here."""
        request = _read(oip.ModelMetadataRequest, call)
        serving = self._serving(request.name, request.version, call)
        ready = [each.version for each in self._directory.versions(serving.name) if each.state == READY]
        return _answer(metadata.model_metadata(serving.name, ready, serving.manifest))

    async def model_config(self, call: Call) -> Answer:
        """ModelConfig."""
        request = _read(oip.ModelConfigRequest, call)
        serving = self._serving(request.name, request.version, call)
        return _answer(metadata.model_config(serving.name, serving.manifest))

    async def model_statistics(self, call: Call) -> Answer:
        """ModelStatistics of one version, of all versions of a model, or of everything that takes requests here."""
        request = _read(oip.ModelStatisticsRequest, call)
        version = call.headers.get(VERSION) or request.version
        if request.name and version:
            chosen = [self._serving(request.name, version, call)]
        else:
            standings = self._directory.versions(request.name) if request.name else self._directory.everything()
            chosen = [standing.serving for standing in standings if standing.serving is not None]
            if request.name and not chosen:
                chosen = [self._serving(request.name, "", call)]
        return _answer(
            oip.ModelStatisticsResponse(
                model_stats=[each.statistics.message(each.name, each.version, each.memory_bytes()) for each in chosen]
            )
        )

    async def repository_index(self, call: Call) -> Answer:
        """RepositoryIndex of this worker alone; the gateway knows the rest."""
        request = _read(oip.RepositoryIndexRequest, call)
        return _answer(
            oip.RepositoryIndexResponse(
                models=[
                    oip.RepositoryIndexResponse.ModelIndex(
                        name=each.name,
                        version=str(each.version),
                        state=_INDEX_STATES.get(each.state, "LOADING"),
                        reason=each.reason,
                    )
                    for each in self._directory.everything()
                    if each.state == READY or not request.ready
                ]
            )
        )

    async def repository_change(self, call: Call) -> Answer:
        """RepositoryModelLoad and RepositoryModelUnload: a worker runs what it is assigned."""
        raise Unsupported("a worker does not load or unload models by request; ask the gateway")

    def _request(self, call: Call) -> tuple[Serving, Request]:
        """The request, checked, and who answers it."""
        parts = head.split(call.payload)
        version = call.headers.get(VERSION, "")
        if parts is None or (known := self._plans.get((parts.head, version))) is None:
            return self._request_anew(call, parts, version)
        name, number, schema, plan = known
        standing = self._directory.find(name, number)
        serving = standing.serving if standing is not None else None
        if serving is None or serving.schema is not schema or len(parts.raws) != plan.tensors:
            return self._request_anew(call, parts, version)
        try:
            return serving, plan.fill(parts.id, parts.raws)
        except PenstockError as error:
            serving.metrics.failed(error.code.name)
            raise

    def _request_anew(self, call: Call, parts: Parts | None, version: str) -> tuple[Serving, Request]:
        message = codec.parse(call.payload)
        serving = self._serving(message.model_name, message.model_version, call)
        try:
            request = serving.schema.decode(message)
        except PenstockError as error:
            serving.metrics.failed(error.code.name)
            raise
        # Without a version the request means the highest that is READY at the time.
        if parts is not None and (version or message.model_version):
            plan = serving.schema.plan(message, request)
            if plan is not None:
                if len(self._plans) >= MAX_PLANS:
                    self._plans.clear()
                self._plans[parts.head, version] = (serving.name, serving.version, serving.schema, plan)
        return serving, request

    def _answer(self, serving: Serving, request: Request, result: Result, lent: Lent | None = None) -> Answer:
        ride = result.ride
        trailers = {
            WORKER: self._worker,
            BATCH_SIZE: str(ride.batch_rows),
            QUEUE_MICROSECONDS: str(int(ride.queue_seconds * 1e6)),
            QUEUE_DEPTH: str(serving.batcher.depth),
        }
        payload = serving.schema.encode(request.id, result.outputs)
        return Answer(payload if lent is None else lent.response(payload), trailers)

    def _serving(self, name: str, version: str, call: Call) -> Serving:
        """The replica that takes this request; raises NotFound or Unavailable with the truth."""
        standing = self._standing(name, version, call)
        if standing.serving is None:
            words = _STATE_WORDS.get(standing.state, "is not ready")
            reason = f": {standing.reason}" if standing.reason else ""
            raise Unavailable(f"model {name!r} version {standing.version} {words}{reason}")
        return standing.serving

    def _standing(self, name: str, version: str, call: Call) -> Standing:
        routed = call.headers.get(VERSION, "")
        wanted = self._version(name, routed or version)
        standing = self._directory.find(name, wanted) if wanted else None
        if standing is not None:
            return standing
        what = f"model {name[:80]!r}" + (f" version {wanted}" if wanted else "")
        if routed:
            # The gateway knew it here a moment ago: the route is stale, and another replica may serve.
            raise Unavailable(f"{what} is no longer on this worker")
        raise NotFound(f"{what} is not on this worker")

    def _version(self, name: str, text: str) -> int | None:
        """The version that a request means; None where nothing here could be meant."""
        if text:
            version = names.version_or_alias(text, "model_version")
            if isinstance(version, str):
                raise InvalidArgument(
                    f"model_version: {version!r} is an alias, which the gateway resolves; a worker takes a number",
                    field="model_version",
                )
            return version
        standings = self._directory.versions(name)
        ready = [standing.version for standing in standings if standing.state == READY]
        return max(ready or [standing.version for standing in standings], default=None)


def _rode(span: Span, result: Result) -> None:
    """What a request met on its way, on its span."""
    queue_us = int(result.ride.queue_seconds * 1e6)
    span.attributes.update(queue_us=queue_us, batch_size=result.ride.batch_rows)


def _end(span: Span, _: object, problem: BaseException | None, __: object) -> None:
    """Ends a span that is not over yet: by what was raised, or because the request's caller has left."""
    span.end(problem)


def _traced(call: Call) -> bool:
    """Whether to trace the call. A gateway has decided already: it sends a trace, or none."""
    if call.sampled is None:
        call.sampled = telemetry.sampled(call.headers, decided=VERSION in call.headers)
    return call.sampled


def _read(kind: type[M], call: Call) -> M:
    try:
        return kind.FromString(call.payload)
    except DecodeError:
        raise InvalidArgument(f"the request is not a {kind.DESCRIPTOR.name} message") from None


def _answer(message: Message) -> Answer:
    return Answer(message.SerializeToString())
