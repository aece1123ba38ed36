"""Calls without pause while something happens to the suite, and every outcome of them."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable

import numpy as np

from penstock import Client, errors

ONES = np.ones((1, 16), np.float32)


def by_grpc(client: Client, timeout: float = 30) -> Callable[[], bool]:
    """A call of add1 by the SDK: whether the answer is right."""
    return lambda: bool((client.infer("add1", {"x": ONES}, timeout=timeout)["y"] == 2).all())


class Load:
    """Makes calls without pause, a thread for each of `calls`, until told to stop; keeps every outcome.

    right, wrong: answers. failures: what was raised instead. breaks: failures right after an answer; those that follow
    come of one connection that its library tries again after a pause.
    """

    def __init__(self, *calls: Callable[[], bool]) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(call,)) for call in calls]
        self._lock = threading.Lock()
        self.right = 0
        self.wrong = 0
        self.failures: list[Exception] = []
        self.breaks = 0

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        """Waits for so many more right answers."""
        goal = self.right + more
        wait_until(lambda: self.right >= goal)

    def _repeat(self, call: Callable[[], bool]) -> None:
        failed = False
        while not self._stop.is_set():
            try:
                right = call()
            except (errors.PenstockError, OSError, http.client.HTTPException) as failure:
                with self._lock:
                    self.failures.append(failure)
                    self.breaks += not failed
                failed = True
                time.sleep(0.02)  # a refusal comes at once: no need to fill the log with them
            else:
                with self._lock:
                    self.right += right
                    self.wrong += not right
                failed = False


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)
