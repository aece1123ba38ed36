"""No test is left out by the name of its folder."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

from .source import ROOT


def test_every_folder_with_tests_is_looked_into(request: pytest.FixtureRequest) -> None:
    passed_over = request.config.getini("norecursedirs")
    for path in (ROOT / "tests").rglob("test_*.py"):
        for folder in path.relative_to(ROOT).parent.parts:
            assert not any(fnmatch(folder, pattern) for pattern in passed_over), path.relative_to(ROOT)
