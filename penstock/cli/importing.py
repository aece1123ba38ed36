"""import: manifests for the models of somebody else's repository, and on demand their versions."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.cli import pbtxt, triton
from penstock.cli.connect import connected
from penstock.cli.init import model_name
from penstock.cli.show import Screen
from penstock.errors import InvalidArgument, PenstockError

CONFIG = "config.pbtxt"


@dataclass(frozen=True, slots=True)
class Found:
    """One version of a model that can be published."""

    name: str
    version: int
    manifest: Path
    imported: triton.Imported


async def run(args: argparse.Namespace, screen: Screen) -> int:
    """Writes a model.yaml into every version's folder that Triton would serve; --publish publishes each by its number.

    Exits with 1 when a model of the repository could not be imported; the others are.
    """
    found, failed = _read(Path(args.folder), force=args.force)
    if args.publish and found:
        async with connected(args) as client:
            for each in found:
                version = await client.publish(each.manifest, version=each.version)
                screen.note(f"published {version.name}@{version.version}")
    _tell(screen, found, failed, published=args.publish)
    return 1 if failed else 0


def _read(root: Path, *, force: bool) -> tuple[list[Found], dict[str, str]]:
    """What was imported, and by folder why the others were not."""
    folders = [root] if (root / CONFIG).is_file() else sorted(path.parent for path in root.glob(f"*/{CONFIG}"))
    if not folders:
        raise InvalidArgument(f"{root}: there is no {CONFIG} in it or in its folders")
    found: list[Found] = []
    failed: dict[str, str] = {}
    for folder in folders:
        try:
            found += _model(folder, force=force)
        except PenstockError as error:
            failed[folder.name] = error.message
    return found, failed


def _model(folder: Path, *, force: bool) -> list[Found]:
    config = pbtxt.parse((folder / CONFIG).read_bytes().decode("utf-8", "replace"))
    imported = triton.convert(config, folder.name)
    name = imported.manifest["name"] = model_name(imported.manifest["name"])
    have = [
        int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal() and int(path.name) > 0
    ]
    versions = triton.chosen(config, have)
    if not versions:
        raise InvalidArgument("there is no folder of a version, such as 1")
    return [_version(folder / str(number), number, name, imported, force=force) for number in versions]


def _version(folder: Path, number: int, name: str, imported: triton.Imported, *, force: bool) -> Found:
    import yaml

    artifact, manifest = folder / imported.filename, folder / "model.yaml"
    if imported.manifest["format"] == "torch-export" and not artifact.is_file() and (folder / "model.pt").is_file():
        raise InvalidArgument(
            f"version {number}: model.pt is TorchScript, whose archive holds pickles; export the model with "
            "torch.export and save it as model.pt2"
        )
    if not artifact.is_file():
        raise InvalidArgument(f"version {number}: {imported.filename} is not there")
    if imported.manifest["format"] == "tensorrt":
        with artifact.open("rb") as file:
            head = file.read(4)
        if head in (b"ftrt", b"ptrt"):
            raise InvalidArgument(
                f"version {number}: a TensorRT plan is native code that nobody signed; import the ONNX file that "
                "it was built from, and compile it here"
            )
    if manifest.exists() and not force:
        raise InvalidArgument(f"version {number}: it has a model.yaml already; --force overwrites it")
    document: dict[str, Any] = {**imported.manifest, "files": {"model": imported.filename}}
    manifest.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    return Found(name, number, manifest, imported)


def _tell(screen: Screen, found: list[Found], failed: dict[str, str], *, published: bool) -> None:
    if screen.as_json:
        screen.data(
            {
                "versions": [
                    {
                        "name": each.name,
                        "version": each.version,
                        "manifest": str(each.manifest),
                        "format": each.imported.manifest["format"],
                        "instances": each.imported.manifest.get("instances", 1),
                        "notes": each.imported.notes,
                    }
                    for each in found
                ],
                "failed": failed,
            }
        )
        return
    rows = [(each.name, str(each.version), each.imported.manifest["format"], str(each.manifest)) for each in found]
    screen.table(("NAME", "VERSION", "FORMAT", "MANIFEST"), rows, empty="nothing could be imported")
    for name, notes in {each.name: each.imported.notes for each in found}.items():
        for note in notes:
            screen.note(f"note: {name}: {note}")
    for name, why in failed.items():
        screen.note(f"not imported: {name}: {why}")
    if found and not published:
        screen.line(f"next: penstock publish {found[0].manifest}, or the same command with --publish")
