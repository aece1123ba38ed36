"""The life of a service process: start, ready, drain, stop; written once.

`run` starts it: logging, tracing, the gRPC server, the admin port, then `assemble`, which is the service's own app.py.
On SIGTERM or SIGINT: not ready → drain steps in order (leave the cluster, wait for callers to move) → stop accepting,
finish what is in flight → stop the background tasks → close steps in reverse order. A second signal ends at once.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from grpc_health.v1 import health_pb2

from penstock import signals
from penstock.kit import log, telemetry
from penstock.kit.admin import Admin
from penstock.kit.config import ServiceConfig
from penstock.kit.identity import Authenticator
from penstock.kit.metrics import gauge
from penstock.kit.server import add_reflection, build_server

Step = Callable[[], Awaitable[object]]


class Chassis:
    """What `assemble` gets: the process's name and addresses, its server, and where to hang what it runs."""

    def __init__(self, name: str, config: ServiceConfig) -> None:
        self.name = name
        self.id = config.id or f"{name}-{uuid.uuid4().hex[:8]}"
        self.token = config.token
        self.authenticator = Authenticator(config.auth_file)
        self.authenticator.require_loopback(config.host)
        self.server, self._health = build_server(self.authenticator)
        # Bound here, so that the address is known while assembling; it accepts once everything is in place.
        try:
            port = self.server.add_insecure_port(f"{config.host}:{config.port}")
            self._admin = Admin(config.host, config.admin_port, self.not_ready)
        except (RuntimeError, OSError) as problem:
            raise ValueError(
                f"cannot listen on {config.host}:{config.port} and admin port {config.admin_port}: {problem}"
            ) from None
        self.address = f"{config.host}:{port}"
        self.admin_address = f"{config.host}:{self._admin.port}"
        self._drain_seconds = config.drain_seconds
        self._phase = "starting"
        self._checks: dict[str, Callable[[], str | None]] = {}
        self._drain: list[Step] = []
        self._close: list[Step] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._group: asyncio.TaskGroup | None = None
        self._stop = asyncio.Event()

    def start(self, coroutine: Coroutine[Any, Any, object], name: str) -> None:
        """Runs a coroutine for the life of the process; if it raises, the process stops with an error."""
        assert self._group is not None
        self._tasks.append(self._group.create_task(self._watched(coroutine, name), name=name))

    def ready_check(self, name: str, check: Callable[[], str | None]) -> None:
        """Adds a condition of readiness: None when fulfilled, otherwise the public reason. Called from any thread."""
        self._checks[name] = check

    def on_drain(self, step: Step) -> None:
        """Adds a step between "not ready" and "stops accepting"."""
        self._drain.append(step)

    def on_close(self, step: Step) -> None:
        """Adds a step after the server has stopped."""
        self._close.append(step)

    def reflect(self, services: Sequence[str]) -> None:
        """Lets gRPC tools list these services."""
        add_reflection(self.server, services)

    def not_ready(self) -> str | None:
        """Why the process is not ready, None when it is."""
        if self._phase != "serving":
            return self._phase
        for name, check in self._checks.items():
            if reason := check():
                return f"{name}: {reason}"
        return None

    def stop(self) -> None:
        """Begins the end, as SIGTERM does."""
        self._stop.set()

    async def serve(self, assemble: Callable[[Chassis], Awaitable[None]]) -> None:
        """The whole life. Raises what a background task raised."""
        logger = log.get_logger()
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await assemble(self)
                await self.server.start()
                self._admin.start()
                self.start(self._report(), "report")
                self._phase = "serving"
                logger.info("started", address=self.address, admin=self.admin_address)
                await self._stop.wait()
                await self._shut_down()
            finally:
                for task in self._tasks:
                    task.cancel()
        for step in reversed(self._close):
            await step()
        logger.info("stopped")

    async def _shut_down(self) -> None:
        logger = log.get_logger()
        logger.info("draining", seconds=self._drain_seconds)
        self._phase = "draining"
        await self._set_health()
        deadline = asyncio.get_running_loop().time() + self._drain_seconds
        try:
            async with asyncio.timeout_at(deadline):
                for step in self._drain:
                    await step()
        except TimeoutError:
            logger.warning("drain_unfinished", seconds=self._drain_seconds)
        await self.server.stop(max(1.0, deadline - asyncio.get_running_loop().time()))

    async def close(self) -> None:
        """Frees the ports."""
        await asyncio.to_thread(self._admin.stop)
        await self.server.stop(0)

    async def _report(self) -> None:
        """Keeps health service and metric equal to readiness, and proves that the loop turns."""
        ready = gauge(signals.READY)
        while True:
            self._admin.beat()
            ready.set(0 if self.not_ready() else 1)
            await self._set_health()
            await asyncio.sleep(0.5)

    async def _set_health(self) -> None:
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set("", not_serving if self.not_ready() else serving)

    async def _watched(self, coroutine: Coroutine[Any, Any, object], name: str) -> None:
        try:
            await coroutine
        except Exception:
            log.get_logger().exception("task_failed", task=name)
            raise


def run(name: str, config: ServiceConfig, assemble: Callable[[Chassis], Awaitable[None]]) -> int:
    """Runs a service process to its end and returns its exit status: 0 clean, 1 failed, 2 cannot start."""
    return asyncio.run(_main(name, config, assemble))


async def _main(name: str, config: ServiceConfig, assemble: Callable[[Chassis], Awaitable[None]]) -> int:
    log.setup(name, config.id or name, level=config.log_level, format=config.log_format)
    try:
        chassis = Chassis(name, config)
    except (ValueError, OSError) as problem:
        print(f"{name}: {problem}", file=sys.stderr)
        return 2
    log.setup(name, chassis.id, level=config.log_level, format=config.log_format)
    telemetry.setup(
        name,
        chassis.id,
        otlp_endpoint=config.otlp_endpoint,
        trace_file=config.trace_file,
        trace_ratio=config.trace_ratio,
    )
    _install_signals(chassis)
    try:
        await chassis.serve(assemble)
        return 0
    except BaseExceptionGroup as group:
        log.get_logger().error("failed", errors=[repr(error) for error in group.exceptions])
        return 1
    finally:
        await chassis.close()
        telemetry.shutdown()


def _install_signals(chassis: Chassis) -> None:
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        # The next one takes the default way out: at once.
        loop.remove_signal_handler(number)
        chassis.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
