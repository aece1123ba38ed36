"""Generates the Python of every contract in this folder: `python protos/generate.py` writes it into the repository,
`--check` writes it elsewhere and exits 1 with the names of the stale files.

Two contracts belong to others (package `inference`, package `etcdserverpb`) and may be declared a second time in the
same process by somebody else's client, which protobuf's default pool refuses. Their modules get a pool of their own.
"""

import argparse
import filecmp
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
FOREIGN = ("penstock/oip/inference_pb2.py", "penstock/internal/etcd/rpc_pb2.py")
DEFAULT_POOL = "_descriptor_pool.Default()"
OWN_POOL = "_descriptor_pool.DescriptorPool()"


def generate(out: Path) -> list[Path]:
    """Writes all generated modules under `out` and returns their paths relative to it."""
    sources = sorted(path.relative_to(ROOT / "protos").as_posix() for path in (ROOT / "protos").rglob("*.proto"))
    outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python")]
    for kind in ("mypy", "mypy_grpc"):
        # Of this environment, which need not be on PATH.
        plugin = Path(sys.executable).with_name(f"protoc-gen-{kind}")
        outputs += [f"--plugin=protoc-gen-{kind}={plugin}", f"--{kind}_out=quiet:{out}"]
    includes = [f"-I{ROOT / 'protos'}", f"-I{files('grpc_tools') / '_proto'}"]
    if protoc.main(["protoc", *includes, *outputs, *sources]) != 0:
        raise SystemExit("protoc failed")
    for name in FOREIGN:
        module = out / name
        text = module.read_text()
        if text.count(DEFAULT_POOL) != 1:
            raise SystemExit(f"{name}: expected one {DEFAULT_POOL}; the generator has changed")
        module.write_text(text.replace(DEFAULT_POOL, OWN_POOL))
    remove_empty_stubs(out)
    return generated(out)


def generated(out: Path) -> list[Path]:
    """Paths, relative to `out`, of the generated modules below it."""
    found = (out / "penstock").rglob("*_pb2*.py*")
    return sorted(path.relative_to(out) for path in found if "__pycache__" not in path.parts)


def remove_empty_stubs(out: Path) -> None:
    """protoc writes a `_pb2_grpc` module for files without a service too; those say nothing."""
    for module in (out / "penstock").rglob("*_pb2_grpc.py"):
        if "class " not in module.read_text():
            module.unlink()
            module.with_suffix(".pyi").unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the committed code is fresh")
    if not parser.parse_args().check:
        print(f"{len(generate(ROOT))} files written")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
        committed = set(generated(ROOT))
        stale = {
            path for path in fresh if path not in committed or not filecmp.cmp(ROOT / path, Path(folder) / path, False)
        }
        stale |= committed - set(fresh)
    for path in sorted(stale):
        print(f"stale: {path} (run `make protos`)")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
