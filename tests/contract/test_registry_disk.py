"""A disk that is full under the registry's database: said to be so, and over when there is room."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from penstock.errors import ResourceExhausted
from services.registry.database import Database


def test_a_full_disk_is_said_to_be_full_and_what_is_there_can_be_read(tmp_path: Path) -> None:
    """SQLite's own limit of pages stands for the disk's: it gives the same error (SQLITE_FULL)."""
    database = Database(f"sqlite:///{tmp_path}/registry.db")
    database.migrate()
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE filling (bytes BLOB)")
        connection.exec_driver_sql("INSERT INTO filling VALUES (zeroblob(100))")

    def fill(size: int) -> None:
        with database.write() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 8}")
            connection.execute(sa.text("INSERT INTO filling VALUES (zeroblob(:size))"), {"size": size})

    with pytest.raises(ResourceExhausted, match="disk is full") as raised:
        fill(1 << 20)
    assert str(tmp_path) not in raised.value.message
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM filling").scalar_one() == 1
    fill(1)  # room for that much there is, and nothing had to be started anew
    database.close()
