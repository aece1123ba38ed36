"""ModelStreamInfer over a unary handler, the same at both hops (Triton's rules, docs/protocol.md).

Every request gets exactly one response, in request order; an error is a response and the stream goes on, unless the
client opened it with `triton_grpc_error: true`. Tensors are not decoded: a response is wrapped by its bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

from penstock import errors
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import Call, Handler

IN_FLIGHT = 64
"""Requests of one stream that may be under way; beyond it the stream is not read, which slows the sender down."""

_FINAL = oip.ModelInferResponse(parameters={"triton_final_response": oip.InferParameter(bool_param=True)})
_FINAL_BYTES = _FINAL.SerializeToString()


async def stream_answers(
    requests: AsyncIterator[bytes], handler: Handler, template: Call, timeout: float
) -> AsyncIterator[bytes]:
    """Serialised ModelStreamInferResponses, one per request, in order.

    template: gives headers and caller to each call; timeout: seconds granted to each request. Raises the PenstockError
    of a request only when the client asked for that. Leaving the iterator cancels what is under way.
    """
    ends_on_error = template.headers.get("triton_grpc_error", "").lower() == "true"
    answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(IN_FLIGHT)
    loop = asyncio.get_running_loop()

    async def read(group: asyncio.TaskGroup) -> None:
        async for payload in requests:
            call = replace(template, payload=payload, deadline=loop.time() + timeout)
            await answers.put(group.create_task(_answer(handler, call, ends_on_error)))
        await answers.put(None)

    with _unwrapped():
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(read(group))
            try:
                while (task := await answers.get()) is not None:
                    yield await task
            finally:
                reader.cancel()
                while not answers.empty():
                    if (left := answers.get_nowait()) is not None:
                        left.cancel()


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """The one PenstockError of a task group, without the group around it."""
    try:
        yield
    except BaseExceptionGroup as group:
        for error in group.exceptions:
            if isinstance(error, errors.PenstockError):
                raise error from None
        raise


async def _answer(handler: Handler, call: Call, ends_on_error: bool) -> bytes:
    try:
        async with asyncio.timeout_at(call.deadline):
            answer = await handler(call)
        return _wrapped(answer.payload + _FINAL_BYTES)
    except TimeoutError:
        error: errors.PenstockError = errors.DeadlineExceeded("the deadline passed before an answer was ready")
    except errors.PenstockError as raised:
        error = raised
    if ends_on_error:
        raise error
    return _failed(call.payload, error)


def _wrapped(response: bytes) -> bytes:
    """ModelStreamInferResponse{infer_response=2} around a serialised response; concatenated protobuf merges."""
    return b"\x12" + _varint(len(response)) + response


def _failed(payload: bytes, error: errors.PenstockError) -> bytes:
    response = oip.ModelStreamInferResponse(error_message=error.message)
    try:
        request = oip.ModelInferRequest.FromString(payload)
    except Exception:
        # Not a message at all; there is no id to echo.
        return response.SerializeToString()
    response.infer_response.id = request.id
    response.infer_response.model_name = request.model_name
    response.infer_response.parameters["triton_final_response"].bool_param = True
    return response.SerializeToString()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
