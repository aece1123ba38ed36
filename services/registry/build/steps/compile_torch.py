"""`compile-torch`: an exported program of PyTorch to a signed package of AOTInductor, for processors.

AOTInductor writes C++ and calls a compiler on it, so one must be installed beside the builder. The program is compiled
by a process of its own, and what came out is run and compared with the program by another (torch_compiler.py); this
one, which holds the builder's key, only wraps it (penstock/plans.py). The worker's torch engine runs the package in the
program's place where builder, version, architecture and the program's digest are its own (docs/engines.md).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from penstock import plans
from penstock.errors import InvalidArgument, InvalidManifest, Unsupported

from ..step import Json, Role, Step, StepContext, StepResult, installed
from .compile import KEY, signing_key, unreadable

ARCHITECTURES: Final = {
    "cpu-x86_64_avx512": frozenset(("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")),
    "cpu-x86_64_avx2": frozenset(("avx2", "fma")),
}
"""What a worker calls its processor → the flags of Linux by which PyTorch chooses that name, the better one first."""
COMPILERS: Final = ("g++", "clang++")
NEAR: Final = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 6e-2, "int8": 6e-2}
"""Largest difference between package and program, as a share of the largest value."""


@dataclass(frozen=True)
class Parameters:
    """architecture: as workers call theirs, such as cpu-x86_64_avx512; empty for this machine's."""

    architecture: str = ""

    def __post_init__(self) -> None:
        if self.architecture and self.architecture not in ARCHITECTURES:
            raise InvalidArgument(
                f"{', '.join(ARCHITECTURES)}, or empty for this machine's; for GPUs the program itself is served",
                field="architecture",
            )


def run(work: StepContext[Parameters]) -> StepResult:
    """Compiles, compares, signs, writes `plan`."""
    model, target = work.inputs["model"], architecture(work.parameters)
    work.say(f"compiling for {target} with {Path(compiler()).name}")
    raw = work.folder / "package.pt2"
    with unreadable():
        answer = _torch(work, "compile", raw)
        package = raw.read_bytes()  # before anything of it runs
        work.progress(0.7)
        answer |= _torch(work, "compare", raw)
    work.progress(0.9)
    gap, near = answer["largest_difference"], NEAR[answer["precision"]]
    if not gap <= near:
        raise InvalidManifest(
            f"model: the compiled program differs from the program by {gap:.1e}, and {near} is allowed; serve the "
            "program itself",
            field="model",
        )
    header = plans.PlanHeader(
        source=f"sha256:{hashlib.sha256(model.read_bytes()).hexdigest()}",
        builder=plans.BUILDERS["torch"],
        version=answer["version"],
        architecture=target,
        precision=answer["precision"],
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    path = work.folder / "model.plan"
    path.write_bytes(plans.wrap(header, package, signing_key(work.secrets)))
    raw.unlink()
    times = answer["latency"]
    work.say(f"{answer['bytes']:,} bytes in {answer['seconds']} s, differs by {gap:.1e} at most, key {header.key}")
    work.say(f"{times['before_ms']} to {times['after_ms']} ms for the smallest batch")
    return StepResult({"plan": path}, _report(header, answer, model, path))


def architecture(parameters: Parameters) -> str:
    """What the package is compiled for; raises Unsupported where this machine's processor has no name here."""
    if parameters.architecture:
        return parameters.architecture
    flags = _flags() if platform.machine() == "x86_64" else frozenset()
    found = next((name for name, needed in ARCHITECTURES.items() if needed <= flags), "")
    if not found:
        raise Unsupported(
            f"packages are compiled for x86-64 with AVX2 or more, and this builder's processor is another "
            f"({platform.machine()}); name the workers' as `architecture`, or serve the program itself"
        )
    return found


def compiler() -> str:
    """The path of a C++ compiler; raises Unsupported where there is none."""
    for name in COMPILERS:
        if found := shutil.which(name):
            return found
    raise Unsupported(
        "AOTInductor writes C++, and no compiler for it is installed on this builder; install g++ beside the "
        "registry (or beside its `build_python`), or serve the program itself"
    )


def _torch(work: StepContext[Parameters], task: str, package: Path) -> Json:
    """Runs torch_compiler.py; raises InvalidManifest with its words where it refuses the program or dies of it."""
    order = {"task": task, "model": str(work.inputs["model"]), "package": str(package), "threads": work.threads}
    caches = work.folder / "inductor"
    caches.mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "services.registry.build.steps.torch_compiler"],
        input=json.dumps(order).encode(),
        capture_output=True,
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "CXX": compiler(),
            "HOME": str(work.folder),
            "TMPDIR": str(caches),
            "TORCHINDUCTOR_CACHE_DIR": str(caches),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # in its own process: others would be left behind
            "OMP_NUM_THREADS": str(max(1, work.threads)),
            "CUDA_VISIBLE_DEVICES": "",
        },
        check=False,
    )
    shutil.rmtree(caches, ignore_errors=True)
    if done.returncode != 0:
        raise InvalidManifest(
            f"model: the compiler ended with status {done.returncode}; serve the program itself",
            field="model",
            detail=done.stderr.decode(errors="replace")[-4000:],
        )
    answer: Json = json.loads(done.stdout)
    if "error" in answer:
        raise InvalidManifest(
            f"model: {answer['error'].removeprefix('model: ')}", field="model", detail=answer["detail"]
        )
    return answer


def _report(header: plans.PlanHeader, answer: Json, model: Path, path: Path) -> Json:
    return {
        "engine": {
            "key": header.key,
            "source_digest": header.source,
            "builder": header.builder,
            "builder_version": header.version,
            "architecture": header.architecture,
            "precision": header.precision,
            "profile": "",
        },
        "before": {"bytes": model.stat().st_size},
        "after": {"bytes": path.stat().st_size},
        "build_seconds": answer["seconds"],
        "largest_difference": answer["largest_difference"],
        "latency": answer["latency"],
    }


def _flags() -> frozenset[str]:
    """The processor's flags, as Linux says them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def _tools(parameters: Parameters) -> dict[str, str]:
    path = compiler()
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    version = said.partition("\n")[0].rpartition(" ")[2]
    return {
        **installed("build-torch", "torch"),
        **installed("plans", "cryptography"),
        Path(path).name: version,
        "architecture": architecture(parameters),
    }


STEP: Final = Step(
    name="compile-torch",
    version=1,
    text="an exported program of PyTorch to a signed AOTInductor package",
    parameters=Parameters,
    inputs=(Role("model", "the archive that torch.export.save writes"),),
    outputs=(Role("plan", "the signed package"),),
    tools=_tools,
    run=run,
    secrets=(KEY,),
)
