"""The quick scenarios as ordinary tests; `make faults` runs all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fault.result import Impossible, Scenario
from tests.fault.scenarios import SCENARIOS
from tests.fault.stand import Stand, standing


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """One suite, which each scenario hurts and heals."""
    with standing(tmp_path_factory.mktemp("faults")) as stand:
        yield stand


@pytest.mark.parametrize("scenario", [each for each in SCENARIOS if each.quick], ids=lambda scenario: scenario.name)
def test_nothing_is_lost(stand: Stand, scenario: Scenario) -> None:
    try:
        assert scenario.run(stand).broken == []
    except Impossible as lack:
        pytest.skip(str(lack))
