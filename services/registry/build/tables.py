"""Jobs, results that can be used again, engines, what a version's gate said, and who overrode it.

Part of the metadata of services/registry/tables.py; times are microseconds since 1970.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, String, Table, Text

from ..tables import Name, metadata

builds = Table(
    "builds",
    metadata,
    Column("id", String(32), primary_key=True),
    # Counts up in the order of asking.
    Column("turn", BigInteger, nullable=False),
    Column("name", Name, nullable=False),
    Column("number", BigInteger, nullable=False),
    # A serialised penstock.v1.BuildSpec with every id and input written out.
    Column("spec", LargeBinary, nullable=False),
    Column("state", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("cancelled", Boolean, nullable=False),
    Column("creator", String(256), nullable=False),
    Column("request_key", String(128), nullable=True),
    Column("fingerprint", String(64), nullable=False),
    Column("result_number", BigInteger, nullable=False),
    # penstock.v1.GateVerdict, and the checks that failed as a JSON list.
    Column("gate", Integer, nullable=False),
    Column("failed_checks", Text, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("start_time", BigInteger, nullable=False),
    Column("end_time", BigInteger, nullable=False),
    Index("builds_by_request", "name", "request_key", unique=True),
    Index("builds_by_state", "state", "turn"),
    Index("builds_by_name", "name", "turn"),
)

build_steps = Table(
    "build_steps",
    metadata,
    Column("build_id", String(32), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    # A serialised penstock.v1.StepStatus.
    Column("status", LargeBinary, nullable=False),
)

build_results = Table(
    "build_results",
    metadata,
    # dag.key.
    Column("key", String(64), primary_key=True),
    # A serialised penstock.v1.StepStatus: outputs, report, tools.
    Column("status", LargeBinary, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    # When a job last found it; what was not used for longest goes first.
    Column("use_time", BigInteger, nullable=False, server_default="0"),
)

engines = Table(
    "engines",
    metadata,
    # sha256 of everything that the engine depends on.
    Column("key", String(64), primary_key=True),
    Column("build_id", String(32), nullable=False),
    # A serialised penstock.v1.Engine.
    Column("engine", LargeBinary, nullable=False),
    # When somebody last found it.
    Column("use_time", BigInteger, nullable=False, server_default="0"),
    Index("engines_by_build", "build_id"),
)

version_gates = Table(
    "version_gates",
    metadata,
    Column("name", Name, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("build_id", String(32), nullable=False),
    Column("passed", Boolean, nullable=False),
    # A JSON list of texts.
    Column("failed_checks", Text, nullable=False),
)

gate_overrides = Table(
    "gate_overrides",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("name", Name, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("build_id", String(32), nullable=False),
    Column("who", String(256), nullable=False),
    Column("reason", Text, nullable=False),
    Column("failed_checks", Text, nullable=False),
    Column("time", BigInteger, nullable=False),
    Index("gate_overrides_by_name", "name"),
)
