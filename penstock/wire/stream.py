"""ModelStreamInfer over a unary handler, the same at both hops (Triton's rules, docs/protocol.md).

Every request gets exactly one response, in request order; an error is a response and the stream goes on, unless the
client opened it with `triton_grpc_error: true`. Tensors are not decoded: a response is wrapped by its bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

from penstock import errors
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import Call, Handler

IN_FLIGHT = 64
"""Requests of one stream that may be under way; beyond it the stream is not read, which slows the sender down."""

_FINAL = oip.ModelInferResponse(parameters={"triton_final_response": oip.InferParameter(bool_param=True)})
_FINAL_BYTES = _FINAL.SerializeToString()

_log = logging.getLogger(__name__)


async def answer_stream(
    requests: AsyncIterator[bytes],
    write: Callable[[bytes], Awaitable[object]],
    handler: Handler,
    template: Call,
    timeout: float,
    ends: float,
) -> None:
    """Writes one serialised ModelStreamInferResponse per request, in request order.

    template: gives headers and caller to each call; timeout: seconds granted to each request; ends: when the stream
    itself ends, on the loop's clock. Raises the PenstockError of a request only when the client asked for that, after
    the answers before it. Cancelling cancels what is under way. A coroutine, not a generator: a generator that is left
    at its `yield` would keep its tasks.
    """
    ends_on_error = template.headers.get("triton_grpc_error", "").lower() == "true"
    answers: asyncio.Queue[asyncio.Task[bytes | errors.PenstockError] | None] = asyncio.Queue()
    free = asyncio.Semaphore(IN_FLIGHT)
    loop = asyncio.get_running_loop()
    failure: errors.PenstockError | None = None

    async def read(group: asyncio.TaskGroup) -> None:
        async for payload in requests:
            await free.acquire()
            call = replace(template, payload=payload, deadline=min(loop.time() + timeout, ends))
            answers.put_nowait(group.create_task(_answer(handler, call, ends_on_error)))
        answers.put_nowait(None)

    async with asyncio.TaskGroup() as group:
        reader = group.create_task(read(group))
        while (task := await answers.get()) is not None:
            answer = await task
            if isinstance(answer, errors.PenstockError):
                failure = answer
                break
            await write(answer)
            free.release()
        reader.cancel()
        while not answers.empty():
            if (left := answers.get_nowait()) is not None:
                left.cancel()
    if failure is not None:
        raise failure


async def _answer(handler: Handler, call: Call, ends_on_error: bool) -> bytes | errors.PenstockError:
    """Response bytes; the error itself where it is to end the stream."""
    try:
        async with asyncio.timeout_at(call.deadline) as limit:
            answer = await handler(call)
        return _wrapped(answer.payload, _FINAL_BYTES)
    except errors.PenstockError as raised:
        error = raised
    except Exception as raised:
        if isinstance(raised, TimeoutError) and limit.expired():
            error = errors.DeadlineExceeded("the deadline passed before an answer was ready")
        else:
            # Our fault in one request; the others of the stream have no part in it.
            _log.exception("a request of a stream crashed")
            error = errors.Internal("internal error; the log has it under the request id")
    return error if ends_on_error else _failed(call.payload, error)


def _wrapped(*response: bytes) -> bytes:
    """ModelStreamInferResponse{infer_response=2} around a serialised response; concatenated protobuf merges."""
    return b"".join((b"\x12", varint(sum(map(len, response))), *response))


def _failed(payload: bytes, error: errors.PenstockError) -> bytes:
    # An empty text would read as success.
    response = oip.ModelStreamInferResponse(error_message=error.message or error.code.name)
    try:
        request = oip.ModelInferRequest.FromString(payload)
    except Exception:
        # Not a message at all; there is no id to echo.
        return response.SerializeToString()
    response.infer_response.id = request.id
    response.infer_response.model_name = request.model_name
    response.infer_response.parameters["triton_final_response"].bool_param = True
    return response.SerializeToString()


def varint(number: int) -> bytes:
    """A number as protobuf writes the length of a field."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
