"""Calls without pause while something happens to the suite, and every outcome of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from penstock import Client, errors

ONES = np.ones((1, 16), np.float32)


class Load:
    """Calls add1 without pause from a few threads until told to stop; keeps every outcome."""

    def __init__(self, client: Client, callers: int = 4) -> None:
        self._client = client
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]
        self.right = 0
        self.wrong = 0
        self.failures: list[Exception] = []
        self.slowest = 0.0

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
        wait_until(lambda: self.right > goal)

    def _call(self) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                result = self._client.infer("add1", {"x": ONES}, timeout=5)
                if (result["y"] == 2).all():
                    self.right += 1
                else:
                    self.wrong += 1
            except errors.PenstockError as error:
                self.failures.append(error)
            self.slowest = max(self.slowest, time.monotonic() - begun)


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)
