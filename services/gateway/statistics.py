"""ModelStatistics over all replicas: every worker is asked, the counters are summed.

A worker that cannot be reached is left out, as its counters are lost with it; only when none answers is it an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from penstock.errors import InvalidArgument, NotFound, PenstockError, Unavailable
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import REQUEST_ID, VERSION, Answer, Call

from . import header
from .admission import Admission
from .route_table import RouteTable, wanted_version
from .routes import RoutingTable
from .upstream import Upstreams

PARALLEL = 16
"""Workers asked at the same time."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask one worker. model empty: all that it has."""

    address: str
    model: str
    version: int


class Statistics:
    """Answers ModelStatistics."""

    def __init__(self, routes: RoutingTable, upstreams: Upstreams, admission: Admission | None = None) -> None:
        """admission: None to show everything to everybody."""
        self._routes = routes
        self._upstreams = upstreams
        self._admission = admission if admission is not None else Admission()

    async def answer(self, call: Call) -> Answer:
        """name empty: all models that the caller may call; version empty: all versions of the model, which must have a
        READY replica. Raises PermissionDenied for a model that the caller may not call."""
        asked = header.of_model_request(call.payload)
        self._admission.permit(call.caller, asked.model)
        asking = questions(self._routes.table, asked.model, asked.version)
        limit = asyncio.Semaphore(PARALLEL)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask(question, call, limit)) for question in asking]
        answers = [result for task in tasks if isinstance(result := task.result(), oip.ModelStatisticsResponse)]
        if tasks and not answers:
            raise Unavailable("no worker answers with its statistics", retry_after=1.0)
        total = summed(answers)
        shown = [each for each in total.model_stats if self._admission.permitted(call.caller, each.name)]
        return Answer(oip.ModelStatisticsResponse(model_stats=shown).SerializeToString())

    async def _ask(
        self, question: Question, call: Call, limit: asyncio.Semaphore
    ) -> oip.ModelStatisticsResponse | PenstockError:
        version = str(question.version) if question.version else ""
        request = oip.ModelStatisticsRequest(name=question.model, version=version)
        headers = {REQUEST_ID: call.request_id}
        if version:
            headers[VERSION] = version
        async with limit:
            try:
                answer = await self._upstreams.call(
                    question.address,
                    (question.model, question.version),
                    call.method,
                    request.SerializeToString(),
                    deadline=call.deadline,
                    headers={name: value for name, value in headers.items() if value},
                    wanted=False,
                )
            except (Unavailable, NotFound) as gone:
                return gone
        return oip.ModelStatisticsResponse.FromString(answer.payload)


def questions(table: RouteTable, model: str, version: str) -> list[Question]:
    """Whom to ask what. Raises as RouteTable.resolve does when a named model has nothing READY to ask."""
    if not model:
        if version:
            raise InvalidArgument("a version without a model names nothing", field="version")
        return [Question(address, "", 0) for address in sorted(table.addresses)]
    route = table.resolve(model, version)
    view = table.models[model]
    numbers = [wanted_version(view, version)] if version else sorted(view.versions)
    return [
        Question(replica.address, route.model, number)
        for number in numbers
        for replica in view.versions[number].replicas
    ]


def summed(answers: Iterable[oip.ModelStatisticsResponse]) -> oip.ModelStatisticsResponse:
    """One entry per model and version: counts and times added, last_inference the latest."""
    totals: dict[tuple[str, str], oip.ModelStatistics] = {}
    for answer in answers:
        for each in answer.model_stats:
            total = totals.setdefault(
                (each.name, each.version), oip.ModelStatistics(name=each.name, version=each.version)
            )
            _add_model(total, each)
    return oip.ModelStatisticsResponse(model_stats=[totals[key] for key in sorted(totals, key=_order)])


def _order(key: tuple[str, str]) -> tuple[str, int, str]:
    name, version = key
    return name, int(version) if version.isdecimal() else 0, version


def _add_model(total: oip.ModelStatistics, each: oip.ModelStatistics) -> None:
    total.last_inference = max(total.last_inference, each.last_inference)
    total.inference_count += each.inference_count
    total.execution_count += each.execution_count
    _add_durations(total.inference_stats, each.inference_stats)
    batches = {batch.batch_size: batch for batch in total.batch_stats}
    for batch in each.batch_stats:
        known = batches.get(batch.batch_size)
        if known is None:
            known = batches[batch.batch_size] = total.batch_stats.add(batch_size=batch.batch_size)
        _add_durations(known, batch)
    total.batch_stats.sort(key=lambda batch: batch.batch_size)
    memory = {(usage.type, usage.id): usage for usage in total.memory_usage}
    for usage in each.memory_usage:
        held = memory.get((usage.type, usage.id))
        if held is None:
            held = memory[usage.type, usage.id] = total.memory_usage.add(type=usage.type, id=usage.id)
        held.byte_size += usage.byte_size
    for key, response in each.response_stats.items():
        _add_durations(total.response_stats[key], response)


def _add_durations(
    total: oip.InferStatistics | oip.InferBatchStatistics | oip.InferResponseStatistics,
    each: oip.InferStatistics | oip.InferBatchStatistics | oip.InferResponseStatistics,
) -> None:
    """Adds every StatisticDuration field of two messages of one kind."""
    for field, value in each.ListFields():
        if isinstance(value, oip.StatisticDuration):
            duration = getattr(total, field.name)
            duration.count += value.count
            duration.ns += value.ns
