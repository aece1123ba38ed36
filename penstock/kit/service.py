"""A service process: what every one of them has, and how it is run.

`run` starts it: logging, tracing, the gRPC server, the admin port, then `assemble`, which is the service's own app.py.
How it lives and ends says penstock/kit/life.py.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from penstock import signals
from penstock.kit import heap, log, login, telemetry
from penstock.kit.admin import Admin, Verdict
from penstock.kit.config import ServiceConfig
from penstock.kit.front import Front
from penstock.kit.identity import Authenticator, is_loopback
from penstock.kit.life import Life, stop_on_signals
from penstock.kit.loop import Loop
from penstock.kit.metrics import exposition, gauge
from penstock.kit.place import COUNTED, MADE, READY, Place, take_place
from penstock.kit.ports import reached_at
from penstock.kit.server import add_reflection, build_server
from penstock.kit.tls import Certificates, Files, for_etcd
from penstock.wire.server import Limits, Method

_ASK_SECONDS: Final = 0.02


class Chassis(Life):
    """What `assemble` gets: the process's name and addresses, its server, and where to hang what it runs.

    sockets: by config field, bound and not listening: those of `ports`. runtime_dir: a private folder, shared by the
    processes of the service and gone after them. share: how many these are.
    """

    def __init__(
        self,
        name: str,
        config: ServiceConfig,
        place: Place,
        data_plane: Limits | None = None,
        ports: Sequence[str] = (),
    ) -> None:
        super().__init__(config.drain_seconds)
        self.name = name
        self.id = place.id or config.id or f"{name}-{uuid.uuid4().hex[:8]}"
        self.token = config.token
        self.runtime_dir: Path = place.folder.path
        self.share = place.share
        self.authenticator = Authenticator(config.auth_file)
        self.authenticator.require_loopback(config.host)
        self.certificates = Certificates(
            Files(cert=config.tls_cert, key=config.tls_key, client_ca=config.tls_client_ca, ca=config.tls_ca)
        )
        self.etcd_certificates = for_etcd(config)
        self.etcd_login = login.for_etcd(config)
        self._exposed = not is_loopback(config.host) and not self.certificates.serves
        self.server, self._health = build_server(self.authenticator)
        self._place = place
        self._front: Front | None = None
        # Bound here, so that the addresses are known while assembling; they accept once everything is in place.
        self.sockets = {field: _bound(place, config, field) for field in ports}
        if data_plane is None:
            port = self._control_port(config)
        else:
            self._front = Front(
                _bound(place, config, "port"),
                place.private("control"),
                self.authenticator,
                data_plane,
                self.certificates,
                share=place.share,
            )
            self.server.add_insecure_port(self._front.inner)
            port = self._front.port
        self._admin = self._make_admin(config)
        reached = reached_at(config.host, config.advertise)
        self.address = f"{reached}:{port}"
        self.admin_address = f"unix:{place.private('admin')}" if self.supervised else f"{reached}:{self._admin.port}"
        self._ready = gauge(signals.READY)
        gauge(signals.CERTIFICATE_EXPIRES).set_function(lambda: self.certificates.expires)
        gauge(signals.ETCD_CERTIFICATE_EXPIRES).set_function(lambda: self.etcd_certificates.expires)
        self._checks: dict[str, Callable[[], str | None]] = {}
        self._beside: list[tuple[Callable[[], Coroutine[Any, Any, object]], str]] = []
        self._serving: list[asyncio.Task[Any]] = []

    def _control_port(self, config: ServiceConfig) -> int:
        address, credentials = f"{config.host}:{config.port}", self.certificates.server_credentials()
        try:
            if credentials is None:
                return self.server.add_insecure_port(address)
            return self.server.add_secure_port(address, credentials)
        except RuntimeError:
            raise _in_use(config.host, config.port) from None

    def _make_admin(self, config: ServiceConfig) -> Admin:
        def ready() -> Verdict:
            return Verdict(self.not_ready())

        if self.supervised:
            return Admin(self._place.private("admin"), ready, None)
        try:
            return Admin((config.host, config.admin_port), ready, self.authenticator)
        except OSError as problem:
            raise ValueError(
                f"cannot listen on {config.host}:{config.admin_port} (admin): {problem.strerror}"
            ) from None

    @property
    def supervised(self) -> bool:
        """Whether it is one of several processes, whose supervisor speaks for all of them."""
        return self._place.line is not None

    @property
    def front(self) -> Front:
        """The data plane's port; for processes that were run with `data_plane`."""
        assert self._front is not None
        return self._front

    def ready_check(self, name: str, check: Callable[[], str | None]) -> None:
        """Adds a condition of readiness: None when fulfilled, otherwise the public reason. Called from any thread."""
        self._checks[name] = check

    def serve_inference(self, methods: Mapping[str, Method]) -> None:
        """Puts methods on the data plane's port; for processes that were run with `data_plane`."""
        self.front.add(methods)

    def listen_unix(self) -> str:
        """A unix socket beside the data plane's port, for processes of this user on this host: its path, or empty."""
        return self.front.listen_unix(self.runtime_dir)

    def serve_beside(self, serve: Callable[[], Coroutine[Any, Any, object]], name: str) -> None:
        """Adds a server on a port of its own: it begins when the others do, and when it is cancelled it takes no new
        connection and lets answers finish."""
        self._beside.append((serve, name))

    def reflect(self, services: Sequence[str]) -> None:
        """Lets gRPC tools list these services."""
        add_reflection(self.server, services)

    def not_ready(self) -> str | None:
        """Why the process is not ready, None when it is."""
        return self.phase if self.phase != "serving" else self._unmet()

    def _unmet(self) -> str | None:
        for name, check in list(self._checks.items()):
            if reason := check():
                return f"{name}: {reason}"
        return None

    async def _met(self) -> None:
        # Conditions are questions, asked from any thread; nothing tells when an answer changes.
        while True:
            if (reason := self._unmet()) is None:
                return
            self.phase = reason
            await asyncio.sleep(_ASK_SECONDS)

    def begin(self) -> None:
        """Answers on the admin port, and follows the supervisor if there is one."""
        self._admin.start()
        self.start(self._report(), "report")
        if self._place.line is not None:
            self.start(self._follow(), "supervisor")

    async def open(self) -> None:
        """Takes requests. One of several processes waits until it is ready, since others can serve until then."""
        if self._exposed:
            log.get_logger().warning(
                "plain_text_port", address=self.address, mend="set tls_cert and tls_key, or keep the network private"
            )
        await self.server.start()
        if self.supervised:
            await self._met()
        if self._front is not None:
            await self._front.start()
        self._serving = [self.start(serve(), name) for serve, name in self._beside]

    def opened(self) -> None:
        """Says that requests are taken, without waiting for the next report."""
        _settle_memory()
        self._tell_readiness()
        if self._place.line is not None:
            self.start(self._place.line.say(READY), "ready")

    def leave(self) -> None:
        """Health says so before anything else."""
        self._health.end()

    async def drain(self, seconds: float) -> None:
        """All servers at the same time."""
        end = asyncio.get_running_loop().time() + seconds
        for task in self._serving:
            task.cancel()
        if self._front is not None:
            await self._front.drain(seconds)
        left = max(1.0, end - asyncio.get_running_loop().time())
        if self._serving:
            await asyncio.wait(self._serving, timeout=left)
        await self.server.stop(max(1.0, end - asyncio.get_running_loop().time()))

    async def cut_off(self) -> None:
        """Ends the servers."""
        if self._front is not None:
            await self._front.close()
        await self.server.stop(None)

    async def close(self) -> None:
        """Frees the ports, after the supervisor has got the last counts."""
        if self._place.line is not None:
            await self._place.line.say(COUNTED, text=exposition().decode())
        await asyncio.to_thread(self._admin.stop)
        if self._front is not None:
            await self._front.close()
        for each in self.sockets.values():
            each.close()
        await self.server.stop(0)

    async def _report(self) -> None:
        """Keeps health service and metric equal to readiness, and proves that the loop turns."""
        while True:
            self._admin.beat()
            self._tell_readiness()
            await asyncio.sleep(0.5)

    async def _follow(self) -> None:
        assert self._place.line is not None
        await self._place.line.broken()
        log.get_logger().warning("supervisor_gone")
        self.stop()

    def _tell_readiness(self) -> None:
        serving = self.not_ready() is None
        self._ready.set(1 if serving else 0)
        if self.phase != "draining":
            self._health.set(serving)


def _settle_memory() -> None:
    """What was made at the start is there to stay, so the collector need not look at it again, nor at every few hundred
    objects of requests, which hardly ever are part of a cycle."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _bound(place: Place, config: ServiceConfig, field: str) -> socket.socket:
    host, port = config.host, getattr(config, field)
    try:
        return place.socket(field, host, port)
    except OSError:
        raise _in_use(host, port) from None


def _in_use(host: str, port: int) -> ValueError:
    return ValueError(f"cannot listen on {host}:{port}: is the port in use?")


def run(
    name: str,
    config: ServiceConfig,
    assemble: Callable[[Chassis], Awaitable[None]],
    *,
    data_plane: Limits | None = None,
    ports: Sequence[str] = (),
) -> int:
    """Runs a service process to its end and returns its exit status: 0 clean, 1 failed, 2 cannot start.

    data_plane: what a connection may cost on a port that serves inference too (kit/front.py); None for a process of the
    control plane. ports: config fields of further ports, to be bound for `Chassis.sockets`.
    """
    heap.keep_freed()
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(_main(name, config, assemble, data_plane, ports))


async def _main(
    name: str,
    config: ServiceConfig,
    assemble: Callable[[Chassis], Awaitable[None]],
    data_plane: Limits | None,
    ports: Sequence[str],
) -> int:
    log.setup(name, config.id or name, level=config.log_level, format=config.log_format)
    place: Place | None = None
    try:
        place = take_place()
        chassis = Chassis(name, config, place, data_plane, ports)
        telemetry.setup(
            name,
            chassis.id,
            otlp_endpoint=config.otlp_endpoint,
            trace_file=config.trace_file,
            trace_ratio=config.trace_ratio,
        )
    except (ValueError, OSError) as problem:
        if place is not None:
            place.leave()
        print(f"{name}: {problem}", file=sys.stderr)
        return 2
    log.setup(name, chassis.id, level=config.log_level, format=config.log_format)
    stop_on_signals(chassis)
    try:
        if place.line is not None:
            await place.line.say(MADE)
        await chassis.serve(assemble)
        return 0
    except BaseExceptionGroup as group:
        log.get_logger().error("failed", errors=[repr(error) for error in group.exceptions])
        return 1
    finally:
        await chassis.close()
        telemetry.shutdown()
        place.leave()
