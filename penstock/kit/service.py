"""The life of a service process: start, ready, drain, stop; written once.

`run` starts it: logging, tracing, the gRPC server, the admin port, then `assemble`, which is the service's own app.py.
On SIGTERM or SIGINT: not ready → drain steps in order (leave the cluster, wait for callers to move) → stop accepting,
finish what is in flight → stop the background tasks → close steps in reverse order. A second signal ends at once.
When something fails, what is in flight is cut off, but background tasks and close steps end the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from penstock import signals
from penstock.kit import heap, log, telemetry
from penstock.kit.admin import Admin
from penstock.kit.config import ServiceConfig
from penstock.kit.front import Front
from penstock.kit.identity import Authenticator, is_loopback
from penstock.kit.loop import Loop
from penstock.kit.metrics import gauge
from penstock.kit.server import add_reflection, build_server
from penstock.kit.tls import Certificates, Files
from penstock.wire.server import Limits, Method

Step = Callable[[], Awaitable[object]]

CLOSE_SECONDS = 10.0
"""What one close step may take; one that hangs must not keep the others from running."""


class Chassis:
    """What `assemble` gets: the process's name and addresses, its server, and where to hang what it runs."""

    def __init__(self, name: str, config: ServiceConfig, data_plane: Limits | None = None) -> None:
        self.name = name
        self.id = config.id or f"{name}-{uuid.uuid4().hex[:8]}"
        self.token = config.token
        self.authenticator = Authenticator(config.auth_file)
        self.authenticator.require_loopback(config.host)
        self.certificates = Certificates(
            Files(cert=config.tls_cert, key=config.tls_key, client_ca=config.tls_client_ca, ca=config.tls_ca)
        )
        self.etcd_certificates = Certificates(
            Files(cert=config.etcd_cert, key=config.etcd_key, ca=config.etcd_ca, prefix="etcd_", serves=False)
        )
        self._exposed = not is_loopback(config.host) and not self.certificates.serves
        self.server, self._health = build_server(self.authenticator)
        self._front: Front | None = None
        # Bound here, so that the address is known while assembling; it accepts once everything is in place.
        try:
            if data_plane is None:
                port = self._bind(f"{config.host}:{config.port}")
            else:
                self._front = Front(config.host, config.port, self.authenticator, data_plane, self.certificates)
                self.server.add_insecure_port(self._front.inner)
                port = self._front.port
        except (RuntimeError, OSError):
            raise ValueError(f"cannot listen on {config.host}:{config.port}: is the port in use?") from None
        try:
            self._admin = Admin(config.host, config.admin_port, self.not_ready, self.authenticator)
        except OSError as problem:
            raise ValueError(
                f"cannot listen on {config.host}:{config.admin_port} (admin): {problem.strerror}"
            ) from None
        reached_at = config.advertise or _reached_at(config.host)
        self.address = f"{reached_at}:{port}"
        self.admin_address = f"{reached_at}:{self._admin.port}"
        self._drain_seconds = config.drain_seconds
        self._ready = gauge(signals.READY)
        gauge(signals.CERTIFICATE_EXPIRES).set_function(lambda: self.certificates.expires)
        gauge(signals.ETCD_CERTIFICATE_EXPIRES).set_function(lambda: self.etcd_certificates.expires)
        self._phase = "starting"
        self._checks: dict[str, Callable[[], str | None]] = {}
        self._drain: list[Step] = []
        self._close: list[Step] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._stop = asyncio.Event()

    def _bind(self, address: str) -> int:
        credentials = self.certificates.server_credentials()
        if credentials is None:
            return self.server.add_insecure_port(address)
        return self.server.add_secure_port(address, credentials)

    def start(self, coroutine: Coroutine[Any, Any, object], name: str) -> None:
        """Runs a coroutine for the life of the process; if it raises, the process stops with an error."""
        assert self._group is not None
        self._tasks.add(self._group.create_task(self._watched(coroutine, name), name=name))

    def ready_check(self, name: str, check: Callable[[], str | None]) -> None:
        """Adds a condition of readiness: None when fulfilled, otherwise the public reason. Called from any thread."""
        self._checks[name] = check

    def on_drain(self, step: Step) -> None:
        """Adds a step between "not ready" and "stops accepting"."""
        self._drain.append(step)

    def on_close(self, step: Step) -> None:
        """Adds a step after the server has stopped."""
        self._close.append(step)

    def serve_inference(self, methods: Mapping[str, Method]) -> None:
        """Puts methods on the data plane's port; for processes that were run with `data_plane`."""
        assert self._front is not None
        self._front.add(methods)

    def listen_unix(self) -> str:
        """A unix socket beside the data plane's port, for processes of this user on this host: its path, or empty."""
        assert self._front is not None
        return self._front.listen_unix()

    def reflect(self, services: Sequence[str]) -> None:
        """Lets gRPC tools list these services."""
        add_reflection(self.server, services)

    def not_ready(self) -> str | None:
        """Why the process is not ready, None when it is."""
        if self._phase != "serving":
            return self._phase
        for name, check in list(self._checks.items()):
            if reason := check():
                return f"{name}: {reason}"
        return None

    def stop(self) -> None:
        """Begins the end, as SIGTERM does."""
        self._stop.set()

    async def serve(self, assemble: Callable[[Chassis], Awaitable[None]]) -> None:
        """The whole life. Raises a group of what assembling, a background task or a step of the end raised."""
        failures: list[Exception] = []
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._admin.start()
                self.start(self._report(), "report")
                try:
                    if await self._assembled(group, assemble):
                        await self._serve()
                    failures += await self._shut_down()
                finally:
                    for task in self._tasks:
                        task.cancel()
        finally:
            # Empty after a shutdown; after a failure, what nobody is left to serve.
            if self._front is not None:
                await self._front.close()
            await self.server.stop(None)
            for step in reversed(self._close):
                failures += await _taken(step, "close_step_failed", CLOSE_SECONDS)
        if failures:
            raise ExceptionGroup("steps of the end failed", failures)
        log.get_logger().info("stopped")

    async def _assembled(self, group: asyncio.TaskGroup, assemble: Callable[[Chassis], Awaitable[None]]) -> bool:
        """Runs `assemble`; False when a signal came first, for it may be waiting for something that is away."""

        async def assembling() -> None:
            try:
                await assemble(self)
            except Exception:
                log.get_logger().exception("start_failed")
                raise

        work, stopped = group.create_task(assembling()), group.create_task(self._stop.wait())
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        work.cancel()
        stopped.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        return not work.cancelled()

    async def _serve(self) -> None:
        if self._exposed:
            log.get_logger().warning(
                "plain_text_port", address=self.address, mend="set tls_cert and tls_key, or keep the network private"
            )
        await self.server.start()
        if self._front is not None:
            await self._front.start()
        self._phase = "serving"
        _settle_memory()
        self._tell_readiness()
        log.get_logger().info("started", address=self.address, admin=self.admin_address)
        await self._stop.wait()

    async def _shut_down(self) -> list[Exception]:
        """Every step is taken, whatever became of the ones before it; returns what they raised."""
        log.get_logger().info("draining", seconds=self._drain_seconds)
        self._phase = "draining"
        self._health.end()
        failures: list[Exception] = []
        deadline = asyncio.get_running_loop().time() + self._drain_seconds
        for step in self._drain:
            failures += await _taken(step, "drain_step_failed", deadline - asyncio.get_running_loop().time())
        if self._front is not None:
            await self._front.drain(max(1.0, deadline - asyncio.get_running_loop().time()))
        await self.server.stop(max(1.0, deadline - asyncio.get_running_loop().time()))
        return failures

    async def close(self) -> None:
        """Frees the ports."""
        await asyncio.to_thread(self._admin.stop)
        if self._front is not None:
            await self._front.close()
        await self.server.stop(0)

    async def _report(self) -> None:
        """Keeps health service and metric equal to readiness, and proves that the loop turns."""
        while True:
            self._admin.beat()
            self._tell_readiness()
            await asyncio.sleep(0.5)

    def _tell_readiness(self) -> None:
        serving = self.not_ready() is None
        self._ready.set(1 if serving else 0)
        if self._phase != "draining":
            self._health.set(serving)

    async def _watched(self, coroutine: Coroutine[Any, Any, object], name: str) -> None:
        try:
            await coroutine
        except Exception:
            log.get_logger().exception("task_failed", task=name)
            raise
        finally:
            if task := asyncio.current_task():
                self._tasks.discard(task)


async def _taken(step: Step, event: str, seconds: float) -> list[Exception]:
    """What the step raised, if anything; it is cancelled when its time is over."""
    name = getattr(step, "__qualname__", repr(step))
    limit = asyncio.timeout(max(0.0, seconds))
    try:
        async with limit:
            await step()
    except Exception as problem:
        if isinstance(problem, TimeoutError) and limit.expired():
            log.get_logger().warning("step_unfinished", step=name)
            return []
        log.get_logger().exception(event, step=name)
        return [problem]
    return []


def _settle_memory() -> None:
    """What was made at the start is there to stay, so the collector need not look at it again, nor at every few hundred
    objects of requests, which hardly ever are part of a cycle."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _reached_at(host: str) -> str:
    """Where others find a process that listens on `host`: a wildcard is no address, this machine's name is."""
    return socket.gethostname() if host in ("0.0.0.0", "::", "[::]") else host


def run(
    name: str,
    config: ServiceConfig,
    assemble: Callable[[Chassis], Awaitable[None]],
    *,
    data_plane: Limits | None = None,
) -> int:
    """Runs a service process to its end and returns its exit status: 0 clean, 1 failed, 2 cannot start.

    data_plane: what a connection may cost on a port that serves inference too (kit/front.py); None for a process of the
    control plane.
    """
    heap.keep_freed()
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(_main(name, config, assemble, data_plane))


async def _main(
    name: str, config: ServiceConfig, assemble: Callable[[Chassis], Awaitable[None]], data_plane: Limits | None
) -> int:
    log.setup(name, config.id or name, level=config.log_level, format=config.log_format)
    try:
        chassis = Chassis(name, config, data_plane)
        telemetry.setup(
            name,
            chassis.id,
            otlp_endpoint=config.otlp_endpoint,
            trace_file=config.trace_file,
            trace_ratio=config.trace_ratio,
        )
    except (ValueError, OSError) as problem:
        print(f"{name}: {problem}", file=sys.stderr)
        return 2
    log.setup(name, chassis.id, level=config.log_level, format=config.log_format)
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
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        # The next one, whichever of the two, takes the system's way out: at once.
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        chassis.stop()

    for number in numbers:
        loop.add_signal_handler(number, stop)
