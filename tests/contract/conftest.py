"""The registry's database, SQLite and, where PENSTOCK_TEST_POSTGRES_URL names one, PostgreSQL."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.registry.database import Database
from services.registry.deployment_store import DeploymentStore
from services.registry.store import Store
from services.registry.tenants.store import TenantStore

POSTGRES = os.environ.get("PENSTOCK_TEST_POSTGRES_URL", "")
NO_POSTGRES = pytest.mark.skipif(not POSTGRES, reason="PENSTOCK_TEST_POSTGRES_URL names no PostgreSQL")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=(pytest.mark.postgres, NO_POSTGRES))])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/a folder 100%/registry.db"
        return
    admin = sa.create_engine(_psycopg(POSTGRES), isolation_level="AUTOCOMMIT")
    name = f"penstock_test_{uuid.uuid4().hex}"
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield _psycopg(POSTGRES).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def _psycopg(url: str) -> sa.URL:
    return sa.make_url(url).set(drivername="postgresql+psycopg")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(url)
    made.migrate()
    yield made
    made.close()


class Clock:
    """Microseconds that go up by one with every look."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000

    def __call__(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database, Clock())


@pytest.fixture
def deployments(database: Database) -> DeploymentStore:
    return DeploymentStore(database, Clock())


@pytest.fixture
def clock() -> Clock:
    """Of what a test looks at."""
    return Clock()


@pytest.fixture
def tenants(database: Database, clock: Clock) -> TenantStore:
    return TenantStore(database, clock)
