"""What Prometheus reads at ``/metrics``. One registry an app: several apps in one process do not mix."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Readings(Collector):
    """Gauges that are read when Prometheus asks: name → (help, label or None, label's value → reading)."""

    def __init__(self) -> None:
        self.sources: dict[str, tuple[str, str | None, Callable[[], dict[str, float]]]] = {}

    def collect(self) -> list[GaugeMetricFamily]:
        found = []
        for name, (text, label, read) in self.sources.items():
            family = GaugeMetricFamily(name, text, labels=[label] if label else [])
            for value, reading in read().items():
                family.add_metric([value] if label else [], reading)
            found.append(family)
        return found


class Metrics:
    """Counts and times of one server; a ``BatchWatcher`` for its batchers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "clipette_requests", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self._latency = Histogram(
            "clipette_request_seconds", "From a request's head to its answer.", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._batches = Histogram(
            "clipette_batch_items", "Items of one call of the model.", ["queue"], buckets=SIZES, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "clipette_batch_seconds", "Of one call of the model.", ["queue"], buckets=SECONDS, registry=self.registry
        )
        self._refused = Counter(
            "clipette_refused", "Requests turned away with 429.", ["where", "why"], registry=self.registry
        )
        self._abandoned = Counter(
            "clipette_abandoned", "Requests whose client went away or whose time was up.", ["why"],
            registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge("clipette_in_flight", "Requests being worked on but for probes.", registry=self.registry)
        self._readings = _Readings()
        self.registry.register(self._readings)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One answered request; ``route`` is a template, never a path that a client chose."""
        self._requests.labels(route, method, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def batch(self, queue: str, items: int, seconds: float) -> None:
        self._batches.labels(queue).observe(items)
        self._batch_seconds.labels(queue).observe(seconds)

    def refused(self, queue: str, why: str) -> None:
        self._refused.labels(queue, why).inc()

    def abandoned(self, why: str) -> None:
        """``disconnect`` or ``timeout``."""
        self._abandoned.labels(why).inc()

    def read(self, name: str, text: str, label: str | None, source: Callable[[], dict[str, float]]) -> None:
        """Add a gauge that is read when asked: label's value → reading (``{"": x}`` without a label)."""
        self._readings.sources[name] = (text, label, source)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
