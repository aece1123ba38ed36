"""Two processes of `compile-torch`: `python -m services.registry.build.steps.torch_compiler` compiles, or compares.

One order as JSON on its input, one answer as JSON on its output, files in its folder. The program is somebody else's,
so neither is the process that holds the builder's key. What was compiled is native code, which only the second one
runs: by then the bytes that will be signed have been read.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from penstock.errors import PenstockError
from penstock.untrusted.words import public

from ..step import Json
from .convert_torch import flat, load_program

MARCH: Final = "x86-64-v3"
"""What code may use on any processor whose name begins with cpu-x86_64_avx: AVX2, whatever this one has besides.

Processors of one name differ: AVX-512 has a dozen parts. Products of matrices go to libraries that look for
themselves when they run.
"""
SETTINGS: Final = {
    "cpp.march": MARCH,
    "cpp.simdlen": 256,
    # Headers compiled beforehand pay from the second program on, and here is one.
    "cpp_cache_precompile_headers": False,
    "aot_inductor.precompile_headers": False,
}
ROUNDS: Final = 15
_SMALLEST: Final = 2
"""Of a size that may be any: 1 would be compiled for alone."""


def main() -> int:
    """Carries out the order; the exit status is 0 where there is an answer, a refusal included."""
    order = json.load(sys.stdin)
    kept = os.dup(1)
    os.dup2(2, 1)  # standard output carries the answer; what torch prints goes to the log
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # of torch, about itself
    work = {"compile": compiled, "compare": compared}[order["task"]]
    try:
        answer = work(load_program(Path(order["model"]), order["threads"]), Path(order["package"]))
    except PenstockError as error:
        answer = {"error": error.message, "detail": error.detail}
    except Exception as error:  # of torch's compiler, and of what it made
        words = f"AOTInductor cannot compile it: {public(error)}; the program itself can be served"
        answer = {"error": words, "detail": repr(error)[-4000:]}
    with os.fdopen(kept, "w", encoding="utf-8") as out:
        json.dump(answer, out)
    return 0


def compiled(program: Any, package: Path) -> Json:
    """Compiles and writes the package; runs none of it."""
    import torch
    from torch._inductor import aoti_compile_and_package

    program.example_inputs = _examples(program)
    begun = time.perf_counter()
    aoti_compile_and_package(program, package_path=str(package), inductor_configs=SETTINGS)
    return {
        "bytes": package.stat().st_size,
        "seconds": round(time.perf_counter() - begun, 2),
        "precision": _precision(program),
        "version": str(torch.__version__),
    }


def compared(program: Any, package: Path) -> Json:
    """Runs program and package on the same random inputs: the largest difference, and times in milliseconds."""
    import torch
    from torch._inductor import aoti_load_package

    positional, keywords = _examples(program)
    module, loaded = program.module(check_guards=False), aoti_load_package(str(package))
    with torch.inference_mode():
        wanted, found = (list(flat(call(*positional, **keywords))) for call in (module, loaded))
        gap = max(map(_gap, wanted, found), default=0.0)
        before, after = _latency(module, loaded, positional, keywords)
    latency = {"before_ms": before, "after_ms": after, "ratio": round(after / before, 4)}
    return {"largest_difference": gap, "latency": latency}


def _examples(program: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Random inputs as the program takes them: positional, and by keyword."""
    import torch

    nodes = {node.name: node for node in program.graph.nodes}
    limits = {str(symbol): limit for symbol, limit in program.range_constraints.items()}
    torch.manual_seed(0)
    made = []
    for name in program.graph_signature.user_inputs:
        value = nodes[name].meta["val"]
        sizes = [size if isinstance(size, int) else _size(limits.get(str(size))) for size in value.shape]
        kind = value.dtype
        made.append(torch.randn(sizes).to(kind) if kind.is_floating_point else torch.zeros(sizes, dtype=kind))
    given, named = program.call_spec.in_spec.children()
    count = given.num_leaves
    return tuple(made[:count]), dict(zip(named.context, made[count:], strict=True))


def _size(limit: Any) -> int:
    least, most = (str(bound) for bound in (limit.lower, limit.upper)) if limit is not None else ("", "")
    size = max(_SMALLEST, int(least)) if least.isdecimal() else _SMALLEST
    return min(size, int(most)) if most.isdecimal() else size


def _gap(wanted: Any, found: Any) -> float:
    """The largest difference, as a share of the largest value."""
    if not wanted.is_floating_point() or not wanted.numel():
        return 0.0 if bool((wanted == found).all()) else 1.0
    a, b = wanted.double(), found.double()
    return float((a - b).abs().max() / a.abs().max().clamp(min=1.0))


def _latency(first: Callable[..., Any], second: Callable[..., Any], given: Any, named: Any) -> tuple[float, float]:
    """Medians of both in milliseconds, called in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for call, kept in zip((first, second), times, strict=True):
            begun = time.perf_counter()
            call(*given, **named)
            kept.append((time.perf_counter() - begun) * 1000)
    return round(statistics.median(times[0]), 4), round(statistics.median(times[1]), 4)


def _precision(program: Any) -> str:
    """What most of its weights are."""
    counts: Counter[str] = Counter()
    for value in program.state_dict.values():
        counts[str(value.dtype)] += value.numel()
    most = counts.most_common(1)[0][0] if counts else "torch.float32"
    return {"torch.float16": "fp16", "torch.bfloat16": "bf16", "torch.int8": "int8"}.get(most, "fp32")


if __name__ == "__main__":
    sys.exit(main())
