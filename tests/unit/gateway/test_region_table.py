"""The table of regions: per owner, bounded, the same for every process of a gateway."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.errors import AlreadyExists, PenstockError, ResourceExhausted
from penstock.regions import Region
from services.gateway.region_table import RegionTable


def region(name: str = "r", inode: int = 7) -> Region:
    return Region(name, "/key", inode, 64, 4096)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[RegionTable]:
    made = RegionTable(tmp_path)
    yield made
    made.close()


def test_what_is_added_is_found_by_its_owner_alone(table: RegionTable) -> None:
    table.add("ann", region())
    assert table.find("ann", "r") == region()
    assert table.all("ann") == [region()]
    assert table.find("bob", "r") is None
    assert table.all("bob") == []
    table.remove("bob", "r")
    assert table.find("ann", "r") == region()
    table.remove("ann", "r")
    table.remove("ann", "r")
    assert table.find("ann", "r") is None


def test_names_are_each_owners_own(table: RegionTable) -> None:
    table.add("ann", region(inode=1))
    table.add("bob", region(inode=2))
    with pytest.raises(AlreadyExists):
        table.add("ann", region(inode=3))
    assert (table.find("ann", "r"), table.find("bob", "r")) == (region(inode=1), region(inode=2))


def test_a_name_that_comes_again_is_never_the_old_region(table: RegionTable) -> None:
    for inode in range(1, 200):
        table.add("ann", region(inode=inode))
        assert table.find("ann", "r") == region(inode=inode)
        table.remove("ann", "r")


def test_counts_are_bounded_for_one_and_for_all(tmp_path: Path) -> None:
    table = RegionTable(tmp_path, max_per_owner=3, max_in_all=5)
    for number in range(3):
        table.add("ann", region(f"r{number}"))
    with pytest.raises(ResourceExhausted):
        table.add("ann", region("more"))
    for number in range(2):
        table.add("bob", region(f"r{number}"))
    with pytest.raises(ResourceExhausted):
        table.add("bob", region("more"))
    table.remove("ann", "r0")
    table.add("bob", region("more"))
    assert [each.name for each in table.all("bob")] == ["more", "r0", "r1"]
    table.close()


def test_every_process_sees_what_any_of_them_was_told(tmp_path: Path) -> None:
    tables = [RegionTable(tmp_path) for _ in range(3)]
    tables[0].add("ann", region())
    assert all(each.find("ann", "r") == region() for each in tables)
    with pytest.raises(AlreadyExists):
        tables[1].add("ann", region())
    tables[2].remove("ann", "r")
    assert all(each.find("ann", "r") is None for each in tables)
    for each in tables:
        each.close()
        each.close()
    assert (tmp_path / "regions").is_dir(), "whoever gave the folder removes it"


SCRIPT = """
import sys
from pathlib import Path
from penstock.errors import AlreadyExists, ResourceExhausted
from penstock.regions import Region
from services.gateway.region_table import RegionTable
table = RegionTable(Path(sys.argv[1]), max_per_owner=200)
print("ready", flush=True)
sys.stdin.readline()
won = 0
for number in range(400):
    try:
        table.add("ann", Region(f"r{number}", "/k", 1, 0, 1))
        won += 1
    except (AlreadyExists, ResourceExhausted):
        pass
print(won)
"""


def test_processes_that_race_get_each_name_once_and_keep_the_bound(tmp_path: Path) -> None:
    racing = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for each in racing:
        assert each.stdout is not None and each.stdout.readline() == "ready\n"
    for each in racing:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    won = [int(each.communicate(timeout=60)[0]) for each in racing]
    assert sum(won) == 200
    table = RegionTable(tmp_path)
    assert len(table.all("ann")) == 200
    table.close()


def test_readers_never_see_half_a_record(table: RegionTable) -> None:
    ended = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not ended.is_set():
            try:
                found = table.find("ann", "r")
            except PenstockError as error:
                wrong.append(error)
                return
            if found not in (None, region()):
                wrong.append(found)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(500):
        table.add("ann", region())
        table.remove("ann", "r")
    ended.set()
    reader.join()
    assert not wrong


def test_its_folder_is_nobody_elses(table: RegionTable) -> None:
    assert os.fstat(table._folder).st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "regions").mkdir(mode=0o755)
    (tmp_path / "regions").chmod(0o755)
    with pytest.raises(ValueError, match="nobody else may enter"):
        RegionTable(tmp_path)


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (tmp_path / "regions").symlink_to(elsewhere)
    with pytest.raises(ValueError):
        RegionTable(tmp_path)


def test_file_names_hold_nothing_that_a_caller_chose(table: RegionTable, tmp_path: Path) -> None:
    table.add("../../ann", region("x.."))
    (name,) = os.listdir(tmp_path / "regions")
    assert set(name) <= set("0123456789abcdef-")
