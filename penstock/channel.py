"""gRPC channels of the control plane: how to open one, how an error crosses it and keeps its class.

`dial` opens a channel with the project's limits; `raising()` around a call turns a gRPC failure back into the
PenstockError that the service raised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from penstock import errors
from penstock.v1 import errors_pb2

ERROR_TRAILER: Final = "penstock-error-bin"
MAX_MESSAGE_BYTES: Final = 80 << 20
"""Room for a 64 MiB body and its envelope; gRPC's own default is 4 MiB."""
MAX_TEXT_BYTES: Final = 1024
"""Of an error's text. It travels twice, in the status (percent-encoded: times three) and in the trailer (base64), and
clients refuse answers with more than 8 KiB of metadata."""

LONGEST_RETRY: Final = 86_400.0
"""Seconds of a `retry_after` at most."""

OPTIONS: Final[Sequence[tuple[str, int]]] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A silent peer is noticed after 10 + 3 s; servers of this project permit it (kit/server.py).
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def dial(
    address: str,
    *,
    token: str = "",
    credentials: grpc.ChannelCredentials | None = None,
    options: Sequence[tuple[str, int]] = (),
) -> grpc.aio.Channel:
    """Opens a channel to host:port; every call carries `authorization: Bearer <token>` when a token is given.

    credentials: for TLS, with a server that names `address`' host in its certificate; None for plain text. The caller
    closes it. Connecting happens with the first call.
    """
    interceptors: list[grpc.aio.ClientInterceptor] = []
    if token:
        header = ("authorization", f"Bearer {token}")
        interceptors = [_Bearer(header), _BearerUnaryStream(header), _BearerStreamUnary(header), _BearerStreams(header)]
    if credentials is not None:
        return grpc.aio.secure_channel(address, credentials, options=(*OPTIONS, *options), interceptors=interceptors)
    return grpc.aio.insecure_channel(address, options=(*OPTIONS, *options), interceptors=interceptors)


@contextmanager
def raising() -> Iterator[None]:
    """Turns a gRPC failure inside into a PenstockError; everything else passes."""
    try:
        yield
    except grpc.RpcError as failure:
        raise error_of(failure) from None


def error_of(failure: Any) -> errors.PenstockError:
    """The PenstockError that a failed call carries."""
    info = error_info(failure.trailing_metadata() or ())
    if info is not None:
        return carried(info)
    return errors.from_grpc(failure.code().value[0], failure.details() or "")


def carried(info: errors_pb2.ErrorInfo) -> errors.PenstockError:
    """The PenstockError that an ErrorInfo tells of."""
    after = None
    if info.HasField("retry_after"):
        after = _bounded(info.retry_after.seconds + info.retry_after.nanos / 1e9)
    return errors.from_code(info.code, info.message, field=info.field, retry_after=after)


def error_info(trailers: Any) -> errors_pb2.ErrorInfo | None:
    """The ErrorInfo among trailing metadata; None where there is none, or something else under its name."""
    for key, value in trailers:
        if key == ERROR_TRAILER:
            try:
                return errors_pb2.ErrorInfo.FromString(value)
            except DecodeError:
                return None
    return None


def error_trailer(error: errors.PenstockError, request_id: str = "") -> tuple[str, bytes]:
    """The trailing metadata entry that carries an error."""
    info = errors_pb2.ErrorInfo(
        code=error.code.name,
        message=text_of(error),
        field=_cut(error.field, 256),
        retryable=error.code.retryable,
        request_id=request_id,
    )
    if error.retry_after is not None:
        info.retry_after.FromMilliseconds(int(1000 * _bounded(error.retry_after)))
    return ERROR_TRAILER, info.SerializeToString()


def status_of(error: errors.PenstockError) -> grpc.StatusCode:
    """The gRPC status of an error."""
    return _STATUS[error.code.grpc]


def text_of(error: errors.PenstockError) -> str:
    """The public text of an error, short enough for gRPC's metadata."""
    return _cut(error.message, MAX_TEXT_BYTES)


def _bounded(seconds: float) -> float:
    return min(max(0.0, seconds), LONGEST_RETRY)


def _cut(text: str, size: int) -> str:
    encoded = text.encode(errors="replace")
    return encoded.decode() if len(encoded) <= size else encoded[: size - 3].decode(errors="ignore") + "…"


_STATUS: Final = {status.value[0]: status for status in grpc.StatusCode}


class _Authorized:
    def __init__(self, header: tuple[str, str]) -> None:
        self._header = header

    def details(self, call: Any) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(call.metadata or ()))
        metadata.add(*self._header)
        return grpc.aio.ClientCallDetails(call.method, call.timeout, metadata, call.credentials, call.wait_for_ready)


# grpc.aio sorts interceptors by class, so each of the four shapes of a call needs one of its own.
class _Bearer(_Authorized, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.details(client_call_details), request)


class _BearerUnaryStream(_Authorized, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.details(client_call_details), request)


class _BearerStreamUnary(_Authorized, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self.details(client_call_details), request_iterator)


class _BearerStreams(_Authorized, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self.details(client_call_details), request_iterator)
