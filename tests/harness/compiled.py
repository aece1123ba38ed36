"""A plugin, `pytest -p tests.harness.compiled`: the tests run against compiled modules, or not at all.

Those marked `interpreted` are left out: they replace a method or a constant, which compiled code does not allow.
"""

from __future__ import annotations

import pytest

from penstock.kit.compiled import activate

found = activate()
assert found.compiled, found.reason


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if item.get_closest_marker("interpreted") is None]
