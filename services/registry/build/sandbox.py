"""Runs one step in a process of its own, and leaves nothing of it but what it was asked for.

The process is executed anew, in a group of its own, with a scratch folder, a clean environment and the limits of
penstock/kit/confinement.py; whatever happens, it and all that it started are gone before `Sandbox` is left. A failure
is an error of penstock.errors in words for the publisher.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from penstock.errors import Cancelled, Internal, PenstockError, ResourceExhausted, from_code
from penstock.kit.confinement import Limits
from penstock.kit.log import get_logger

from .dag import Described
from .protocol import MAX_LINE, Done, Failed, Garbage, Message, Progressed, Said, Told, clean, line, read

_ROOT: Final = str(Path(__file__).resolve().parents[3])
_KEPT: Final = frozenset(("PATH", "LANG", "TZ", "LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE"))
_KEPT_PREFIXES: Final = ("LC_", "CUDA_", "NVIDIA_")
_LOOK_SECONDS: Final = 0.5
_GONE_SECONDS: Final = 5.0
STEPS: Final = "services.registry.build.steps.catalogue"

log = get_logger()


@dataclass(frozen=True, slots=True)
class Builder:
    """How steps are run. python: the interpreter, whose environment may hold other libraries than the registry's.

    hidden: folder that a step must not see. scratch: where it works, below `hidden`. confined: refuse to run a step
    that would have the network. threads: how many a library may use.
    """

    scratch: Path
    hidden: Path
    python: str = sys.executable
    limits: Limits = field(default_factory=Limits)
    confined: bool = True
    threads: int = 1
    steps: str = STEPS


@dataclass(slots=True)
class Listener:
    """Who hears what a step says. All are called on the loop's thread."""

    say: Callable[[str], None] = lambda text: None
    progress: Callable[[float], None] = lambda part: None


class Sandbox:
    """One process for one step. Open it with `opened`."""

    def __init__(self, builder: Builder, folder: Path, listener: Listener) -> None:
        self._builder = builder
        self._listener = listener
        self.folder = folder
        self.work = folder / "work"
        self._overrun = ""
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def describe(self, asked: list[tuple[str, Mapping[str, Any]]]) -> tuple[Described, ...]:
        """What these steps, each with its parameters, say of themselves. Raises what they raise."""
        steps = [{"step": name, "parameters": parameters} for name, parameters in asked]
        told = await self._exchange(line("describe", steps=steps))
        if not isinstance(told, Told) or len(told.steps) != len(asked):
            raise _broken()
        return told.steps

    async def run(
        self, step: str, parameters: Mapping[str, Any], inputs: Mapping[str, Path], secrets: Mapping[str, bytes]
    ) -> Done:
        """Runs a step that was described; its files are below `work` and not checked yet. Raises what it raises."""
        order = line(
            "run",
            step=step,
            parameters=dict(parameters),
            inputs={role: str(path) for role, path in inputs.items()},
            threads=self._builder.threads,
            secrets={name: secret.hex() for name, secret in secrets.items()},
        )
        done = await self._exchange(order)
        if not isinstance(done, Done):
            raise _broken()
        return done

    # --- how ----------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """On the loop's own thread: the kernel ends the child together with the thread that started it."""
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._output, printed = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        builder = self._builder
        settings = {
            "limits": asdict(builder.limits),
            "confined": builder.confined,
            "hidden": str(builder.hidden),
            "steps": builder.steps,
        }
        command = [builder.python, "-P", "-m", "services.registry.build.child"]
        command += [str(theirs.fileno()), str(os.getpid()), json.dumps(settings)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=printed.fileno(),
                stderr=printed.fileno(),
                pass_fds=(theirs.fileno(),),
                env=environment(os.environ, builder.threads, str(self.work)),
                cwd=self.work,
                start_new_session=True,
            )
        except OSError as problem:
            self._ours.close()
            self._output.close()
            raise Internal("the builder cannot start a step", detail=repr(problem)) from None
        finally:
            theirs.close()
            printed.close()

    async def _open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(sock=self._ours, limit=MAX_LINE)
        self._writers.append(self._writer)
        self._printed, printer = await asyncio.open_connection(sock=self._output, limit=1 << 16)
        self._writers.append(printer)
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._watch())]

    async def _exchange(self, order: bytes) -> Message:
        """Sends a line and reads until something other than a log line or progress comes."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(order)
            await self._writer.drain()
        while True:
            try:
                data = await self._reader.readline()
            except ConnectionError:
                data = b""
            except ValueError:  # a line without end
                raise _broken() from None
            if not data:
                raise await self._ended()
            try:
                message = read(data)
            except Garbage:
                raise _broken() from None
            if isinstance(message, Said):
                self._say(message.text)
            elif isinstance(message, Progressed):
                self._listener.progress(message.part)
            elif isinstance(message, Failed):
                if message.detail:
                    log.warning("build_step_failed", detail=message.detail)
                raise from_code(message.code, message.message)
            else:
                return message

    async def _ended(self) -> PenstockError:
        """Why the process closed its end without an answer."""
        while self._process.poll() is None:  # noqa: ASYNC110 - it has closed its end, so it is about to go
            await asyncio.sleep(0.01)
        return ended(self._process.returncode, self._overrun)

    async def _listen(self) -> None:
        """What it prints becomes lines of the log, whatever it is."""
        while True:
            try:
                data = await self._printed.readuntil(b"\n")
            except asyncio.IncompleteReadError as rest:
                if rest.partial:
                    self._say(rest.partial.decode(errors="backslashreplace"))
                return
            except asyncio.LimitOverrunError as long:
                data = await self._printed.read(long.consumed or 1 << 16)
            self._say(data.decode(errors="backslashreplace").rstrip())

    async def _watch(self) -> None:
        """Ends a step that writes more than it may, file by file within the limit of one."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if await asyncio.to_thread(_size, self.work) > self._builder.limits.folder_bytes:
                self._overrun = "the step wrote more than a build may"
                self._kill()
                return

    def _say(self, text: str) -> None:
        self._listener.say(clean(text, str(self.work), str(self.folder), _ROOT, sys.prefix))

    def _kill(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()

    async def _close(self) -> None:
        """Ends the process and all that it started, and lets go of everything."""
        self._kill()
        await asyncio.to_thread(self._process.wait)
        if self._tasks:
            # Everything that it started holds its end of the socket pair, so the end of that is the end of all of them;
            # and what was printed before belongs to the log.
            with contextlib.suppress(TimeoutError, OSError, ValueError):
                async with asyncio.timeout(_GONE_SECONDS):
                    while await self._reader.read(1 << 16):
                        pass
                    await asyncio.shield(self._tasks[0])
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        # Theirs where there is no transport yet; otherwise nothing.
        self._ours.close()
        self._output.close()


@contextlib.asynccontextmanager
async def opened(builder: Builder, listener: Listener) -> AsyncIterator[Sandbox]:
    """A process that waits for what to describe; it and its folder are gone afterwards.

    Raises ResourceExhausted when the body takes longer than the limits' wall_seconds.
    """
    builder.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=builder.scratch))
    sandbox = Sandbox(builder, folder, listener)
    try:
        for part in ("in", "work"):
            (folder / part).mkdir(mode=0o700)
        sandbox._start()
        try:
            async with asyncio.timeout(builder.limits.wall_seconds):
                await sandbox._open()
                yield sandbox
        except TimeoutError:
            text = f"the step took longer than the {builder.limits.wall_seconds:g} s that a build may"
            raise ResourceExhausted(text) from None
        finally:
            await _through(sandbox._close())
    finally:
        await _through(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


async def _through(work: Coroutine[Any, Any, None]) -> None:
    """Does it to its end, whoever cancels meanwhile, and only then lets the cancellation on."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def environment(parent: Mapping[str, str], threads: int, folder: str) -> dict[str, str]:
    """What a step of a process with this environment gets (pure): no token, no address, its own folder for all."""
    kept = {name: value for name, value in parent.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    count = str(max(1, threads))
    counts = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), count)
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), folder)
    path = [_ROOT, *filter(None, parent.get("PYTHONPATH", "").split(os.pathsep))]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return {**kept, **counts, **places, **offline, "PYTHONPATH": os.pathsep.join(path)}


def ended(status: int, overrun: str = "") -> PenstockError:
    """Why a process that answered nothing ended, in public words (pure). status: its exit status."""
    if overrun:
        return ResourceExhausted(overrun)
    number = -status if status < 0 else status - 128 if status > 128 else 0
    if number == signal.SIGXCPU:
        return ResourceExhausted("the step used more processor time than a build may")
    if number == signal.SIGXFSZ:
        return ResourceExhausted("the step wrote a file larger than a build may")
    if number == signal.SIGKILL:
        return ResourceExhausted("the step was killed; most likely it needed more memory or time than a build may use")
    if number:
        return Internal(
            f"the step crashed with signal {number}; most likely it needed more memory than a build may use"
        )
    return Internal(f"the step ended without a result (exit status {status})")


def stopped() -> PenstockError:
    """What a job ends with that somebody cancelled."""
    return Cancelled("the job was cancelled")


def _broken() -> PenstockError:
    return Internal("the step's process did not keep to its protocol and was ended")


def _size(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
    return total
