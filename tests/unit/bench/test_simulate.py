"""The simulated rule agrees with what can be said of it without simulating, and with batching.md B.2."""

from __future__ import annotations

import pytest

from services.worker.batching import BatchPolicy
from tests.bench.output import quantile
from tests.bench.simulate import POWERS, TEN, affine, bert, bucketed, measured, poisson, simulate

CAPACITY = 32 / bert(32)
POLICY = BatchPolicy(max_batch_size=32)


def latencies(load: float, requests: int, policy: BatchPolicy = POLICY) -> list[float]:
    rate = load * CAPACITY
    return sorted(simulate(poisson(rate, requests / rate, seed=1), bert, policy))


def test_one_request_takes_what_the_engine_takes() -> None:
    assert simulate([1.0], bert, POLICY) == [pytest.approx(bert(1))]


def test_who_comes_while_the_engine_runs_goes_with_the_next_batch() -> None:
    second = bert(1) + bert(2)
    assert simulate([0.0, 1e-4, 2e-4], bert, POLICY) == [
        pytest.approx(bert(1)),
        pytest.approx(second - 1e-4),
        pytest.approx(second - 2e-4),
    ]


def test_batches_end_at_their_largest_size() -> None:
    assert simulate([0.0] * 5, lambda rows: 1.0, BatchPolicy(max_batch_size=2)) == [1.0, 1.0, 2.0, 2.0, 3.0]


def test_the_model_s_own_delay_is_obeyed() -> None:
    delayed = BatchPolicy(max_batch_size=4, max_delay=0.5)
    assert simulate([0.0, 0.2], lambda rows: 1.0, delayed) == [pytest.approx(1.5), pytest.approx(1.3)]


def test_a_nearly_idle_engine_answers_in_its_own_time() -> None:
    assert quantile(latencies(0.02, 4000), 0.5) == pytest.approx(bert(1))


@pytest.mark.parametrize(
    ("load", "p50", "p99"),
    # batching.md B.2, column "greedy", milliseconds
    [(0.02, 0.78, 1.52), (0.10, 0.94, 1.73), (0.30, 1.44, 2.29), (0.70, 2.48, 4.43)],
)
def test_the_table_of_the_design_comes_out_again(load: float, p50: float, p99: float) -> None:
    found = latencies(load, 20_000)
    assert quantile(found, 0.5) * 1e3 == pytest.approx(p50, rel=0.06)
    assert quantile(found, 0.99) * 1e3 == pytest.approx(p99, rel=0.12)


def test_of_a_few_sizes_the_best_beats_padding_up_and_rounding_down() -> None:
    """batching.md B.4 at 70 % load, milliseconds: 4.99, 3.13, 3.04 for powers of two; 3.34, 2.79 for ten sizes."""
    means = {}
    for sizes, rule in ((POWERS, "up"), (POWERS, "down"), (POWERS, "best"), (TEN, "up"), (TEN, "best")):
        found = bucketed(sizes, 0.7, rule, 20_000)
        means[len(sizes), rule] = sum(found) / len(found) * 1e3
    assert means[6, "best"] <= means[6, "down"] < means[6, "up"]
    assert means[10, "best"] < means[10, "up"]
    table = {(6, "up"): 4.99, (6, "down"): 3.13, (6, "best"): 3.04, (10, "up"): 3.34, (10, "best"): 2.79}
    assert means == pytest.approx(table, rel=0.06)


def test_poisson_arrivals_have_their_rate_and_repeat() -> None:
    times = poisson(1000.0, 10.0, seed=3)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert times == sorted(times)
    assert times == poisson(1000.0, 10.0, seed=3)
    assert times != poisson(1000.0, 10.0, seed=4)


def test_service_times_between_measurements() -> None:
    between = measured({1: 1.0, 4: 4.0, 8: 6.0})
    assert [between(rows) for rows in (1, 2, 6, 8, 16)] == pytest.approx([1.0, 2.0, 5.0, 6.0, 12.0])


def test_a_line_is_found() -> None:
    assert list(affine({1: 3.0, 2: 5.0, 4: 9.0})) == pytest.approx([1.0, 2.0])
