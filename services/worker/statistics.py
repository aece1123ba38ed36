"""Statistics of one replica, counted as Triton's statistics extension counts them (docs/protocol.md).

A request of n items adds n to `inference_count`; a batch adds one to `execution_count`; `success`, `queue` and the
three `compute_*` durations grow by one per successful request, each with the whole time of the batch that it rode in;
`batch_stats` grows once per batch. A request that got no answer counts in `fail` alone. Plain ints, nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.oip import inference_pb2 as oip


@dataclass(slots=True)
class Duration:
    """How often, and how long altogether."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Counts `count` times a duration of `ns` each."""
        self.count += count
        self.ns += ns * count

    def message(self) -> oip.StatisticDuration:
        """As the protocol says it."""
        return oip.StatisticDuration(count=self.count, ns=self.ns)


@dataclass(slots=True)
class _Compute:
    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)


class Statistics:
    """Counters of one replica since it was loaded."""

    def __init__(self) -> None:
        self.last_inference_ms = 0
        self.inference_count = 0
        self.execution_count = 0
        self._success = Duration()
        self._fail = Duration()
        self._queue = Duration()
        self._compute = _Compute()
        self._batches: dict[int, _Compute] = {}

    def batch(self, rows: int, *, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """A batch has run. rows: its size, 1 for a model without batch dimension."""
        self.execution_count += 1
        sizes = self._batches.setdefault(rows, _Compute())
        sizes.input.add(input_ns)
        sizes.infer.add(infer_ns)
        sizes.output.add(output_ns)

    def success(
        self, rows: int, *, total_ns: int, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int, now_ms: int
    ) -> None:
        """A request of `rows` items was answered. now_ms: wall clock, milliseconds since the epoch."""
        self.inference_count += rows
        self.last_inference_ms = now_ms
        self._success.add(total_ns)
        self._queue.add(queue_ns)
        self._compute.input.add(input_ns)
        self._compute.infer.add(infer_ns)
        self._compute.output.add(output_ns)

    def failure(self, total_ns: int) -> None:
        """A request ended without an answer: refused, too late, cancelled or failed."""
        self._fail.add(total_ns)

    def message(self, name: str, version: int, memory_bytes: int) -> oip.ModelStatistics:
        """As the protocol says it. memory_bytes: resident memory of the engine's process."""
        none = Duration()
        return oip.ModelStatistics(
            name=name,
            version=str(version),
            last_inference=self.last_inference_ms,
            inference_count=self.inference_count,
            execution_count=self.execution_count,
            inference_stats=oip.InferStatistics(
                success=self._success.message(),
                fail=self._fail.message(),
                queue=self._queue.message(),
                compute_input=self._compute.input.message(),
                compute_infer=self._compute.infer.message(),
                compute_output=self._compute.output.message(),
                cache_hit=none.message(),
                cache_miss=none.message(),
            ),
            batch_stats=[
                oip.InferBatchStatistics(
                    batch_size=rows,
                    compute_input=sizes.input.message(),
                    compute_infer=sizes.infer.message(),
                    compute_output=sizes.output.message(),
                )
                for rows, sizes in sorted(self._batches.items())
            ],
            memory_usage=[oip.MemoryUsage(type="CPU", id=0, byte_size=memory_bytes)] if memory_bytes else [],
        )
