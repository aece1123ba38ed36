"""When a process is started again, and after which pause."""

from __future__ import annotations

import pytest

from penstock.kit.supervision.restarts import SOUND_SECONDS, Restarts, hopeless


@pytest.mark.parametrize(
    ("status", "made", "served", "verdict"),
    [
        (2, False, False, True),
        (2, False, True, False),  # a configuration that went bad while others serve
        (2, True, False, False),  # argparse is not the only one who says 2
        (1, False, False, False),
        (0, True, False, False),
        (-9, False, False, False),
    ],
)
def test_only_a_refused_configuration_ends_the_service(status: int, made: bool, served: bool, verdict: bool) -> None:
    assert hopeless(status, made=made, served=served) is verdict


def test_pauses_grow_to_a_cap_and_differ() -> None:
    restarts = Restarts()
    pauses = [restarts.pause(0.0) for _ in range(20)]
    assert 0.1 <= pauses[0] <= 0.2
    assert all(later > earlier for earlier, later in zip(pauses[::2], pauses[2:8:2], strict=False))
    assert all(15 <= pause <= 30 for pause in pauses[10:])
    assert len(set(pauses)) == len(pauses)


def test_a_process_that_served_long_begins_a_new_story() -> None:
    restarts = Restarts()
    for _ in range(10):
        restarts.pause(SOUND_SECONDS - 1)
    assert restarts.pause(SOUND_SECONDS) <= 0.2
    assert 0.2 <= restarts.pause(1.0) <= 0.4
