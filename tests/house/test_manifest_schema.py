"""The published JSON schema is what the code says."""

from __future__ import annotations

import json
from pathlib import Path

from services.registry.manifest import json_schema

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "model.schema.json"


def test_the_published_schema_is_fresh() -> None:
    stale = "docs/model.schema.json is stale: python -m services.registry.manifest > docs/model.schema.json"
    assert json.loads(PUBLISHED.read_text()) == json_schema(), stale
