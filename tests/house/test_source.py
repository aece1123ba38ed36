"""Habits that a machine can keep: sizes, what is never called, what is never printed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .source import PRODUCT, ROOT, dotted, files, shown, tree

# 400 and 60 are the signs (house rules); these leave room for a line that breaks badly.
MOST_LINES = 450
MOST_LINES_OF_A_TEST = 600  # a long list of cases hides no concept
MOST_LINES_OF_A_FUNCTION = 80

FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "yaml.load", "yaml.load_all",
    "yaml.unsafe_load", "yaml.full_load", "asyncio.create_subprocess_shell", "subprocess.getoutput",
    "subprocess.getstatusoutput",
}  # fmt: skip


def dangers(source: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """What turns bytes or text from outside into code."""
    for node in ast.walk(source):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            module = node.module if isinstance(node, ast.ImportFrom) else ""
            names = {f"{module}.{alias.name}" for alias in node.names}
            for name in modules:
                if name.split(".")[0] in FORBIDDEN_MODULES:
                    yield node, f"imports {name}"
            for name in names & FORBIDDEN_CALLS:
                yield node, f"imports {name}"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in FORBIDDEN_CALLS or name.removeprefix("self._") in FORBIDDEN_CALLS:
            yield node, f"calls {name}"
        for keyword in node.keywords:
            constant = keyword.value.value if isinstance(keyword.value, ast.Constant) else True
            if keyword.arg in ("allow_pickle", "shell") and constant is not False:
                yield node, f"passes {keyword.arg}"
        if name in ("np.load", "numpy.load") and not any(keyword.arg == "allow_pickle" for keyword in node.keywords):
            yield node, "np.load does not say allow_pickle=False"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import dill as d", "import joblib.parallel", "import marshal",
        "torch.load(f)", "yaml.load(t)", "yaml.load(t, Loader=yaml.Loader)", "from yaml import unsafe_load",
        "np.load(f)", "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=x)", "eval(t)", "exec(t)",
        "subprocess.run(c, shell=True)", "subprocess.run(c, shell=1)", "os.system(c)", "self._torch.load(f)",
        "from torch import load", "__import__(n)", "cloudpickle = 1; import cloudpickle",
    ],
)  # fmt: skip
def test_the_search_finds_each_danger(text: str) -> None:
    assert list(dangers(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    ["np.load(f, allow_pickle=False)", "yaml.safe_load(t)", "re.compile(p)", "subprocess.run(c)", "model.eval()"],
)
def test_the_search_leaves_the_rest_alone(text: str) -> None:
    assert not list(dangers(ast.parse(text)))


def test_nothing_from_outside_becomes_code() -> None:
    found = [
        f"{shown(path, node)} {what}"
        for path in files()
        for node, what in dangers(tree(path))
        if not (what == "imports pickle" and only_makes_bait(path))
    ]
    assert not found, "\n".join(found)


def only_makes_bait(path: Path) -> bool:
    """A test that pickles something to see it refused; reading it back would be another matter."""
    calls = {dotted(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}
    return path.is_relative_to(ROOT / "tests") and not calls & {"pickle.load", "pickle.loads", "pickle.Unpickler"}


def test_no_file_is_too_long() -> None:
    long = [
        f"{shown(path)}: {count}"
        for path in files()
        if (count := path.read_text().count("\n"))
        > (MOST_LINES_OF_A_TEST if path.name.startswith("test_") else MOST_LINES)
    ]
    assert not long, f"a concept is missing: {long}"


def test_no_function_is_too_long() -> None:
    long = [
        f"{shown(path, node)} {node.name}: {length}"
        for path in files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION
        # A revision of the database is one statement per table; it is never changed.
        and "migrations" not in path.parts
    ]
    assert not long, f"a concept is missing: {long}"


def test_services_do_not_print() -> None:
    found = [
        shown(path, node)
        for path in files("services")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and dotted(node.func) == "print" and not in_main(path, node)
    ]
    assert not found, f"log instead: {found}"


def in_main(path: Path, call: ast.Call) -> bool:
    """Inside `if __name__ == "__main__":`, where a module is a command."""
    return any(
        isinstance(node, ast.If) and "__main__" in ast.dump(node.test) and call in ast.walk(node)
        for node in tree(path).body
    )


def test_every_module_says_what_it_is() -> None:
    silent = [shown(path) for path in files() if tree(path).body and not ast.get_docstring(tree(path))]
    assert not silent


def test_no_names_that_say_nothing() -> None:
    vague = ("Manager", "Helper", "Util", "Utils", "Base")
    found = [
        f"{shown(path, node)} {node.name}"
        for path in files(*PRODUCT)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef) and node.name.endswith(vague)
    ]
    assert not found


def test_the_floors_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
