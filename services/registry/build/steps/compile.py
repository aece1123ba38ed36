"""`compile`: an ONNX model to a signed plan for a target.

The builder is `tensorrt` where it is installed, else TensorRT-RTX, whose builder needs no GPU. Both take precision from
the graph (strongly typed): quantise or halve first. The untrusted graph is parsed by a process of its own
(penstock/compiling/compiler.py); this one, which holds the builder's key, only signs what came back
(penstock/plans.py). The plan's key is (digest of the ONNX file, builder, its version, architecture, precision,
profiles).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from penstock import plans
from penstock.compiling import profiles, repair
from penstock.compiling.builders import PACKAGES, RTX_ARCHITECTURES, builder
from penstock.compiling.source import chosen_profiles, precision_of, profile_text
from penstock.errors import InvalidArgument, Unsupported

from ..step import Json, Role, Step, StepContext, StepResult, installed
from . import onnx_file

# What TensorRT-RTX compiles for when it is not told: its documentation lists these.
DEFAULT_RTX: Final = "sm80,sm86,sm89,sm120+"
KEY: Final = "signing_key"

_ARCHITECTURE = re.compile(r"sm_?([0-9]{2,3})")
_PR_SET_DUMPABLE: Final = 4


@dataclass(frozen=True)
class Batch:
    """max: the largest batch. seen: size of a batch (as text) → how often it was served; chooses the best size."""

    max: int = 32
    seen: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(size.isdecimal() and len(size) < 10 for size in self.seen):
            raise InvalidArgument("sizes of batches are whole numbers", field="seen")


@dataclass(frozen=True)
class Parameters:
    """architecture: such as sm_89; empty for what the builder makes by itself. precision: what the graph must hold, or
    auto for what it holds. batch, sizes, profile: see penstock/compiling/profiles.py; sizes is dimension → smallest,
    best, largest, and profile is input → three shapes. level: of the builder's search, 0 to 5. workspace_mib: device
    memory that a kernel may use while it runs; 0 for the builder's choice. sparse: uses 2:4 zeros."""

    architecture: str = ""
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = "auto"
    batch: Batch = Batch()
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    profile: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    level: int = 3
    workspace_mib: int = 0
    sparse: bool = False

    def __post_init__(self) -> None:
        if self.architecture and not _ARCHITECTURE.fullmatch(self.architecture):
            raise InvalidArgument("an architecture is written like sm_89", field="architecture")
        if not 0 <= self.level <= 5:
            raise InvalidArgument("0 to 5 is needed", field="level")
        if not 0 <= self.workspace_mib <= 1 << 20:
            raise InvalidArgument("0 to 1048576 is needed", field="workspace_mib")


def run(work: StepContext[Parameters]) -> StepResult:
    """Compiles, signs, writes `plan` and `timing_cache`."""
    package, version = builder()
    parameters = work.parameters
    model = onnx_file.read(work.inputs["model"])
    precision = precision_of(model)
    if parameters.precision not in ("auto", precision):
        raise InvalidArgument(
            f"compile.precision: the model is {precision} and precision is in the graph; halve or quantise it first",
            field="compile.precision",
        )
    wanted = _profiles(parameters, model)
    fit, changed = repair.repaired(model)
    for text in changed:
        work.say(text)
    work.say(f"compiling with {plans.BUILDERS[package]} {version} for {_target(package, parameters)}")
    with unreadable():
        answer = _compile(work, package, fit, wanted)
    work.progress(0.9)
    header = plans.PlanHeader(
        source=f"sha256:{hashlib.sha256(work.inputs['model'].read_bytes()).hexdigest()}",
        builder=plans.BUILDERS[package],
        version=version,
        architecture=_target(package, parameters),
        precision=precision,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        profiles=wanted,
    )
    raw = work.folder / "plan.raw"
    path = work.folder / "model.plan"
    key = signing_key(work.secrets)
    with raw.open("rb") as plan, path.open("wb") as container:
        plans.seal(header, plan, raw.stat().st_size, container, key)
    raw.unlink()
    work.say(f"{answer['bytes']:,} bytes in {answer['seconds']} s, key {header.key}")
    files = {"plan": path, "timing_cache": work.folder / "timing.cache"}
    return StepResult(files, _report(work, header, answer, changed, path))


def _report(
    work: StepContext[Parameters], header: plans.PlanHeader, answer: Json, changed: list[str], path: Path
) -> Json:
    return {
        "engine": {
            "key": header.key,
            "source_digest": header.source,
            "builder": header.builder,
            "builder_version": header.version,
            "architecture": header.architecture,
            "precision": header.precision,
            "profile": profile_text(header.profiles),
        },
        "before": {"bytes": work.inputs["model"].stat().st_size},
        "after": {"bytes": path.stat().st_size, "layers": answer["layers"]},
        "build_seconds": answer["seconds"],
        "repaired": changed,
        "warnings": answer["warnings"],
    }


def _profiles(parameters: Parameters, model: Any) -> tuple[profiles.Profile, ...]:
    """The profiles of the parameters for this model's inputs."""
    seen = {int(size): count for size, count in parameters.batch.seen.items()}
    ranges = profiles.batch_ranges(seen, parameters.batch.max)
    return chosen_profiles(model, ranges, parameters.sizes, parameters.profile)


def signing_key(secrets: Mapping[str, bytes]) -> Any:
    """The builder's key: 32 bytes, or PKCS #8 in PEM; raises InvalidArgument without showing it."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = secrets.get(KEY, b"")
    try:
        if len(data) == 32:
            return Ed25519PrivateKey.from_private_bytes(data)
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise Unsupported("this builder has no key to sign plans with; `python -m penstock.plans FOLDER` makes one")
    return key


def _compile(work: StepContext[Parameters], package: str, model: Any, wanted: tuple[profiles.Profile, ...]) -> Json:
    """Runs compiler.py; raises InvalidArgument with its words where it refuses the model or dies of it."""
    parameters = work.parameters
    source = work.folder / "source.onnx"
    source.write_bytes(model.SerializeToString())
    cache = work.inputs.get("timing_cache")
    order = {
        "package": package,
        "model": str(source),
        "plan": str(work.folder / "plan.raw"),
        "capability": _capability(package, parameters),
        "profiles": wanted,
        "level": parameters.level,
        "workspace": parameters.workspace_mib << 20,
        "sparse": parameters.sparse,
        "cache_in": str(cache) if cache else "",
        "cache_out": str(work.folder / "timing.cache"),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "penstock.compiling.compiler"],
        input=json.dumps(order).encode(),
        capture_output=True,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_MODULE_LOADING": "LAZY"},
        check=False,
    )
    source.unlink()
    if done.returncode != 0:
        raise InvalidArgument(
            f"model: the builder ended with status {done.returncode} while compiling it; try another precision",
            field="model",
            detail=done.stderr.decode(errors="replace")[-4000:],
        )
    answer: Json = json.loads(done.stdout)
    if "error" in answer:
        raise InvalidArgument(f"model: {answer['error']}", field="model", detail=answer.get("detail", ""))
    return answer


def _capability(package: str, parameters: Parameters) -> str:
    """What TensorRT-RTX calls the architecture; raises InvalidArgument where this builder cannot make it."""
    if not parameters.architecture:
        return ""
    number = _ARCHITECTURE.fullmatch(parameters.architecture).group(1)  # type: ignore[union-attr]
    if package == "tensorrt":
        here = device_architecture()
        if here != f"sm{number}":
            raise InvalidArgument(
                f"compile.architecture: this builder has {here or 'no GPU'} and compiles for what it has; "
                f"sm{number} needs a builder with such a GPU",
                field="compile.architecture",
            )
        return ""
    if number not in RTX_ARCHITECTURES:
        raise InvalidArgument(
            f"compile.architecture: TensorRT-RTX compiles for sm_75, sm_80, sm_86, sm_89, sm_120 and sm_121; "
            f"for sm_{number} leave it empty",
            field="compile.architecture",
        )
    return f"SM{number}"


def _target(package: str, parameters: Parameters) -> str:
    if parameters.architecture:
        return f"sm{_ARCHITECTURE.fullmatch(parameters.architecture).group(1)}"  # type: ignore[union-attr]
    if package == "tensorrt":
        here = device_architecture()
        if not here:
            raise Unsupported("TensorRT compiles on the GPU that it compiles for, and this builder has none")
        return here
    return DEFAULT_RTX


def device_architecture() -> str:
    """The first GPU's, such as sm90, as the driver says; empty where there is no driver or GPU. Makes no context."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return ""
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
    if driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device) or driver.cuDeviceGetAttribute(
        ctypes.byref(minor), 76, device
    ):
        return ""
    return f"sm{major.value}{minor.value}"


@contextmanager
def unreadable() -> Iterator[None]:
    """No process of this user can read this one's memory, which holds the key, meanwhile (man 2 prctl)."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def _tools(parameters: Parameters) -> dict[str, str]:
    package, version = builder()
    return {PACKAGES[package][0]: version, **installed("build", "onnx"), **installed("plans", "cryptography")}


STEP: Final = Step(
    name="compile",
    version=1,
    text="an ONNX model to a signed TensorRT plan for a target",
    parameters=Parameters,
    inputs=(
        Role("model", "an ONNX model in the precision to compile"),
        Role("timing_cache", "what an earlier build measured", required=False),
    ),
    outputs=(
        Role("plan", "the signed plan"),
        Role("timing_cache", "what this build measured; empty where this builder keeps nothing"),
    ),
    tools=_tools,
    run=run,
    secrets=(KEY,),
)
