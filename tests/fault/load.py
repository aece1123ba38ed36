"""Open-loop load as a process of its own: requests go at Poisson times whatever the answers do.

`python -m tests.fault.load <gateway>[,<gateway>…] <model> <rate> <seed> <timeout> <retries>`

The model is tests.harness.models.add_one. Every request carries its number in all of its 16 values, so that an answer
that belongs to another request is seen. One line of JSON for each request sent and for each time that the client is
told of an end; closing stdin ends the sending, and the process when all have ended or their deadlines are a second
over. Times are time.monotonic(), which all processes of a machine share. A request whose gateway is lost or refuses is
tried again at the next gateway, `retries` times.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import struct
import sys
import time
from typing import Any

from penstock.errors import DeadlineExceeded, PenstockError, ResourceExhausted, Unavailable
from penstock.kit.loop import Loop
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import REQUEST_ID, WORKER, Answer
from penstock.wire.client import Peer, write_timeout
from tests.fault.ledger import OK, WRONG

VALUES = struct.Struct("<16f")
GRACE = 1.0
"""Seconds after its deadline in which a request must have ended."""
PAUSE = 0.02
"""Seconds before another try."""


def request(model: str, number: int) -> bytes:
    """The message of one request."""
    message = oip.ModelInferRequest(model_name=model, id=str(number))
    message.inputs.add(name="x", datatype="FP32", shape=[1, 16])
    message.raw_input_contents.append(VALUES.pack(*[float(number)] * 16))
    return message.SerializeToString()


def outcome(number: int, answer: Answer | None, problem: BaseException | None) -> str:
    """The word for an end."""
    if answer is not None:
        got = oip.ModelInferResponse.FromString(bytes(answer.payload)).raw_output_contents
        return OK if list(got) == [VALUES.pack(*[number + 1.0] * 16)] else WRONG
    return problem.code.name if isinstance(problem, PenstockError) else type(problem).__name__


class Client:
    """Sends and tells."""

    def __init__(self, gateways: list[str], model: str, timeout: float, retries: int) -> None:
        self._peers = [Peer(gateway) for gateway in gateways]
        self._model, self._timeout, self._retries = model, timeout, retries

    async def one(self, number: int) -> None:
        """A request from its first to its last attempt."""
        tell(id=number, sent=time.monotonic())
        deadline = asyncio.get_running_loop().time() + self._timeout
        why = ""
        for attempt in range(1 + self._retries):
            peer = self._peers[(number + attempt) % len(self._peers)]
            answer, problem = await self._attempt(peer, number, deadline)
            if attempt < self._retries and isinstance(problem, Unavailable | ResourceExhausted):
                why += f"{peer.address}: {problem}; "
                await asyncio.sleep(PAUSE)
                continue
            tell_end(number, answer, problem, peer.address, f"{why}{peer.address}: {problem}")
            return

    async def _attempt(self, peer: Peer, number: int, deadline: float) -> tuple[Answer | None, BaseException | None]:
        loop = asyncio.get_running_loop()
        end: asyncio.Future[tuple[Answer | None, BaseException | None]] = loop.create_future()

        def done(answer: Answer | None, problem: BaseException | None) -> None:
            if end.done():
                tell_end(number, answer, problem, peer.address)  # a second end: the ledger calls it duplicated
            else:
                end.set_result((answer, problem))

        try:
            while True:
                left = deadline - loop.time()
                if left <= 0:
                    return None, DeadlineExceeded("not sent in time")
                headers = [("grpc-timeout", write_timeout(left)), (REQUEST_ID, f"fault-{number}")]
                message = request(self._model, number)
                sent = peer.begin("ModelInfer", message, constant=(), varying=headers, done=done)
                if sent is not None:
                    break
                await peer.unary("ServerLive", b"", deadline=deadline, headers={})  # connects
        except PenstockError as problem:
            return None, problem
        try:
            async with asyncio.timeout_at(deadline + GRACE):
                return await end
        except TimeoutError:
            sent.cancel()
            raise Lost from None

    async def close(self) -> None:
        for peer in self._peers:
            await peer.close()


class Lost(Exception):
    """A request had no end a second after its deadline."""


def tell(**what: Any) -> None:
    """One line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def tell_end(number: int, answer: Answer | None, problem: BaseException | None, gateway: str, why: str = "") -> None:
    """One line for an end. gateway: who told it; why: what each attempt met, when it is a failure."""
    worker = answer.trailers.get(WORKER, "") if answer is not None else ""
    word, why = outcome(number, answer, problem), why if problem is not None else ""
    tell(id=number, ended=time.monotonic(), outcome=word, gateway=gateway, worker=worker, why=why)


async def run(gateways: list[str], model: str, rate: float, seed: int, timeout: float, retries: int) -> None:
    """Sends until stdin is closed."""
    chance = random.Random(seed)
    client = Client(gateways, model, timeout, retries)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), stop.set)
    tasks: set[asyncio.Task[None]] = set()
    at, number = loop.time(), 0
    while not stop.is_set():
        at += chance.expovariate(rate)
        try:
            async with asyncio.timeout_at(at):
                await stop.wait()
        except TimeoutError:
            task = asyncio.create_task(client.one(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
    loop.remove_reader(sys.stdin.fileno())
    # A request that is lost has told no end: that is how the ledger knows.
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()


def main(arguments: list[str]) -> None:
    """The command."""
    gateways, model, rate, seed, timeout, retries = arguments
    gc.disable()  # or it would at times tell a pause of its own as one of the service's
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(run(gateways.split(","), model, float(rate), int(seed), float(timeout), int(retries)))


if __name__ == "__main__":
    main(sys.argv[1:])
