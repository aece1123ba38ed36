"""Which node of the machine's memory an engine gets: the kernel's words read, and the choice."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.worker.numa import node_of_device, nodes, parse_list, place

# /sys/devices/system/node of recorded machines: name of the folder, its cpulist.
DESKTOP = {"node0": "0-15\n"}
EPYC = {"node0": "0-23,96-119\n", "node1": "24-47,120-143\n", "node10": "48-71,144-167\n"}
GRACE = {"node0": "0-71\n", "node1": "\n", "node2": "\n"}  # the others are the GPU's memory


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, processors in files.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "cpulist").write_text(processors)
    (folder / "possible").write_text("0-1\n")
    return folder


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0-3,8\n", {0, 1, 2, 3, 8}),
        ("5", {5}),
        ("", set()),
        ("3-1", set()),
        ("0-3,x", set()),
        ("-1", set()),
        ("0,,2", set()),
    ],
)
def test_the_kernels_lists(text: str, wanted: set[int]) -> None:
    assert parse_list(text) == wanted


def test_nodes_of_recorded_machines(tmp_path: Path) -> None:
    assert nodes(tree(tmp_path / "desktop", DESKTOP)) == {0: frozenset(range(16))}
    epyc = nodes(tree(tmp_path / "epyc", EPYC))
    assert {node: len(processors) for node, processors in epyc.items()} == {0: 48, 1: 48, 10: 48}
    assert nodes(tree(tmp_path / "grace", GRACE)) == {0: frozenset(range(72))}
    assert nodes(tmp_path / "epyc", frozenset((0, 1, 24))) == {0: {0, 1}, 1: {24}}
    assert nodes(tmp_path / "none") == {}


TWO = {0: frozenset(range(8)), 1: frozenset(range(8, 16))}


@pytest.mark.parametrize(
    ("machine", "taken", "threads", "near", "wanted"),
    [
        ({0: frozenset(range(16))}, {}, 4, None, None),  # one node: nothing to choose
        (TWO, {}, 4, None, 0),
        (TWO, {0: 4}, 4, None, 1),
        (TWO, {0: 4, 1: 8}, 4, None, 0),
        (TWO, {0: 100}, 4, 0, 0),  # its GPU is there
        (TWO, {}, 4, 7, 0),  # a node that this worker may not use
        (TWO, {}, 9, None, None),  # larger than a node
        ({0: frozenset(range(4)), 1: frozenset(range(4, 16))}, {1: 3}, 3, None, 1),  # 6 of 12 against 3 of 4
    ],
)
def test_the_emptier_node_or_the_one_of_the_device(
    machine: dict[int, frozenset[int]], taken: dict[int, int], threads: int, near: int | None, wanted: int | None
) -> None:
    assert place(machine, taken, threads, near) == wanted


def test_the_node_of_a_device(tmp_path: Path) -> None:
    for address, said in (("0000:17:00.0", "1\n"), ("0000:ca:00.0", "-1\n"), ("0000:cb:00.0", "x\n")):
        (tmp_path / address).mkdir()
        (tmp_path / address / "numa_node").write_text(said)
    assert node_of_device("00000000:17:00.0", tmp_path) == 1
    assert node_of_device("0000:17:00.0", tmp_path) == 1
    for other in ("00000000:CA:00.0", "00000000:CB:00.0", "00000000:01:00.0", "", "../17:00.0"):
        assert node_of_device(other, tmp_path) is None
