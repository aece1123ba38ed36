"""This process's certificates: proved at the start, read again when their files change.

New connections use what the files hold now; those that are there go on with what they began with, until their age ends
them. What cannot be used (half a file, a certificate whose key is still the old one) is passed over with a warning, and
what was there before stays.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from penstock.kit.config import ServiceConfig
from penstock.kit.log import get_logger

LOOK_SECONDS: Final = 1.0
"""Between two looks at the files, which only handshakes cause."""
_ROUND_TRIPS: Final = 10
"""More than any handshake takes."""

Signature = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Files:
    """Paths of PEM files, empty for none.

    cert, key: what this process shows, the chain after its own certificate; client_ca: whose certificates callers must
    have; ca: by which this process verifies whom it calls, which also means that it calls by TLS. prefix: of the
    settings that name them. serves: whether ports show cert; otherwise it is for calling alone, and need not be good
    for a server.
    """

    cert: str = ""
    key: str = ""
    client_ca: str = ""
    ca: str = ""
    prefix: str = "tls_"
    serves: bool = True

    def check(self) -> None:
        """Raises ValueError for a combination that says nothing."""
        cert, key, client_ca, ca = (f"{self.prefix}{name}" for name in ("cert", "key", "client_ca", "ca"))
        if bool(self.cert) != bool(self.key):
            raise ValueError(f"{cert} and {key} go together: set both, or neither")
        if self.client_ca and not self.cert:
            raise ValueError(f"{client_ca} asks callers for certificates, which needs TLS: set {cert} and {key}")
        if self.cert and not self.serves and not self.ca:
            raise ValueError(f"{cert} is shown over TLS, which needs CAs to verify the other side by: set {ca}")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What the files held at one moment. expires: seconds since the epoch."""

    signature: Signature
    server: dict[str, ssl.SSLContext]
    server_configuration: Any
    client: ssl.SSLContext | None
    channel: grpc.ChannelCredentials | None
    expires: float


class Certificates:
    """Raises ValueError when the files cannot be used, with words for who wrote the configuration."""

    def __init__(self, files: Files, *, clock: Callable[[], float] = time.monotonic) -> None:
        files.check()
        self._files = files
        self._clock = clock
        self._lock = threading.Lock()
        self._loaded = _load(files)
        self._next_look = clock() + LOOK_SECONDS
        self._refused: Signature | None = None

    @property
    def serves(self) -> bool:
        """Whether ports of this process speak TLS."""
        return bool(self._files.cert) and self._files.serves

    @property
    def calls(self) -> bool:
        """Whether this process calls others by TLS."""
        return bool(self._files.ca)

    @property
    def expires(self) -> float:
        """When the certificate ends, in seconds since the epoch; 0 without one."""
        return self._current().expires

    def server(self, protocol: str) -> ssl.SSLContext | None:
        """For a listener; None without a certificate. protocol: `h2` or `http/1.1`, the only one that is agreed on.

        A listener keeps its context, so this one hands each handshake to that of the certificate of the day.
        """
        if not self.serves:
            return None

        def choose(handshake: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            handshake.context = self._current().server[protocol]

        kept = _server_context(self._files, protocol)
        # Called for every ClientHello, also for one that names nobody.
        kept.sni_callback = choose
        return kept

    def client(self) -> ssl.SSLContext:
        """For a connection to another process; only where `calls`."""
        context = self._current().client
        assert context is not None
        return context

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """The same for a grpcio server, which asks at each handshake; None without a certificate."""
        if not self.serves:
            return None
        return grpc.dynamic_ssl_server_credentials(
            self._current().server_configuration,
            lambda: self._current().server_configuration,
            require_client_authentication=bool(self._files.client_ca),
        )

    def channel(self) -> grpc.ChannelCredentials | None:
        """For a channel of grpcio; None where calls are plain text.

        Another object after a change: a channel keeps what it was opened with, so that it has to be opened anew.
        """
        return self._current().channel

    def _current(self) -> _Loaded:
        with self._lock:
            now = self._clock()
            if now >= self._next_look:
                self._next_look = now + LOOK_SECONDS
                self._look()
            return self._loaded

    def _look(self) -> None:
        signature = _signature(self._files)
        if signature == self._loaded.signature:
            return
        try:
            self._loaded = _load(self._files)
        except ValueError as problem:
            if signature != self._refused:
                self._refused = signature
                get_logger().warning("certificates_not_renewed", problem=str(problem))
        else:
            get_logger().info("certificates_renewed", expires=self._loaded.expires)


def _signature(files: Files) -> Signature:
    return tuple(_stamp(path) for path in (files.cert, files.key, files.client_ca, files.ca) if path)


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _load(files: Files) -> _Loaded:
    """Reads and proves everything; raises ValueError."""
    signature = _signature(files)
    cert, key = _read(files.cert, f"{files.prefix}cert"), _read(files.key, f"{files.prefix}key")
    client_ca, ca = _read(files.client_ca, f"{files.prefix}client_ca"), _read(files.ca, f"{files.prefix}ca")
    protocols = ("h2", "http/1.1") if files.cert and files.serves else ()
    server = {protocol: _server_context(files, protocol) for protocol in protocols}
    loaded = _Loaded(
        signature=signature,
        server=server,
        server_configuration=_configuration(cert, key, client_ca),
        client=_client_context(files) if files.ca else None,
        channel=grpc.ssl_channel_credentials(ca, key, cert) if ca else None,
        expires=_proved(files) if files.cert else 0.0,
    )
    if _signature(files) != signature:
        # What was read may be of two minds; whoever asks next finds the rest.
        raise ValueError("the certificates changed while they were read")
    return loaded


def _configuration(cert: bytes | None, key: bytes | None, client_ca: bytes | None) -> Any:
    if cert is None or key is None:
        return None
    return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca)


def _read(path: str, setting: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as problem:
        raise ValueError(f"{setting}: {path} cannot be read: {problem.strerror}") from None


def _server_context(files: Files, protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # RFC 9113, 9.2.1
    context.set_alpn_protocols([protocol])
    _load_chain(context, files)
    if files.client_ca:
        _load_ca(context, files.client_ca, f"{files.prefix}client_ca")
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would outlive the CA that its caller was checked by (for hours; for minutes in TLS 1.2).
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def _client_context(files: Files) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_ca(context, files.ca, f"{files.prefix}ca")
    if files.cert:
        _load_chain(context, files)
    return context


def _load_ca(context: ssl.SSLContext, path: str, setting: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except OSError:
        raise ValueError(f"{setting}: {path} is not a PEM file of certificates") from None


def _load_chain(context: ssl.SSLContext, files: Files) -> None:
    both = f"{files.prefix}cert, {files.prefix}key"
    try:
        # An empty password, so that an encrypted key is refused rather than asked for at the terminal.
        context.load_cert_chain(files.cert, files.key, password="")
    except ssl.SSLError as problem:
        if problem.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(
                f"{files.prefix}key: {files.key} is not the key of the certificate in {files.cert}"
            ) from None
        raise ValueError(
            f"{both}: {files.cert} and {files.key} must be a certificate and its key in PEM, the key not encrypted"
        ) from None
    except OSError as problem:
        raise ValueError(f"{both}: cannot be read: {problem.strerror}") from None


def _proved(files: Files) -> float:
    """When the certificate ends. Raises ValueError when the other side, trusting it, could not accept it as a server's,
    or as a client's where it does not serve: it has expired, is not valid yet, or is for something else. A handshake
    with oneself says so."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_chain(server, files)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    judging = client if files.serves else server
    if not files.serves:
        client.verify_mode = ssl.CERT_NONE
        _load_chain(client, files)
        server.verify_mode = ssl.CERT_REQUIRED
    judging.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    judging.load_verify_locations(cafile=files.cert)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(back, there)
    answering = server.wrap_bio(there, back, server_side=True)
    try:
        for _ in range(_ROUND_TRIPS):
            for side in (asking, answering):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError as problem:
        raise ValueError(f"{files.prefix}cert: {files.cert} cannot be used: {problem.verify_message}") from None
    except ssl.SSLError as problem:
        raise ValueError(f"{files.prefix}cert: {files.cert} cannot be used: {problem.reason}") from None
    shown = (asking if files.serves else answering).getpeercert() or {}
    return float(ssl.cert_time_to_seconds(str(shown["notAfter"])))


def for_etcd(config: ServiceConfig) -> Certificates:
    """Those by which a process calls etcd. Raises ValueError as Certificates does."""
    return Certificates(
        Files(cert=config.etcd_cert, key=config.etcd_key, ca=config.etcd_ca, prefix="etcd_", serves=False)
    )
