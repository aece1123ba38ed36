"""The process that compiles one plan: `python -m services.worker.plans.child <parent's pid> <settings>`.

Its working folder is its own: it finds `order.json` and `source.onnx` there and leaves `plan.raw`, `timing.cache` and,
at the end, `answer.json`. It parses a file that somebody else wrote, in native code, and so it has no key, no network
and no other file of the worker where the kernel gives it namespaces (penstock/kit/confinement.py); an engine, which
reads the same files, has less. It builds and never runs: no runtime is made here.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, Final

from penstock.errors import Internal, InvalidManifest, PenstockError, ResourceExhausted
from penstock.kit import confinement
from penstock.kit.child import tie_to
from penstock.kit.confinement import Limits

_OOM_SCORE: Final = 700
"""Before engines, which have 600: who compiles serves nobody yet."""
_NICE: Final = 10
ORDER, SOURCE, PLAN, TIMING, ANSWER = "order.json", "source.onnx", "plan.raw", "timing.cache", "answer.json"


def compiled(order: dict[str, Any]) -> dict[str, Any]:
    """What was built; raises PenstockError. order: package, capability, best, largest, inputs, sizes, workspace."""
    from penstock.compiling import compiler, repair, source
    from penstock.untrusted import onnx_model

    path = Path(SOURCE)
    model = onnx_model.read(path)
    precision = source.precision_of(model)
    named = {value.name for value in model.graph.input}
    exact = {name: three for name, three in order["inputs"].items() if name in named}
    batches = [(1, order["best"], order["largest"])] if order["largest"] else []
    profiles = source.chosen_profiles(model, batches, order["sizes"], exact)
    fit, changed = repair.repaired(model)
    path.write_bytes(fit.SerializeToString())
    told = {"package": order["package"], "capability": order["capability"], "workspace": order["workspace"]}
    timing = TIMING if Path(TIMING).exists() else ""
    files = {"model": SOURCE, "plan": PLAN, "cache_in": timing, "cache_out": TIMING}
    answer = compiler.build({**told, **files, "profiles": profiles, "level": 3, "sparse": False})
    if "error" in answer:
        raise InvalidManifest(f"files.model: {answer['error']}", field="files.model", detail=answer.get("detail", ""))
    return {**answer, "precision": precision, "profiles": profiles, "repaired": changed}


def failure(error: BaseException) -> dict[str, str]:
    """An error as an answer, in public words."""
    if isinstance(error, MemoryError):
        error = ResourceExhausted("the compiler needs more memory than compile_memory_bytes allows")
    if not isinstance(error, PenstockError):
        words = f"the compiler failed inside ({type(error).__name__}); the worker's log says where"
        error = Internal(words, detail=traceback.format_exc()[-8000:])
    return {"code": error.code.name, "error": error.message, "detail": error.detail}


def confine(hidden: str) -> str:
    """Gives away what is not needed; what could not be given away, in words."""
    if problem := confinement.separate():
        return f"the network and the worker's folder are ({problem})"
    confinement.fork_within()
    problem = confinement.hide(hidden, os.getcwd())
    confinement.give_up_capabilities()
    return f"the worker's folder is ({problem})" if problem else ""


def main(arguments: list[str]) -> int:
    """Compiles; the exit status is 0 where there is an answer, a refusal included."""
    settings = json.loads(arguments[1])
    tie_to(int(arguments[0]), "penstock-plan", oom_score=_OOM_SCORE)
    os.nice(_NICE)
    open_to = confine(settings["hidden"])
    confinement.limit(Limits(**settings["limits"]))
    try:
        answer: dict[str, Any] = compiled(json.loads(Path(ORDER).read_text()))
    except BaseException as error:  # whatever a library raises is an answer; only a crash ends this without one
        answer = failure(error)
    Path(ANSWER).write_text(json.dumps({**answer, "open": open_to}))
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's goodbyes: libraries may wait there for threads of theirs.
    os._exit(status)
