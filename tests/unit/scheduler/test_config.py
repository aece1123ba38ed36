"""Settings of pools: read, and refused where they do not go together."""

from __future__ import annotations

import pytest

from penstock.kit.config import load
from services.scheduler.config import SchedulerConfig
from services.scheduler.machines import Pace, Pool


def settings(*flags: str) -> SchedulerConfig:
    return load(SchedulerConfig, "scheduler", flags, {})


def test_nothing_is_scaled_unless_somebody_says_so() -> None:
    found = settings()
    assert (found.provider, found.sizes) == ("", ())


def test_pools_are_read_in_order() -> None:
    found = settings("--provider=metric", "--pools=gpu:0:8:20,cpu:1:4", "--pool-fall-seconds=60")
    assert found.sizes == (Pool("gpu", 0, 8, 0.2), Pool("cpu", 1, 4))
    assert found.pace == Pace(2.0, 60.0)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--provider=metric",), "set both"),
        (("--pools=cpu:1:4",), "set both"),
        (("--provider=command", "--pools=cpu:1:4"), "provider_command"),
        (("--provider=metric", "--pools=cpu:1:4", "--provider-command=x"), "provider_command"),
        (("--provider=metric", "--pools=cpu:1:4,cpu:2:3"), "twice"),
        (("--provider=metric", "--pools=cpu:5:4"), "at least 5 and at most 4"),
        (("--provider=cloud", "--pools=cpu:1:4"), "use one of"),
        (("--provider=metric", "--pools=cpu:1"), "must match"),
        (("--provider=metric", "--pools=CPU:1:2"), "must match"),
        (("--provider=metric", "--pools=cpu/x:1:2"), "must match"),
        (("--provider=metric", "--pools=cpu:1:2:100"), "must match"),
    ],
)
def test_what_does_not_go_together_ends_the_start(
    flags: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        settings(*flags)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
