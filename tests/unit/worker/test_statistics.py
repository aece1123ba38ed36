"""Triton's arithmetic of statistics."""

from __future__ import annotations

from services.worker.statistics import Statistics


def answered(statistics: Statistics, rows: int, now_ms: int = 5) -> None:
    statistics.success(rows, total_ns=1000, queue_ns=100, input_ns=20, infer_ns=300, output_ns=4, now_ms=now_ms)


def test_a_batch_of_two_requests() -> None:
    statistics = Statistics()
    statistics.batch(64 + 3, input_ns=20, infer_ns=300, output_ns=4)
    answered(statistics, 64)
    answered(statistics, 3, now_ms=7)
    message = statistics.message("m", 2, memory_bytes=99)
    assert (message.name, message.version) == ("m", "2")
    assert message.inference_count == 67
    assert message.execution_count == 1
    assert message.last_inference == 7
    stats = message.inference_stats
    assert (stats.success.count, stats.success.ns) == (2, 2000)
    assert (stats.queue.count, stats.queue.ns) == (2, 200)
    # Each request rode for the whole time of the batch.
    assert (stats.compute_infer.count, stats.compute_infer.ns) == (2, 600)
    assert (stats.compute_input.count, stats.compute_input.ns) == (2, 40)
    assert (stats.compute_output.count, stats.compute_output.ns) == (2, 8)
    assert stats.fail.count == stats.cache_hit.count == stats.cache_miss.count == 0
    (batch,) = message.batch_stats
    assert batch.batch_size == 67
    assert (batch.compute_infer.count, batch.compute_infer.ns) == (1, 300)
    assert message.memory_usage[0].byte_size == 99


def test_batch_stats_are_kept_per_size_in_order() -> None:
    statistics = Statistics()
    for rows in (4, 1, 4):
        statistics.batch(rows, input_ns=1, infer_ns=10, output_ns=1)
    sizes = [(each.batch_size, each.compute_infer.count) for each in statistics.message("m", 1, 0).batch_stats]
    assert sizes == [(1, 1), (4, 2)]


def test_a_failed_request_counts_in_fail_alone() -> None:
    statistics = Statistics()
    statistics.failure(500)
    message = statistics.message("m", 1, 0)
    assert (message.inference_stats.fail.count, message.inference_stats.fail.ns) == (1, 500)
    assert message.inference_count == message.inference_stats.success.count == message.last_inference == 0
