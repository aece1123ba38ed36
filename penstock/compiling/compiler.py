"""The process that turns an ONNX file into a plan: `python -m penstock.compiling.compiler`.

One order as JSON on its input, one answer as JSON on its output, files in its folder. It parses a file that somebody
else wrote, in native code, so it is not the process that holds the builder's key. It builds and never runs: a
`Runtime` is not made here, which without a driver would end the process at best.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penstock.untrusted.words import public

MAX_LINES = 20


def main() -> int:
    """Carries out the order; the exit status is 0 where there is an answer, a refusal included."""
    order = json.load(sys.stdin)
    with _quiet():
        answer = build(order)
    json.dump(answer, sys.stdout)
    return 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Sends what native code prints to standard error: standard output carries the answer."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def build(order: dict[str, Any]) -> dict[str, Any]:
    """order: package, model, plan, capability, profiles, level, workspace, cache_in, cache_out, sparse.

    The answer has `error` in public words and `detail`, or what was built.
    """
    trt = importlib.import_module(order["package"])
    said: list[str] = []
    logger = _logger(trt, said)
    builder = trt.Builder(logger)
    flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(order["model"]).read_bytes()):
        return {"error": _parser_words(parser), "detail": " | ".join(said)}
    config = _config(trt, builder, network, order)
    cache = _timing_cache(config, order)
    begun = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        words = public(said[-1]) if said else "it gives no reason"
        return {"error": f"the builder cannot compile it: {words}", "detail": " | ".join(said)}
    data = bytes(plan)
    Path(order["plan"]).write_bytes(data)
    kept = b"" if cache is None else bytes(config.get_timing_cache().serialize())
    Path(order["cache_out"]).write_bytes(kept)
    return {
        "bytes": len(data),
        "seconds": round(time.monotonic() - begun, 3),
        "version": trt.__version__,
        "layers": int(network.num_layers),
        "inputs": [network.get_input(index).name for index in range(network.num_inputs)],
        "outputs": [network.get_output(index).name for index in range(network.num_outputs)],
        "warnings": said[:MAX_LINES],
    }


def _logger(trt: Any, said: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps warnings and errors, which are all that a report needs."""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING and len(said) < 200:
                said.append(public(message))

    return Logger()


def _config(trt: Any, builder: Any, network: Any, order: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    config.builder_optimization_level = order["level"]
    if order["workspace"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, order["workspace"])
    if order["capability"]:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, order["capability"]), 0)
    if order["sparse"]:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    for wanted in order["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (low, best, high) in wanted.items():
            profile.set_shape(name, tuple(low), tuple(best), tuple(high))
        config.add_optimization_profile(profile)
    return config


def _timing_cache(config: Any, order: dict[str, Any]) -> Any:
    """The cache of measured kernels, begun from the one that was kept; None where this builder has none."""
    old = Path(order["cache_in"]).read_bytes() if order["cache_in"] else b""
    try:
        cache = config.create_timing_cache(old)
        return cache if cache is not None and config.set_timing_cache(cache, False) else None
    except (TypeError, AttributeError, RuntimeError):
        return None


def _parser_words(parser: Any) -> str:
    """The first error: its operator, its node, and what the parser says."""
    if not parser.num_errors:
        return "the parser refuses the model and gives no reason"
    error = parser.get_error(0)
    return public(
        f"the operator {error.node_operator() or '?'} (node {error.node_name() or '?'}) cannot be compiled: "
        f"{error.desc()}; write it otherwise before exporting, or serve the ONNX model",
        500,
    )


if __name__ == "__main__":
    sys.exit(main())
