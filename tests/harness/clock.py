"""A wall clock that can be set for one process: a small library that is loaded before libc, built where a compiler is.

    clock = Clock(folder)
    run(["env", *clock.environment(), "python", ...])
    clock.shift(-3600)      # seconds; the monotonic clock goes on as it is

Only what asks libc is fooled: Python, gRPC, SQLite; not Go, whose programs ask the kernel themselves.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

SOURCE: Final = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long long *shift;

__attribute__((constructor)) static void find_shift(void) {
  const char *path = getenv("WALL_CLOCK_SHIFT");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *there = mmap(0, sizeof(long long), PROT_READ, MAP_SHARED, file, 0);
  if (there != MAP_FAILED) shift = there;
  close(file);
}

int clock_gettime(clockid_t id, struct timespec *now) {
  int result = syscall(SYS_clock_gettime, id, now);
  if (!result && shift && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += *shift;
  return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec precise;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &precise)) return -1;
  now->tv_sec = precise.tv_sec;
  now->tv_usec = precise.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *out) {
  struct timespec precise;
  clock_gettime(CLOCK_REALTIME, &precise);
  if (out) *out = precise.tv_sec;
  return precise.tv_sec;
}
"""


class NoCompiler(Exception):
    """There is no cc here."""


class Clock:
    """The clock of the processes that are started with its environment. Raises NoCompiler."""

    def __init__(self, folder: Path) -> None:
        self._library, self._file = folder / "clock.so", folder / "shift"
        compiler = shutil.which("cc")
        if compiler is None:
            raise NoCompiler("no C compiler (cc) is installed")
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / "clock.c"
        source.write_text(SOURCE)
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", self._library, source], check=True)
        self._file.write_bytes(struct.pack("q", 0))

    def environment(self) -> list[str]:
        """Words for `env`."""
        return [f"LD_PRELOAD={self._library}", f"WALL_CLOCK_SHIFT={self._file}"]

    def shift(self, seconds: int) -> None:
        """The clock is so much ahead of the machine's from now on, behind if negative."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("q", seconds))
