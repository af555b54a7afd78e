"""All Prometheus metrics.

Labels are bounded: model, version, route template, outcome, device; never a text, key or address.
Every app has a registry of its own, so that several apps in one process do not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client import (
    GC_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNMATCHED_ROUTE = "unmatched"

# From 1 ms: a short sentence takes a few milliseconds, and a histogram that starts coarser shows nothing of it.
_REQUEST_BUCKETS = (
    0.001,
    0.002,
    0.004,
    0.008,
    0.016,
    0.032,
    0.064,
    0.128,
    0.256,
    0.512,
    1.0,
    2.0,
    4.0,
    8.0,
    16.0,
    32.0,
    64.0,
)
_PHASE_BUCKETS = (0.0001, 0.00025, 0.0005, *_REQUEST_BUCKETS)
_ROW_BUCKETS = tuple(float(2**power) for power in range(12))


class Metrics:
    """The metrics of one app; attributes are named after what they measure, without the prefix `recurra_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(GC_COLLECTOR)
        self._make_http_metrics()
        self._make_engine_metrics()
        self._make_job_metrics()

    def _make_http_metrics(self) -> None:
        registry = self.registry
        self.requests = Counter(
            "recurra_requests_total", "HTTP requests answered", ["route", "outcome"], registry=registry
        )
        self.request_seconds = Histogram(
            "recurra_request_seconds", "Whole HTTP request", ["route"], buckets=_REQUEST_BUCKETS, registry=registry
        )

    def _make_engine_metrics(self) -> None:
        registry = self.registry

        def phase(name: str, text: str) -> Histogram:
            return Histogram(f"recurra_{name}_seconds", text, buckets=_PHASE_BUCKETS, registry=registry)

        def tokens(side: str, text: str) -> Counter:
            return Counter(f"recurra_{side}_tokens_total", text, ["model"], registry=registry)

        self.queue_seconds = phase("queue", "A request's wait until its first sentence is admitted")
        self.encode_seconds = phase("encode", "Encoder time of the batches that carried a request's sentences")
        self.decode_seconds = phase("decode", "A request's time in the engine that is neither queue nor encoder")
        self.time_to_first_token_seconds = phase(
            "time_to_first_token", "From a request's arrival to its first decode step"
        )
        self.step_seconds = phase("step", "One decode step over all live rows")
        self.step_rows = Histogram(
            "recurra_step_rows", "Live rows in a decode step", buckets=_ROW_BUCKETS, registry=registry
        )
        self.queue_depth = Gauge("recurra_queue_depth", "Sentences that wait for a place", registry=registry)
        self.live_rows = Gauge("recurra_live_rows", "Live rows now", registry=registry)
        self.source_tokens = tokens("source", "Source tokens translated")
        self.target_tokens = tokens("target", "Target tokens produced")
        self.unknown_tokens = tokens("unknown", "Source tokens that the model does not know")
        self.device_memory_bytes = Gauge(
            "recurra_device_memory_bytes",
            "Memory in use on the device: of this process on a CPU, of torch's allocator on a GPU",
            ["device"],
            registry=registry,
        )
        self.device_memory_bytes.labels("cpu").set_function(resident_bytes)

    def _make_job_metrics(self) -> None:
        registry = self.registry
        self.jobs = Gauge("recurra_jobs", "Training jobs of all replicas", ["state"], registry=registry)
        self.training_loss = Gauge(
            "recurra_training_loss", "Loss a target token of the model in training", ["model"], registry=registry
        )
        self.training_tokens = Counter(
            "recurra_training_tokens_total", "Target tokens trained on here", ["model"], registry=registry
        )

    def watch(self, *, queue_depth: Callable[[], int], live_rows: Callable[[], int]) -> None:
        """Both gauges are read when Prometheus asks, so that the engine does no work for them."""
        self.queue_depth.set_function(queue_depth)
        self.live_rows.set_function(live_rows)

    def watch_models(self, models: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """`recurra_model_info` is made of the names and live versions when Prometheus asks: none is left behind."""
        self.registry.register(_ModelInfo(models))

    def exposition(self) -> bytes:
        return generate_latest(self.registry)


class _ModelInfo(Collector):
    def __init__(self, models: Callable[[], Iterable[tuple[str, str]]]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "recurra_model_info", "1 for the live version of each model in memory", labels=["model", "version"]
        )
        for name, version in self._models():
            info.add_metric([name, version], 1)
        yield info


def resident_bytes() -> float:
    """Resident set size of this process; 0 where /proc is not there."""
    try:
        num_pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    import resource  # not on Windows, which has no /proc either

    return float(num_pages * resource.getpagesize())
