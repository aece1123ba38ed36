"""Keeps a service's processes: starts them, starts them again when they end, renews them one by one, ends them.

SIGTERM or SIGINT drains all at the same time; a second one ends all at once. SIGHUP renews: in each place a new process
starts with the command as it was, so with the configuration and the code of today, and when it is ready the old one
drains. Both take connections from the same listening socket, so none is refused between them. A process whose
supervisor is gone drains by itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, Final, TypeVar

from penstock import signals
from penstock.kit import log, login
from penstock.kit.admin import Admin, Verdict
from penstock.kit.config import ServiceConfig
from penstock.kit.identity import Authenticator
from penstock.kit.life import Life, stop_on_signals
from penstock.kit.loop import Loop
from penstock.kit.metrics import counter, exposition, gauge, merge_rules
from penstock.kit.ports import Reserved, reached_at
from penstock.kit.runtime import RuntimeFolder
from penstock.kit.supervision.child import Child
from penstock.kit.supervision.ledger import Ledger
from penstock.kit.supervision.restarts import CANNOT_START, hopeless
from penstock.kit.supervision.slot import Slot
from penstock.kit.tls import for_etcd

T = TypeVar("T")

END_SECONDS: Final = 20.0
"""What a process may take beyond its drain before it is killed: for its close steps."""
_LAST_WORDS_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 5.0


class Supervisor(Life):
    """The process that operators see. Raises ValueError when the configuration or a port cannot be used."""

    def __init__(
        self, name: str, config: ServiceConfig, folder: RuntimeFolder, *, count: int, ports: Sequence[str]
    ) -> None:
        super().__init__(config.drain_seconds)
        self.second_signal = self._at_once
        self.id = config.id or f"{name}-{uuid.uuid4().hex[:8]}"
        self.cannot_start = False
        authenticator = Authenticator(config.auth_file)
        authenticator.require_loopback(config.host)
        self.etcd_certificates = for_etcd(config)
        self.etcd_login = login.for_etcd(config)
        self._folder = folder
        self._ports = {field: _reserved(config, field) for field in ("port", *ports)}
        at = (config.host, config.admin_port)
        try:
            self._admin = Admin(at, self._ready, authenticator, alive=self._alive, metrics=self._metrics)
        except OSError as problem:
            raise ValueError(
                f"cannot listen on {config.host}:{config.admin_port} (admin): {problem.strerror}"
            ) from None
        reached = reached_at(config.host, config.advertise)
        self.address = f"{reached}:{self._ports['port'].port}"
        self.admin_address = f"{reached}:{self._admin.port}"
        self._loop = asyncio.get_running_loop()
        self._slots = [Slot(number) for number in range(1, count + 1)]
        self._children: dict[int, Child] = {}
        self._keepers: list[asyncio.Task[Any]] = []
        self._accepted = asyncio.Event()
        self._renewal = asyncio.Event()
        self._scraping = asyncio.Lock()
        self._ledger = Ledger(merge_rules())
        self._restarted = counter(signals.PROCESS_RESTARTS)
        gauge(signals.PROCESSES).set_function(lambda: len(self._serving()))
        gauge(signals.READY).set(0)  # until a process says otherwise

    # Its life.

    def begin(self) -> None:
        """Answers on the admin port."""
        self._admin.start()
        self.start(self._beat(), "beat")
        self._loop.add_signal_handler(signal.SIGHUP, self._renewal.set)

    async def open(self) -> None:
        """Starts the processes: one first, which shows whether they can, then the others; waits for all."""
        first, *others = self._slots
        self._keepers = [self.start(self._keep(first), "process 1")]
        await self._accepted.wait()
        self._keepers += [self.start(self._keep(slot), f"process {slot.number}") for slot in others]
        self._keepers.append(self.start(self._renew_all(), "renewals"))
        for slot in self._slots:
            await slot.served.wait()

    async def drain(self, seconds: float) -> None:
        """All processes at the same time."""
        for task in self._keepers:
            task.cancel()
        if self._keepers:
            await asyncio.wait(self._keepers)
        for slot in self._slots:
            slot.close()
        for port in self._ports.values():
            port.release()
        await asyncio.gather(*(self._see_off(child) for child in list(self._children.values())))

    async def cut_off(self) -> None:
        """Leaves nobody behind."""
        for child in self._children.values():
            child.kill()
        if self._children:
            await asyncio.wait([child.over for child in self._children.values()])

    async def close(self) -> None:
        """Frees the ports."""
        await asyncio.to_thread(self._admin.stop)
        for port in self._ports.values():
            port.release()

    def _at_once(self, number: int, frame: FrameType | None) -> None:
        for child in self._children.values():
            child.kill()
        self._folder.close()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    async def _beat(self) -> None:
        while True:
            self._admin.beat()
            await asyncio.sleep(0.5)

    # Its processes.

    async def _keep(self, slot: Slot) -> None:
        """Fills a place, and fills it again whenever it falls empty. The machine's troubles are waited out."""
        while True:
            try:
                slot.child = self._begin(slot)
            except OSError as problem:
                log.get_logger().error("process_not_started", problem=str(problem))
                await asyncio.sleep(slot.restarts.pause(0.0))
                continue
            await self._tend(slot)
            child = slot.child
            slot.close()
            status = child.over.result()
            if hopeless(status, made=child.made.done(), served=any(each.served.is_set() for each in self._slots)):
                self.cannot_start = True
                self.stop()
                return
            self._restarted.inc()
            pause = slot.restarts.pause(child.served_seconds())
            log.get_logger().warning(
                "process_ended", ended=child.id, pid=child.pid, status=status, again_in=round(pause, 2)
            )
            await asyncio.wait((slot.asked,), timeout=pause)
            if slot.asked.done():
                slot.taken_up().set_result(child)

    def _begin(self, slot: Slot) -> Child:
        if not slot.sockets:
            slot.sockets = {field: port.socket() for field, port in self._ports.items()}
        child_id, share = f"{self.id}.{slot.number}", len(self._slots)
        child = Child(child_id, self._folder.path, share, slot.sockets)
        self._children[child.pid] = child
        self.start(self._account(slot, child), f"account of {child.id}")
        return child

    async def _account(self, slot: Slot, child: Child) -> None:
        """Follows a process from its start to its last words."""

        def counted(text: str) -> None:
            self._ledger.seen(child.pid, child.id, text)

        listening = self.start(child.listen(counted), f"line of {child.id}")
        if await _first(child.made, child.over):
            self._accepted.set()
        if await _first(child.ready, child.over):
            slot.served.set()
            log.get_logger().info("process_ready", ready=child.id, pid=child.pid)
        await child.over
        await asyncio.wait((listening,), timeout=_LAST_WORDS_SECONDS)
        self._ledger.ended(child.pid)
        del self._children[child.pid]

    async def _tend(self, slot: Slot) -> None:
        """Returns when the process in that place has ended without having been replaced."""
        while slot.child is not None:
            await asyncio.wait((slot.child.over, slot.asked), return_when=asyncio.FIRST_COMPLETED)
            if slot.child.over.done():
                return
            await self._replace(slot, slot.child)

    async def _replace(self, slot: Slot, old: Child) -> None:
        answer = slot.taken_up()
        try:
            new = self._begin(slot)
        except OSError as problem:
            log.get_logger().error("process_not_started", problem=str(problem))
            answer.set_result(None)
            return
        # If the old one dies meanwhile, nobody accepts on this socket: better to begin anew on another.
        await asyncio.wait((new.ready, new.over, old.over), return_when=asyncio.FIRST_COMPLETED)
        if new.ready.done() and not new.over.done():
            slot.child = new
            self.start(self._see_off(old), f"end of {old.id}")
            answer.set_result(old)
        else:
            new.kill()
            await new.over
            answer.set_result(None)

    async def _renew_all(self) -> None:
        logger = log.get_logger()
        while True:
            await self._renewal.wait()
            self._renewal.clear()
            logger.info("renewing", processes=len(self._slots))
            for slot in self._slots:
                old = await slot.renew()
                if old is None:
                    logger.error("renewal_failed", kept=slot.child.id if slot.child else "")
                    break
                await old.over
            else:
                logger.info("renewed", processes=len(self._slots))

    async def _see_off(self, child: Child) -> None:
        child.end()
        await asyncio.wait((child.over,), timeout=self._drain_seconds + END_SECONDS)
        if not child.over.done():
            log.get_logger().error("process_killed", killed=child.id, pid=child.pid)
            child.kill()
            await child.over

    # What it says of them.

    def _serving(self) -> list[Child]:
        children = [slot.child for slot in self._slots]
        return [child for child in children if child and child.ready.done() and not child.over.done()]

    def _ready(self) -> Verdict:
        return self._answered(self._readiness) or Verdict("the supervisor does not answer")

    def _alive(self) -> Verdict:
        return self._answered(self._health) or Verdict("the supervisor does not answer")

    def _metrics(self) -> bytes | None:
        return self._answered(self._counts)

    def _answered(self, question: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        """Asks the event loop from the admin port's thread."""
        with suppress(TimeoutError, RuntimeError):
            return asyncio.run_coroutine_threadsafe(question(), self._loop).result(_ANSWER_SECONDS)
        return None

    async def _readiness(self) -> Verdict:
        if self.phase == "draining":
            return Verdict("draining")
        asked = [slot.child for slot in self._slots if slot.child and slot.child.made.done()]
        answers = await asyncio.gather(*(child.ask("/readyz") for child in asked))
        note = f"{sum(fine for fine, _ in answers)} of {len(self._slots)} processes are ready"
        reasons = [f"{child.id}: {text}" for child, (fine, text) in zip(asked, answers, strict=True) if not fine]
        whole = "; ".join([note, *reasons])
        return Verdict(note=whole) if any(fine for fine, _ in answers) else Verdict(whole)

    async def _health(self) -> Verdict:
        """A process that ended is being replaced; one that runs and is stuck is what nobody else sees."""
        asked = [child for child in self._children.values() if child.made.done() and not child.over.done()]
        answers = await asyncio.gather(*(child.ask("/healthz") for child in asked))
        stuck = [
            f"{child.id}: {text}"
            for child, (fine, text) in zip(asked, answers, strict=True)
            if not fine and not child.leaving and not child.over.done()
        ]
        if stuck:
            return Verdict("; ".join(stuck))
        return Verdict(note=f"{len(asked)} of {len(self._slots)} processes run")

    async def _counts(self) -> bytes:
        async with self._scraping:
            asked = [child for child in self._children.values() if child.made.done()]
            for child, (fine, text) in zip(
                asked, await asyncio.gather(*(child.ask("/metrics") for child in asked)), strict=True
            ):
                if fine and child.pid in self._children:
                    self._ledger.seen(child.pid, child.id, text)
            self._ledger.seen(os.getpid(), self.id, exposition().decode())
            return self._ledger.text()


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0))


def supervise(
    name: str,
    config: ServiceConfig,
    assemble: Callable[[Supervisor], Awaitable[None]],
    *,
    count: int,
    ports: Sequence[str] = (),
) -> int:
    """Runs `count` processes of the command that this process was started with, and returns the exit status of the
    service: 0 clean, 1 failed, 2 cannot start. assemble: what the supervisor itself runs. ports: as for `run`."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(_main(name, config, assemble, count, ports))


async def _main(
    name: str,
    config: ServiceConfig,
    assemble: Callable[[Supervisor], Awaitable[None]],
    count: int,
    ports: Sequence[str],
) -> int:
    log.setup(name, config.id or name, level=config.log_level, format=config.log_format)
    folder: RuntimeFolder | None = None
    try:
        folder = RuntimeFolder.make()
        supervisor = Supervisor(name, config, folder, count=count, ports=ports)
    except (ValueError, OSError) as problem:
        if folder is not None:
            folder.close()
        print(f"{name}: {problem}", file=sys.stderr)
        return 2
    log.setup(name, supervisor.id, level=config.log_level, format=config.log_format)
    stop_on_signals(supervisor)
    try:
        await supervisor.serve(assemble)
        return CANNOT_START if supervisor.cannot_start else 0
    except BaseExceptionGroup as group:
        log.get_logger().error("failed", errors=[repr(error) for error in group.exceptions])
        return 1
    finally:
        await supervisor.close()
        folder.close()


def _reserved(config: ServiceConfig, field: str) -> Reserved:
    port = getattr(config, field)
    try:
        return Reserved(config.host, port)
    except OSError:
        raise ValueError(f"cannot listen on {config.host}:{port}: is the port in use?") from None


async def _first(wanted: asyncio.Future[Any], over: asyncio.Future[int]) -> bool:
    """Whether what is wanted came, before the end or with it."""
    await asyncio.wait((wanted, over), return_when=asyncio.FIRST_COMPLETED)
    return wanted.done()
