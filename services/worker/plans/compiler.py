"""The worker's side of child.py: one compile at a time, in a folder that is gone afterwards, killed when it is late.

What the process answers is checked like anything that read a stranger's file: names of its files are ours, links are
not followed, and the header that is signed must be one that a loader takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from penstock.compiling.builders import builder
from penstock.errors import Internal, PenstockError, ResourceExhausted, Unsupported, from_code
from penstock.kit.confinement import Limits
from penstock.kit.log import get_logger
from penstock.plans import BUILDERS, Profile

from ..engines.trt.matching import Target
from ..host.process import Process, end, environment
from ..tasks import in_thread
from . import child
from .wanted import Wanted, capability

_MAX_ANSWER: Final = 1 << 20
_SAID: Final = "said"
_MODULE: Final = "services.worker.plans.child"

log = get_logger()


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a compile left. The files are gone with its folder.

    precision, profiles: as in PlanHeader. seconds: that the builder took.
    """

    folder: Path
    precision: str
    profiles: tuple[Profile, ...]
    seconds: float

    @contextlib.contextmanager
    def plan(self) -> Iterator[tuple[BinaryIO, int]]:
        """The plan's file and its size in bytes. Raises Internal where there is none."""
        with _opened(self.folder / child.PLAN) as file:
            yield file, os.fstat(file.fileno()).st_size

    def timing(self) -> bytes:
        """What the builder measured; empty where it keeps nothing."""
        with _opened(self.folder / child.TIMING) as file:
            return file.read()


class Compiler:
    """Compiles plans on this worker.

    Args:
        folder: the worker's own, which the process does not see; scratch folders lie in it.
        seconds: how long one compile may take. memory_bytes: of data that it may have. threads: of its libraries.
        names: what CUDA calls a device, where that is not its index.
    """

    def __init__(
        self, folder: Path, *, seconds: float, memory_bytes: int, threads: int, names: Mapping[int, str]
    ) -> None:
        self._folder = folder
        self._place = folder / "compiling"
        self._seconds = seconds
        self._threads = threads
        self._names = names
        self._limits = Limits(
            memory_bytes=memory_bytes,
            cpu_seconds=int(seconds) * (os.cpu_count() or 1) + 1,
            wall_seconds=seconds,
            file_bytes=max(memory_bytes, 1 << 30),
            # Where there are no namespaces the kernel counts every thread of this user, those of engines too.
            processes=1 << 16,
            addresses=False,
        )
        # The builder measures kernels: two at the same time would measure each other.
        self._turn = asyncio.Lock()

    def open(self) -> None:
        """Removes what a killed worker has left. Blocks."""
        shutil.rmtree(self._place, ignore_errors=True)

    @property
    def busy(self) -> bool:
        """Whether a compile is under way, so that another waits."""
        return self._turn.locked()

    @property
    def turn(self) -> asyncio.Lock:
        """To be held while `compiled` is open."""
        return self._turn

    @contextlib.asynccontextmanager
    async def compiled(
        self, model: Path, wanted: Wanted, target: Target, devices: Sequence[int], timing: Path
    ) -> AsyncIterator[Compiled]:
        """The plan of an ONNX file for a target. timing: what was measured before, if there is such a file.

        Cancelled, it leaves neither a process nor a file. Raises InvalidManifest where the model cannot be compiled,
        ResourceExhausted where a limit ended it, Unsupported where the builder is another one, Internal.
        """
        scratch = await in_thread(self._scratch, model, _order(wanted, target), timing)
        try:
            answer = await self._run(scratch, devices)
            if answer.get("version") != target.version:
                raise Unsupported(f"this worker's builder is {target.builder} {answer.get('version')!s:.40}")
            yield _checked(scratch, answer)
        finally:
            await in_thread(shutil.rmtree, scratch, True)

    def _scratch(self, model: Path, order: Mapping[str, Any], timing: Path) -> Path:
        self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=self._place))
        # Copies: a process of this user could write to a file of ours that it can open.
        shutil.copyfile(model, scratch / child.SOURCE)
        if timing.is_file():
            shutil.copyfile(timing, scratch / child.TIMING)
        (scratch / child.ORDER).write_text(json.dumps(order))
        return scratch

    async def _run(self, scratch: Path, devices: Sequence[int]) -> dict[str, Any]:
        """The answer of the process; raises what it says, or why it ended without one."""
        process = self._start(scratch, devices)
        late = False
        try:
            async with asyncio.timeout(self._seconds):
                await process.wait()
        except TimeoutError:
            late = True
        finally:
            await end(process, 0.0)
        said = await in_thread(_tail, scratch / _SAID)
        if late:
            limit = f"the {self._seconds:g} s of compile_seconds"
            raise ResourceExhausted(f"it took longer than {limit}; raise that, or have a build compile it", detail=said)
        if process.status != 0:
            raise ended(process.status, said)
        answer = await in_thread(_answer, scratch / child.ANSWER)
        if answer.get("open"):
            log.warning("compile_not_confined", reason=f"{answer['open']} open to it"[:500])
        if "error" in answer:
            raise from_code(
                str(answer.get("code")), str(answer["error"])[:500], detail=f"{answer.get('detail')} {said}"
            )
        return answer

    def _start(self, scratch: Path, devices: Sequence[int]) -> Process:
        """On the loop's own thread: the kernel ends the child together with the thread that started it."""
        settings = json.dumps({"hidden": str(self._folder), "limits": asdict(self._limits)})
        named = [self._names.get(index, index) for index in devices]
        places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), str(scratch))
        with (scratch / _SAID).open("wb") as said:
            started = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(os.getpid()), settings],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=scratch,
                env={**environment(os.environ, self._threads, named), **places},
                start_new_session=True,
            )
        return Process(started)


def ended(status: int, detail: str = "") -> PenstockError:
    """Why a compiler ended without an answer, in public words (pure). status: its exit status."""
    number = -status if status < 0 else status - 128 if status > 128 else 0
    if number == signal.SIGXCPU:
        return ResourceExhausted("it used more processor time than compile_seconds allows; raise that", detail=detail)
    if number:
        return ResourceExhausted(
            f"the compiler was ended by signal {number}; most likely it needed more memory than compile_memory_bytes "
            "allows or the machine has; raise that, or have a build compile it",
            detail=detail,
        )
    return Internal(f"the compiler ended without an answer (exit status {status})", detail=detail)


def missing() -> str:
    """Why nothing can be compiled on this worker; empty where it can. Imports no builder."""
    try:
        builder()
    except Unsupported:
        return "no TensorRT builder is installed on it"
    if importlib.util.find_spec("onnx") is None:
        return "onnx is not installed on it (install penstock[worker-tensorrt])"
    return ""


def _order(wanted: Wanted, target: Target) -> dict[str, Any]:
    package = next((package for package, name in BUILDERS.items() if name == target.builder), "")
    document = asdict(wanted)
    del document["source"]
    return {**document, "package": package, "capability": capability(target)}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file that the process has left: a plain one, and no way to another."""
    try:
        file: BinaryIO = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise Internal("the compiler did not leave what it should", detail=repr(error)) from None
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Internal("the compiler did not leave what it should", detail=f"{path.name} is no file")
        yield file


def _answer(path: Path) -> dict[str, Any]:
    with _opened(path) as file:
        text = file.read(_MAX_ANSWER + 1)
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or len(text) > _MAX_ANSWER:
        raise Internal("the compiler's answer cannot be read")
    return answer


def _checked(scratch: Path, answer: Mapping[str, Any]) -> Compiled:
    try:
        made = [{str(name): _shapes(three) for name, three in one.items()} for one in answer["profiles"]]
        return Compiled(scratch, str(answer["precision"]), tuple(made), float(answer["seconds"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Internal("the compiler's answer cannot be read") from None


def _shapes(three: Any) -> Any:
    low, best, high = (tuple(map(int, shape)) for shape in three)
    return low, best, high


def _tail(path: Path) -> str:
    with contextlib.suppress(Internal), _opened(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4000))
        return str(file.read().decode(errors="backslashreplace"))
    return ""
