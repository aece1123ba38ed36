"""The search that follows the code (atheris, libFuzzer): `python -m tests.fuzz.http2 [TARGET...] [-runs=N] [-…]`.

Without a name every target has its turn. Flags are libFuzzer's: `-runs=100000`, `-max_total_time=60`, `-seed=1`.
What it finds is written to `crash-…` in the folder where it runs; a finding belongs into the table of
tests/integration/http2_cases.py or into a test of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["penstock.wire"]):
    from tests.fuzz.seeds import SEEDS
    from tests.fuzz.targets import TARGETS


def main(arguments: list[str]) -> int:
    """Each target in a process of its own: libFuzzer ends the one that it runs in."""
    flags = [each for each in arguments if each.startswith("-")]
    names = [each for each in arguments if not each.startswith("-")] or list(TARGETS)
    if len(names) > 1:
        command = [sys.executable, "-m", "tests.fuzz.http2"]
        return max(subprocess.run([*command, name, *flags], check=False).returncode for name in names)
    (name,) = names
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS[name]):
            (Path(corpus) / f"{number:03}").write_bytes(seed)
        standard = ["-max_len=4000", "-timeout=10", "-print_final_stats=0"]
        atheris.Setup([name, *standard, *flags, corpus], TARGETS[name])
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
