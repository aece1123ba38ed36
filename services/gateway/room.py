"""The waiting room: requests for versions that are not loaded yet, from their coming until they can go.

One wish goes to the schedulers however many wait for a version, and a change of the routes that concerns it wakes those
who wait, nobody else. `waiting` decides; this module does. What waits holds no more than its call.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from penstock.errors import NotFound, PenstockError, Unavailable
from penstock.internal.v1 import demand_pb2 as pb
from penstock.wire.call import Call

from . import waiting
from .demand import Demand, Flow, Served
from .header import RoutingHeader
from .metrics import RoomMetrics
from .route_table import Route, VersionView
from .routes import RoutingTable
from .waiting import Estimate, Lines, Prospect

MOST: Final = 4096
MOST_EACH: Final = 1024


class Place:
    """Of one who waits, from `Room.enter` until his turn comes, his time is over or he leaves; and from his turn until
    his request has ended, which `Room.ended` is told."""

    __slots__ = ("flow", "give_up", "go", "gone", "refusal", "served", "since", "target", "timer")

    def __init__(
        self,
        served: Served,
        flow: Flow,
        since: float,
        target: RoutingHeader,
        refusal: Unavailable,
        go: Callable[[], object],
        give_up: Callable[[PenstockError], object],
    ) -> None:
        self.served, self.flow, self.since = served, flow, since
        self.target, self.refusal = target, refusal
        self.go: Callable[[], object] | None = go
        self.give_up: Callable[[PenstockError], object] | None = give_up
        self.gone = False
        self.timer: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """His turn has not come, his time is not over, and he has not left."""
        return self.timer is not None


class Room:
    """The room of one process.

    Args:
        most, most_each: requests that may wait in all, and for one version; 0 for a gateway where nobody waits.
        share: processes of the gateway, among which these are divided evenly.
        wish: called when somebody is the first to wait for a version; must not block.
    """

    def __init__(
        self,
        routes: RoutingTable,
        demand: Demand,
        *,
        most: int = MOST,
        most_each: int = MOST_EACH,
        share: int = 1,
        wish: Callable[[], None] = lambda: None,
        metrics: RoomMetrics | None = None,
    ) -> None:
        self._routes, self._demand, self._wish = routes, demand, wish
        # Rounded up: where one may wait, no process turns everybody away.
        self._lines: Lines[Place] = Lines(-(-most // share), -(-most_each // share))
        self._gone: dict[Served, int] = {}  # let go, and not answered yet
        self._waking: set[Served] = set()  # some of them may go in the next turn
        self._estimates: dict[Served, Estimate] = {}
        self._ends = math.inf
        self._metrics = metrics or RoomMetrics()
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        routes.on_swap(self._look)

    def __len__(self) -> int:
        return len(self._lines)

    def expected(self, target: RoutingHeader) -> bool:
        """Whether a request for what `resolve` has just called Unavailable would wait, and not in vain as far as
        anybody knows."""
        with suppress(PenstockError):
            version = self._version(target)
            known = self._estimates.get((target.model, version.version), Estimate())
            return waiting.prospect(version) is Prospect.WAITS and not known.obstacle
        return False

    def open_to(self, target: RoutingHeader) -> bool:
        """Whether `enter` would let such a request in."""
        with suppress(PenstockError):
            version = self._version(target)
            served = target.model, version.version
            return waiting.prospect(version) is Prospect.WAITS and self._lines.has_room(served)
        return False

    def enter(
        self,
        call: Call,
        target: RoutingHeader,
        refusal: Unavailable,
        go: Callable[[], object],
        give_up: Callable[[PenstockError], object],
    ) -> Place:
        """Has a request wait for a replica of a version for which `resolve` has just raised `refusal`.

        go: called when it is its turn to look at the routes again; `ended` must be told once the request has ended.
        give_up: called instead with what is known of when and why not, shortly before the call's deadline. One of them
        is called, once, in a later turn of the loop and never after `leave`; neither may raise.

        Raises the refusal when waiting does not help, ResourceExhausted when the room is full.
        """
        now = self._clock()
        try:
            version = self._version(target)
        except PenstockError:
            raise refusal from None
        served = target.model, version.version
        flow = self._demand.flow(served)
        if waiting.prospect(version) is Prospect.ENDS:
            if version.on_demand:
                flow.refused()
            raise refusal
        place = Place(served, flow, now, target, refusal, go, give_up)
        try:
            first = self._lines.join(served, place)
        except PenstockError:
            flow.refused()
            self._metrics.waited("full", 0.0)
            raise
        flow.began(now)
        flow.waiting += 1
        end = min(waiting.until(call.deadline, now), self._ends)
        place.timer = self._loop.call_at(end, self._time_is_over, place)
        if first:
            self._wish()
        return place

    def leave(self, place: Place) -> None:
        """Nobody wants the answer any more."""
        if place.gone:
            self.ended(place)
        elif place.waits:
            self._out(place, "left")

    async def route(self, call: Call, target: RoutingHeader, refusal: Unavailable) -> tuple[Route, Place]:
        """Waits as `enter` says; the request's route, and what has to be told to `ended` once the request has ended.

        Raises as `enter` does, and Unavailable with what is known of when and why not, shortly before the call's
        deadline.
        """
        while True:
            turn: asyncio.Future[PenstockError | None] = self._loop.create_future()
            place = self.enter(call, target, refusal, partial(_wake, turn, None), partial(_wake, turn))
            try:
                reason = await turn
            except asyncio.CancelledError:
                self.leave(place)
                raise
            if reason is not None:
                raise reason
            try:
                return self._routes.resolve(target.model, target.version), place
            except PenstockError as again:
                self.ended(place)
                if not isinstance(again, Unavailable):
                    raise
                refusal = again

    async def moved(self, call: Call, route: Route) -> bool:
        """Waits a moment for the news that a version which is loaded on demand is not where `route` says, though its
        replicas have said so themselves; whether they came. Such versions come and go all the time."""
        model = self._routes.table.models.get(route.model)
        version = model.versions.get(route.version) if model is not None else None
        if version is not None and not version.on_demand:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(call.deadline, self._clock() + waiting.NEWS_SECONDS)):
                while True:
                    news = self._routes.news
                    model = self._routes.table.models.get(route.model)
                    version = model.versions.get(route.version) if model is not None else None
                    if version is None or version.replicas != route.replicas:
                        return True
                    await news.wait()
        return False

    def ended(self, place: Place) -> None:
        """A request that was let go has ended: the next one may go. Nothing if that was said before."""
        if not place.gone:
            return
        place.gone = False
        served = place.served
        left = self._gone[served] - 1
        if left:
            self._gone[served] = left
        else:
            del self._gone[served]
        if self._lines.waiting(served):
            self._let_go_soon(served)

    def told(self, answer: pb.ReportDemandResponse) -> None:
        """What a scheduler expects of the versions that are waited for."""
        now = self._clock()
        for each in answer.estimates:
            served = each.name, each.version
            if self._lines.waiting(served) and (each.obstacle or each.seconds > 0):
                ready_at = now + each.seconds if each.seconds > 0 and not each.obstacle else None
                said = Estimate(ready_at, each.obstacle, now)
                self._estimates[served] = waiting.believed(self._estimates.get(served), said)

    def close_at(self, end: float) -> None:
        """Nobody waits longer than that, on the loop's clock: the process leaves."""
        self._ends = end
        self._loop.call_at(end, self._end_all)

    def _end_all(self) -> None:
        for place in self._lines.everybody():
            self._time_is_over(place)

    def _time_is_over(self, place: Place) -> None:
        if not place.waits:
            return  # he left as another one was told
        reason, give_up = self._in_vain(place.target, place.served, place.refusal), place.give_up
        self._out(place, "late")
        assert give_up is not None
        give_up(reason)

    def _out(self, place: Place, end: str) -> None:
        """He waits no more. What would be called is let go of, or many who wait would be many cycles for the collector,
        which looks at them all in one turn of the loop."""
        assert place.timer is not None
        place.timer.cancel()
        place.timer = place.go = place.give_up = None
        self._lines.leave(place.served, place)
        now, flow = self._clock(), place.flow
        flow.waiting -= 1
        flow.ended(now)
        self._metrics.waited(end, now - place.since)
        if not self._lines.waiting(place.served):
            self._estimates.pop(place.served, None)

    def _in_vain(self, target: RoutingHeader, served: Served, refusal: Unavailable) -> PenstockError:
        try:
            version = self._version(target)
        except PenstockError as gone:
            return gone
        if version.version != served[1] or version.replicas:
            return refusal
        return waiting.in_vain(target.model, version, self._estimates.get(served, Estimate()), self._clock())

    def _version(self, target: RoutingHeader) -> VersionView:
        table = self._routes.table
        if target.model not in table.models:
            raise NotFound(f"model '{target.model}' is not deployed", field="model_name")
        return table.cold(target.model, target.version)

    def _look(self, models: frozenset[str]) -> None:
        """The routes of these models have changed."""
        for served in self._lines.of(models):
            self._let_go(served)

    def _let_go(self, served: Served) -> None:
        """Those of a line whose turn it is, a portion in each turn of the loop."""
        waits = self._lines.waiting(served)
        if not waits or served in self._waking:
            return
        found = waiting.prospect_of(self._routes.table, served)
        if found is Prospect.WAITS:
            return
        count = waits
        if found is Prospect.GOES:
            replicas = len(self._routes.table.models[served[0]].versions[served[1]].replicas)
            count = min(waits, waiting.AT_ONCE * replicas - self._gone.get(served, 0))
        if count > waiting.WOKEN:
            self._let_go_soon(served)
        for place in self._lines.take(served, min(count, waiting.WOKEN)):
            go = place.go
            if go is None:
                continue  # he left as another one went
            self._out(place, "went")
            place.flow.repeated()
            place.gone = True
            self._gone[served] = self._gone.get(served, 0) + 1
            go()

    def _let_go_soon(self, served: Served) -> None:
        """In the next turn, however many say so in this one."""
        if served not in self._waking:
            self._waking.add(served)
            self._loop.call_soon(self._let_more_go, served)

    def _let_more_go(self, served: Served) -> None:
        self._waking.discard(served)
        self._let_go(served)


def _wake(turn: asyncio.Future[PenstockError | None], reason: PenstockError | None) -> None:
    if not turn.done():
        turn.set_result(reason)
