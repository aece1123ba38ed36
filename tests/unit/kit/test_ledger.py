"""Several processes' metrics as one service's: sums that never go back, gauges by rule, the rest by process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from penstock.kit.metrics import merge_rules
from penstock.kit.supervision.ledger import Ledger

RULES = {"asked": "sum", "took": "sum", "busy": "sum", "known": "max"}


class Process:
    """A process that counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.asked = Counter("asked", "How often", ["model"], registry=self.registry)
        self.took = Histogram("took", "How long", buckets=(1.0, 2.0), registry=self.registry)
        self.busy = Gauge("busy", "Parts of a whole", registry=self.registry)
        self.known = Gauge("known", "What all see", registry=self.registry)
        self.own = Gauge("process_threads", "Nobody's business", registry=self.registry)
        self.seconds = Counter("process_seconds", "Its own", registry=self.registry)

    def text(self) -> str:
        return generate_latest(self.registry).decode()


def values(ledger: Ledger) -> dict[str, float]:
    """`name{labels}` to value, of what the ledger shows."""
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(ledger.text().decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def ledger_of(*processes: Process) -> Ledger:
    ledger = Ledger(RULES)  # type: ignore[arg-type]
    for number, process in enumerate(processes, 1):
        ledger.seen(number, f"g.{number}", process.text())
    return ledger


def test_counters_and_histograms_are_summed_by_their_labels() -> None:
    one, other = Process(), Process()
    one.asked.labels("a").inc(2)
    one.asked.labels("b").inc(3)
    other.asked.labels("a").inc(5)
    one.took.observe(0.5)
    other.took.observe(1.5)
    other.took.observe(9)
    shown = values(ledger_of(one, other))
    assert (shown["asked_total{model=a}"], shown["asked_total{model=b}"]) == (7, 3)
    assert [shown[f"took_bucket{{le={bound}}}"] for bound in ("1.0", "2.0", "+Inf")] == [1, 2, 3]
    assert (shown["took_count"], shown["took_sum"]) == (3, 11)


def test_a_gauge_follows_its_rule_and_what_has_none_is_told_apart() -> None:
    one, other = Process(), Process()
    one.busy.set(2)
    other.busy.set(3)
    one.known.set(4)
    other.known.set(1)
    one.own.set(7)
    other.own.set(8)
    one.seconds.inc(1)
    shown = values(ledger_of(one, other))
    assert (shown["busy"], shown["known"]) == (5, 4)
    assert (shown["process_threads{process=g.1}"], shown["process_threads{process=g.2}"]) == (7, 8)
    assert shown["process_seconds_total{process=g.1}"] == 1
    assert "process_threads" not in shown


def test_what_an_ended_process_counted_stays_and_what_it_was_busy_with_goes() -> None:
    one, other = Process(), Process()
    one.asked.labels("a").inc(2)
    one.took.observe(0.5)
    one.busy.set(2)
    other.busy.set(1)
    ledger = ledger_of(one, other)
    ledger.ended(1)
    shown = values(ledger)
    assert (shown["asked_total{model=a}"], shown["took_count"], shown["busy"]) == (2, 1, 1)
    assert "process_threads{process=g.1}" not in shown
    # Its successor counts from the beginning, and the sum goes on.
    successor = Process()
    successor.asked.labels("a").inc(1)
    ledger.seen(3, "g.1", successor.text())
    ledger.ended(3)
    ledger.ended(3)
    ledger.ended(99)
    assert values(ledger)["asked_total{model=a}"] == 3


def test_the_last_that_was_seen_counts_once() -> None:
    process = Process()
    process.asked.labels("a").inc(2)
    ledger = ledger_of(process)
    process.asked.labels("a").inc(1)
    ledger.seen(1, "g.1", process.text())
    assert values(ledger)["asked_total{model=a}"] == 3


def test_two_processes_in_one_place_show_no_series_twice() -> None:
    old, new = Process(), Process()
    old.own.set(1)
    new.own.set(2)
    ledger = Ledger(RULES)  # type: ignore[arg-type]
    ledger.seen(1, "g.1", old.text())
    ledger.seen(2, "g.1", new.text())
    lines = [line for line in ledger.text().decode().splitlines() if line.startswith("process_threads{")]
    assert lines == ['process_threads{process="g.1"} 2.0']


def test_texts_of_callers_survive() -> None:
    process = Process()
    process.asked.labels('a "quoted"\\ \n name').inc()
    text = ledger_of(process).text().decode()
    assert text.splitlines()[2] == process.text().splitlines()[2] == r'asked_total{model="a \"quoted\"\\ \n name"} 1.0'


def test_the_rules_are_those_of_the_declarations() -> None:
    rules = merge_rules()
    assert rules["penstock_gateway_requests"] == rules["penstock_gateway_request_seconds"] == "sum"
    assert rules["penstock_gateway_in_flight"] == "sum"
    assert rules["penstock_gateway_models"] == rules["penstock_ready"] == "max"
    assert "penstock_scheduler_term" not in rules and "process_cpu_seconds" not in rules
